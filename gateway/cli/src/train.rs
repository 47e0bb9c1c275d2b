//! `tamis train-head`: a classifier from a table of texts and labels.

mod data;
mod report;
pub(crate) mod vectors;

use std::{collections::BTreeMap, path::PathBuf, time::Instant};

use anyhow::bail;
use engine::{
    Manifest, ModelFiles, ModelName, Store, Task,
    train::{self, Balance, Confusion, Examples, Goal, Layer, Settings, Threshold, Validated},
};
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use self::{data::Data, report::Report, vectors::Vectors};
use crate::{
    advice::Advice,
    home::Home,
    output::{say, warn},
};

/// Steps of the minimiser; heads take 20 to 200.
const STEPS_MAX: u32 = 1000;

/// Arguments of `tamis train-head`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Table with a header line: CSV, or TSV if its name ends in .tsv.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Name of the new model.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Embedding model whose vectors the head reads.
    #[arg(long, value_name = "NAME", default_value = "all-minilm-l6-v2")]
    model: String,
    /// Column of the texts [default: text, or another usual name].
    #[arg(long, value_name = "NAME")]
    text_column: Option<String>,
    /// Column of the labels [default: label, or another usual name].
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Column that divides the report: accuracy is shown for each of its values, at most 32.
    #[arg(long, value_name = "NAME")]
    group_column: Option<String>,
    /// Parts that are held out in turn to measure, 2 to 20.
    #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u32).range(2..=20))]
    folds: u32,
    /// Most rows; a longer table is refused.
    #[arg(long, value_name = "COUNT", default_value_t = 200_000)]
    max_rows: usize,
    /// Let all labels count the same, however many rows they have.
    #[arg(long)]
    balanced: bool,
    /// Weight of the penalty on large weights [default: 1 / (10 x rows)].
    #[arg(long, value_name = "NUMBER", value_parser = positive)]
    l2: Option<f64>,
    /// Of two labels, the one that --decide and --precision are about [default: the rarer one].
    #[arg(long, value_name = "LABEL")]
    positive: Option<String>,
    /// How two labels are told apart: by the threshold with the greatest F1, or by the more probable one.
    #[arg(long, value_name = "RULE", value_enum, default_value_t = Rule::F1)]
    decide: Rule,
    /// Of two labels: the threshold with the greatest recall at this precision, 0 to 1.
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with = "decide")]
    precision: Option<f32>,
    /// SPDX identifier of the licence of the head.
    #[arg(long, value_name = "LICENCE", default_value = "LicenseRef-unpublished")]
    licence: String,
    /// Replace a model of this name that was trained before.
    #[arg(long)]
    force: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// How two labels are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Rule {
    /// The greatest F1.
    F1,
    /// The more probable one.
    Best,
}

/// A head's manifest, as it is written.
#[derive(Serialize)]
struct Written<'a> {
    name: &'a str,
    task: Task,
    licence: &'a str,
    sources: [BTreeMap<&'static str, &'static str>; 1],
    files: [BTreeMap<&'static str, String>; 1],
    base: BTreeMap<&'static str, &'a str>,
    head: WrittenHead<'a>,
}

#[derive(Serialize)]
struct WrittenHead<'a> {
    labels: &'a [String],
    activation: &'static str,
    temperature: f32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    thresholds: Vec<f32>,
}

