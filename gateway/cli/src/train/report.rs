//! What a training tells.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use engine::{
    ModelFiles, Precision,
    train::{self, Validated},
};
use serde::Serialize;

use super::{Args, Data, Judged, Vectors};
use crate::{
    home::Home,
    output::{excerpt, render, right, table},
};

/// Figures of a head, all of them on texts that it had not seen.
#[derive(Serialize)]
pub(crate) struct Report {
    model: String,
    /// In f32.
    revision: String,
    revision_precision: &'static str,
    base: String,
    folder: String,
    rows: usize,
    folds: u32,
    accuracy: f64,
    /// Of each fold.
    fold_accuracies: Vec<f64>,
    /// Of always choosing the most frequent label.
    baseline_accuracy: f64,
    macro_f1: f64,
    labels: Vec<LabelReport>,
    /// Accuracy for each value of --group-column.
    groups: BTreeMap<String, GroupReport>,
    temperature: f32,
    log_loss_before: f64,
    log_loss: f64,
    threshold: Option<ThresholdReport>,
    steps: u32,
    converged: bool,
    tokens: u64,
    texts_cut: usize,
    embed_seconds: f64,
    train_seconds: f64,
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct LabelReport {
    name: String,
    rows: usize,
    share: f64,
    precision: f64,
    recall: f64,
    f1: f64,
    /// The label that its rows were most often taken for wrongly, and how often.
    mistaken_for: Option<(String, u64)>,
}

#[derive(Serialize)]
struct GroupReport {
    rows: usize,
    accuracy: f64,
}

#[derive(Serialize)]
struct ThresholdReport {
    label: String,
    value: f32,
    precision: f64,
    recall: f64,
    f1: f64,
}

impl Report {
    pub(crate) fn new(
        args: &Args,
        from: (&Data, &Vectors),
        head: (&Validated, &Judged),
        files: &ModelFiles,
        spent: [Duration; 2],
    ) -> Self {
        let ((data, vectors), (validated, judged)) = (from, head);
        let rows = data.classes.len();
        let logits = &validated.logits;
        let base = files.base.as_ref().map(|base| base.manifest.name.to_string());
        let folds = validated.folds.iter().copied();
        let fold_accuracies = shares(folds.zip(right_rows(data, judged))).into_values().map(|(share, _)| share);
        Self {
            model: files.manifest.name.to_string(),
            revision: files.manifest.revision().to_string(),
            revision_precision: Precision::F32.as_str(),
            base: base.unwrap_or_default(),
            folder: files.folder.display().to_string(),
            rows,
            folds: args.folds,
            accuracy: judged.confusion.accuracy(),
            fold_accuracies: fold_accuracies.collect(),
            baseline_accuracy: ratio(data.counts.iter().copied().max().unwrap_or(0), rows),
            macro_f1: judged.confusion.macro_f1(),
            labels: (0..data.labels.len()).map(|label| LabelReport::new(data, judged, label)).collect(),
            groups: groups(data, judged),
            temperature: judged.temperature,
            log_loss_before: train::log_loss(logits, &data.classes, 1.0),
            log_loss: train::log_loss(logits, &data.classes, judged.temperature),
            threshold: judged.threshold.map(|(label, threshold)| ThresholdReport {
                label: data.labels[label].clone(),
                value: threshold.value,
                precision: threshold.precision,
                recall: threshold.recall,
                f1: threshold.f1(),
            }),
            steps: validated.trained.steps,
            converged: validated.trained.converged,
            tokens: vectors.tokens,
            texts_cut: vectors.truncated,
            embed_seconds: spent[0].as_secs_f64(),
            train_seconds: spent[1].as_secs_f64(),
            warnings: data.warnings.clone(),
        }
    }