/// Runs `tamis train-head`.
pub(crate) fn run(args: &Args, home: &Home) -> anyhow::Result<()> {
    let store = Store::new(home.data());
    let name = free_name(args, &store)?;
    let data = Data::read(args)?;
    data.warnings.iter().for_each(warn);
    let positive = positive_label(args, &data)?;
    let base = base(args, &store)?;
    let started = Instant::now();
    let vectors = vectors::embed(&base, &data.texts)?;
    let embedded = started.elapsed();
    if vectors.truncated > 0 {
        warn(format!("warning: {} texts were cut to {} tokens", vectors.truncated, vectors.tokens_max));
    }
    let started = Instant::now();
    let validated = validate(args, &data, &vectors);
    if !validated.trained.converged {
        warn(format!("warning: the training had not come to rest after {STEPS_MAX} steps; a larger --l2 helps"));
    }
    let judged = Judged::new(args, &data, &validated, positive)?;
    let trained = started.elapsed();
    let files = install(args, &name, (&data, &base), (&validated.trained.layer, &judged), &store)?;
    let report = Report::new(args, (&data, &vectors), (&validated, &judged), &files, [embedded, trained]);
    if args.json {
        say(serde_json::to_string_pretty(&report)?)?
    } else {
        say(report.text(home))?
    }
    Ok(())
}

/// What the held-out logits say.
struct Judged {
    temperature: f32,
    /// The positive label and its threshold.
    threshold: Option<(usize, Threshold)>,
    /// The label that is chosen for each row.
    chosen: Vec<u32>,
    confusion: Confusion,
}

impl Judged {
    fn new(args: &Args, data: &Data, validated: &Validated, positive: usize) -> anyhow::Result<Self> {
        let (labels, logits) = (data.labels.len(), &validated.logits);
        let temperature = train::temperature(logits, &data.classes);
        let threshold = match (labels, args.precision, args.decide) {
            (2, Some(precision), _) => {
                let goal = Goal::Precision(precision);
                let found = Self::threshold(data, logits, (positive, temperature), goal);
                let Some(found) = found else {
                    let what = format!("no threshold gives {:?} the precision {precision}", data.labels[positive]);
                    bail!(Advice::new(
                        what,
                        "ask for less, or add rows; without --precision the report shows what it has"
                    ));
                };
                Some(found)
            }
            (_, Some(_), _) => {
                bail!(Advice::new(format!("--precision is for two labels, there are {labels}"), "leave it out"))
            }
            (2, None, Rule::F1) => Self::threshold(data, logits, (positive, temperature), Goal::F1),
            _ => None,
        };
        let choose = |row: &[f32]| match threshold {
            Some((positive, threshold)) => {
                let reached = probability(row, positive, temperature) >= threshold.value;
                if reached { positive } else { 1 - positive }
            }
            None => (0..labels).reduce(|best, label| if row[label] > row[best] { label } else { best }).unwrap_or(0),
        };
        let chosen: Vec<u32> = logits.chunks_exact(labels).map(|row| u32::try_from(choose(row)).unwrap_or(0)).collect();
        let confusion = Confusion::count(labels, data.classes.iter().copied().zip(chosen.iter().copied()));
        Ok(Self { temperature, threshold, chosen, confusion })
    }

    fn threshold(data: &Data, logits: &[f32], of: (usize, f32), goal: Goal) -> Option<(usize, Threshold)> {
        let (positive, temperature) = of;
        let scores: Vec<f32> = logits.chunks_exact(2).map(|row| probability(row, positive, temperature)).collect();
        let truth: Vec<bool> = data.classes.iter().map(|class| *class as usize == positive).collect();
        Some((positive, train::threshold(&scores, &truth, goal)?))
    }

    /// One for each label; none where the more probable label is chosen.
    fn thresholds(&self) -> Vec<f32> {
        self.threshold.map_or_else(Vec::new, |(positive, Threshold { value, .. })| {
            if positive == 0 { vec![value, 1.0 - value] } else { vec![1.0 - value, value] }
        })
    }
}

/// Probability of one of two labels.
fn probability(row: &[f32], label: usize, temperature: f32) -> f32 {
    1.0 / (1.0 + ((row[1 - label] - row[label]) / temperature).exp())
}

/// The name, if it may be taken.
fn free_name(args: &Args, store: &Store) -> anyhow::Result<ModelName> {
    let name = ModelName::try_from(args.name.clone()).map_err(|why| Advice::new(why, "choose another --name"))?;
    if Manifest::builtin().iter().any(|manifest| manifest.name == name) {
        bail!(Advice::new(format!("{name} is a built-in model"), "choose another --name"));
    }
    if !args.force && store.is_known(&name)? {
        let help = "choose another --name, or replace the model with --force";
        bail!(Advice::new(format!("there is a model {name} already"), help));
    }
    Ok(name)
}