    /// For people.
    pub(crate) fn text(&self, home: &Home) -> String {
        let mut text = format!("{}\n", self.label_table());
        if !self.groups.is_empty() {
            let _ = write!(text, "\n{}\n", self.group_table());
        }
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let range = self.fold_accuracies.iter().fold((1.0_f64, 0.0_f64), |(low, high), x| (low.min(*x), high.max(*x)));
        let mut facts = vec![
            (
                "Accuracy",
                format!(
                    "{} ({} to {} over {} folds)",
                    percent(self.accuracy),
                    percent(range.0),
                    percent(range.1),
                    self.folds
                ),
            ),
            ("Baseline", format!("{} by always choosing the most frequent label", percent(self.baseline_accuracy))),
            ("Macro F1", format!("{:.3}", self.macro_f1)),
            (
                "Calibration",
                format!(
                    "temperature {:.3}; log loss {:.4}, {:.4} without it",
                    self.temperature, self.log_loss, self.log_loss_before
                ),
            ),
        ];
        if let Some(ThresholdReport { label, value, precision, recall, f1 }) = &self.threshold {
            let figures = format!("precision {precision:.3}, recall {recall:.3}, F1 {f1:.3}");
            facts.push(("Threshold", format!("{label:?} from {value:.3} on: {figures}")));
        }
        facts.push((
            "Time",
            format!(
                "{:.1} s to embed {} texts ({} tokens), {:.1} s to train",
                self.embed_seconds, self.rows, self.tokens, self.train_seconds
            ),
        ));
        facts.push(("Model", format!("{} in {}", self.model, self.folder)));
        for (what, fact) in facts {
            let _ = write!(text, "\n{what:<12} {fact}");
        }
        let place = if home.is_default() { String::new() } else { format!(" --data-dir {}", home.data().display()) };
        let name = &self.model;
        let _ = write!(
            text,
            "\n\nAll figures are of texts that were held out. Use it:\n\n  tamis models load {name}{place}\n  \
             tamis call classify --model {name}{place} 'text'"
        );
        text
    }

    fn label_table(&self) -> String {
        let mut rows = table(&["LABEL", "ROWS", "SHARE", "PRECISION", "RECALL", "F1", "MISTAKEN FOR"]);
        right(&mut rows, &[1, 2, 3, 4, 5]);
        for label in &self.labels {
            let mistaken = label.mistaken_for.as_ref().map(|(name, count)| format!("{} ({count})", excerpt(name, 24)));
            rows.add_row([
                excerpt(&label.name, 32),
                label.rows.to_string(),
                format!("{:.1} %", 100.0 * label.share),
                format!("{:.3}", label.precision),
                format!("{:.3}", label.recall),
                format!("{:.3}", label.f1),
                mistaken.unwrap_or_default(),
            ]);
        }
        render(&rows)
    }

    fn group_table(&self) -> String {
        let mut rows = table(&["GROUP", "ROWS", "ACCURACY"]);
        right(&mut rows, &[1, 2]);
        for (name, group) in &self.groups {
            rows.add_row([excerpt(name, 32), group.rows.to_string(), format!("{:.1} %", 100.0 * group.accuracy)]);
        }
        render(&rows)
    }
}

impl LabelReport {
    fn new(data: &Data, judged: &Judged, label: usize) -> Self {
        let confusion = &judged.confusion;
        let others = (0..data.labels.len()).filter(|other| *other != label);
        let mistaken = others.max_by_key(|other| (confusion.at(label, *other), std::cmp::Reverse(*other)));
        let mistaken = mistaken.map(|other| (data.labels[other].clone(), confusion.at(label, other)));
        Self {
            name: data.labels[label].clone(),
            rows: data.counts[label],
            share: ratio(data.counts[label], data.classes.len()),
            precision: confusion.precision(label),
            recall: confusion.recall(label),
            f1: confusion.f1(label),
            mistaken_for: mistaken.filter(|(_, count)| *count > 0),
        }
    }
}

fn right_rows<'a>(data: &'a Data, judged: &'a Judged) -> impl Iterator<Item = bool> + 'a {
    data.classes.iter().zip(&judged.chosen).map(|(truth, chosen)| truth == chosen)
}

fn groups(data: &Data, judged: &Judged) -> BTreeMap<String, GroupReport> {
    let Some(parts) = &data.parts else { return BTreeMap::new() };
    let shares = shares(parts.iter().cloned().zip(right_rows(data, judged)));
    shares.into_iter().map(|(part, (accuracy, rows))| (part, GroupReport { rows, accuracy })).collect()
}

/// For each key the share of true values, and how many there are.
fn shares<K: Ord>(values: impl Iterator<Item = (K, bool)>) -> BTreeMap<K, (f64, usize)> {
    let mut counts = BTreeMap::<K, (usize, usize)>::new();
    for (key, value) in values {
        let count = counts.entry(key).or_default();
        count.0 += usize::from(value);
        count.1 += 1;
    }
    counts.into_iter().map(|(key, (yes, all))| (key, (ratio(yes, all), all))).collect()
}

#[expect(clippy::cast_precision_loss, reason = "rows are counted in millions at most")]
fn ratio(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