/// Which of two labels thresholds are about.
fn positive_label(args: &Args, data: &Data) -> anyhow::Result<usize> {
    let Some(wanted) = &args.positive else {
        let rarest = (0..data.labels.len()).rev().min_by_key(|label| data.counts[*label]);
        return Ok(rarest.unwrap_or(0));
    };
    let found = data.labels.iter().position(|label| label == wanted);
    let known = || Advice::new(format!("no row has the label {wanted:?}"), format!("there are {}", data.label_list()));
    found.ok_or_else(|| known().into())
}

/// The embedding model, pulled if it is not here.
fn base(args: &Args, store: &Store) -> anyhow::Result<ModelFiles> {
    let manifest = store.manifest(&args.model)?;
    if manifest.task != Task::Embedding {
        let what = format!("{} is for {}, and a head is trained on an embedding model", manifest.name, manifest.task);
        bail!(Advice::new(what, "`tamis models list` shows the tasks"));
    }
    if !store.is_present(&manifest) {
        crate::models::pull(store, &manifest)?;
    }
    Ok(store.open(&manifest)?)
}

fn validate(args: &Args, data: &Data, vectors: &Vectors) -> Validated {
    let examples = Examples {
        vectors: &vectors.values,
        dimensions: vectors.dimensions,
        classes: &data.classes,
        labels: data.labels.len(),
    };
    let balance = if args.balanced { Balance::Labels } else { Balance::Examples };
    let rows = u32::try_from(data.classes.len()).unwrap_or(u32::MAX);
    let l2 = args.l2.unwrap_or_else(|| 0.1 / f64::from(rows));
    let settings = Settings { l2, balance, steps_max: STEPS_MAX };
    let bar = vectors::bar(u64::from(args.folds) + 1, "training");
    let validated = train::validate(examples, &data.groups, args.folds, settings, &|| bar.inc(1));
    bar.finish_and_clear();
    validated
}

/// Writes the head and its manifest.
fn install(
    args: &Args,
    name: &ModelName,
    from: (&Data, &ModelFiles),
    head: (&Layer, &Judged),
    store: &Store,
) -> anyhow::Result<ModelFiles> {
    let ((data, base), (layer, judged)) = (from, head);
    let bytes = layer.safetensors()?;
    let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    let (file, revision) = ("head.safetensors", base.manifest.revision());
    let written = Written {
        name: name.as_str(),
        task: Task::Classification,
        licence: &args.licence,
        sources: [BTreeMap::from([("file", file)])],
        files: [BTreeMap::from([("name", file.to_owned()), ("sha256", digest)])],
        base: BTreeMap::from([("model", base.manifest.name.as_str()), ("revision", revision.as_str())]),
        head: WrittenHead {
            labels: &data.labels,
            activation: "softmax",
            temperature: judged.temperature,
            thresholds: judged.thresholds(),
        },
    };
    let manifest = Manifest::parse(&toml::to_string(&written)?)?;
    let accuracy = 100.0 * judged.confusion.accuracy();
    let remarks = format!(
        "Trained by `tamis train-head` on {} rows of {}: {accuracy:.1} % right in {}-fold cross-validation.",
        data.classes.len(),
        args.file.file_name().unwrap_or_default().to_string_lossy(),
        args.folds,
    );
    Ok(store.install(&manifest, &remarks, &bytes)?)
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if number.is_finite() && number > 0.0 { Ok(number) } else { Err("must be finite and above 0".to_owned()) }
}

fn share(text: &str) -> Result<f32, String> {
    let number: f32 = text.parse().map_err(|_| format!("{text:?} is no number"))?;
    if number > 0.0 && number <= 1.0 { Ok(number) } else { Err("must be above 0 and at most 1".to_owned()) }
}
