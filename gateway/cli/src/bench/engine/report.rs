//! What was measured, for people and for programs.

use std::{collections::BTreeMap, fmt::Write as _};

use engine::{Precision, Tier};
use serde_json::{Value, json};

use super::{
    Args, Engine, Library, Shapes,
    field::{Entrant, nearness},
    rival::Versions,
    rounds::{Measured, Pace, Score, median},
    scaling::Scaled,
    service::Service,
    tables,
    work::Work,
};
use crate::{advice::remark, bench::conditions::Conditions};

/// The layout of the JSON; it changes when a field changes its meaning or goes.
const FORMAT: u32 = 1;
/// A row whose peak is so much below that of the best row was measured on another processor, so to speak.
const BELOW_MAX: f64 = 0.05;
/// So much more than its threads is not a contestant's housekeeping any more.
const CORES_BEYOND: f64 = 0.1;
/// CPU features that kernels like these are written for, as Linux names them.
const FEATURES: [&str; 15] = [
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512dq",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
    "asimd",
];

/// A run and its conditions.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) conditions: Conditions,
    pub(crate) features: Vec<&'static str>,
    pub(crate) tier: Tier,
    pub(crate) threads: u16,
    pub(crate) rounds: u16,
    pub(crate) shapes: Shapes,
    pub(crate) model: String,
    pub(crate) precisions: Vec<Precision>,
    pub(crate) versions: Vec<(Library, Versions)>,
    /// The texts, in words.
    pub(crate) corpus: Option<String>,
    /// The photo, in words.
    pub(crate) photo: Option<String>,
    pub(crate) text_entrants: Vec<Entrant>,
    pub(crate) image_entrants: Vec<Entrant>,
    pub(crate) rows: Vec<Row>,
    pub(crate) scaling: Vec<Scaled>,
    pub(crate) service: Option<Service>,
    /// What is missing, and why.
    pub(crate) notes: Vec<String>,
}

/// A row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) work: Work,
    pub(crate) tokens: usize,
    /// Additions and multiplications.
    pub(crate) operations: Option<f64>,
    pub(crate) measured: Measured,
}

// === impl Report ===

impl Report {
    /// Nothing measured yet.
    pub(crate) fn new(conditions: Conditions, tier: Tier, args: &Args) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            conditions,
            features: features(&cpuinfo),
            tier,
            threads: args.threads,
            rounds: args.rounds,
            shapes: args.shapes,
            model: args.model.clone(),
            precisions: args.precisions(),
            versions: Vec::new(),
            corpus: None,
            photo: None,
            text_entrants: Vec::new(),
            image_entrants: Vec::new(),
            rows: Vec::new(),
            scaling: Vec::new(),
            service: None,
            notes: Vec::new(),
        }
    }

    /// Nothing was measured.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.scaling.is_empty() && self.service.is_none()
    }

    /// Notes that somebody takes no part.
    pub(crate) fn miss(&mut self, who: &str, why: &anyhow::Error) {
        self.notes.push(format!("{who} is not measured: {}", remark(why)));
    }

    /// Compares the rows with one another, once all are there.
    pub(crate) fn finish(&mut self) {
        settle(self.rows.iter_mut().map(|row| &mut row.measured.pace).collect());
        // These keep two processors busy, which may do less each than one alone.
        let scaling = self.scaling.iter_mut().map(|scaled| &mut scaled.pace);
        settle(scaling.chain(self.service.as_mut().map(|service| &mut service.pace)).collect());
        if !self.is_empty() && self.paces().all(|pace| pace.peak.f32.is_none()) {
            self.notes.push("the processor's own speed can not be measured here: no row is discarded".into());
        }
        self.notes.extend(busy(&self.rows, self.threads));
    }

    fn paces(&self) -> impl Iterator<Item = &Pace> {
        let rows = self.rows.iter().map(|row| &row.measured.pace);
        let scaling = self.scaling.iter().map(|scaled| &scaled.pace);
        rows.chain(scaling).chain(self.service.as_ref().map(|service| &service.pace))
    }

    /// For programs: the names are stable.
    pub(crate) fn json(&self) -> Value {
        let versions = self.versions.iter().map(|(library, versions)| {
            let beside = &versions.beside;
            (
                library.as_str().to_owned(),
                json!({ "version": versions.library, "python": versions.python, "beside": beside }),
            )
        });
        json!({
            "format": FORMAT,
            "conditions": self.conditions.json(),
            "cpu_features": self.features,
            "tier": self.tier.as_str(),
            "threads": self.threads,
            "rounds": self.rounds,
            "openvino_shapes": if self.shapes == Shapes::Fixed { "fixed" } else { "any" },
            "model": self.model,
            "texts": self.corpus,
            "photo": self.photo,
            "rivals": versions.collect::<serde_json::Map<_, _>>(),
            "answers": { "texts": nearness(&self.text_entrants), "images": nearness(&self.image_entrants) },
            "rows": self.rows.iter().map(|row| self.row(row)).collect::<Vec<_>>(),
            "scaling": self.scaling.iter().map(Scaled::json).collect::<Vec<_>>(),
            "service": self.service.as_ref().map(Service::json),
            "notes": self.notes,
        })
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let mut text = self.conditions.line();
        let _ = writeln!(text, "\nCPU features: {}", self.features.join(" "));
        for (library, versions) in &self.versions {
            let _ = writeln!(text, "{} {versions}", library.as_str());
        }
        if self.versions.iter().any(|(library, _)| *library == Library::Openvino) {
            let shapes = match self.shapes {
                Shapes::Any => "for texts of any length, as one serves them (--shapes fixed: for those of each row)",
                Shapes::Fixed => "anew for the shapes of each row but the mixed ones (--shapes any: once for all)",
            };
            let _ = writeln!(text, "openvino compiles {shapes}");
        }
        let count = |number: u16, what: &str| format!("{number} {what}{}", if number == 1 { "" } else { "s" });
        let (threads, rounds) = (count(self.threads, "thread"), count(self.rounds, "round"));
        let (model, tier) = (&self.model, self.tier);
        let _ = writeln!(text, "{model}, tamis with its {tier} kernels; {threads} each, in turn; medians of {rounds}");
        for facts in [&self.corpus, &self.photo].into_iter().flatten() {
            let _ = writeln!(text, "{facts}");
        }
        if let Some(line) = self.peak_line() {
            let _ = writeln!(text, "{line}");
        }
        for section in tables::sections(self) {
            let _ = writeln!(text, "\n{section}");
        }
        if self.paces().any(|pace| pace.discarded) {
            let _ =
                writeln!(text, "\n* discarded: the processor's speed moved by more than 5 %, or somebody else had it");
        }
        for note in &self.notes {
            let _ = writeln!(text, "\nnote: {note}");
        }
        text.trim_end().to_owned()
    }

    /// What the shares in the tables are of, and how steady it was.
    fn peak_line(&self) -> Option<String> {
        let peak = |precision| {
            let peaks = self.rows.iter().filter_map(|row| row.measured.pace.peak.of(precision));
            Some(format!("{precision} {:.0}", giga(median(peaks)?)))
        };
        let peaks: Vec<_> = Precision::ALL.into_iter().filter_map(peak).collect();
        let best =
            if peaks.is_empty() { String::new() } else { format!("peak of a core, GOP/s: {}\n", peaks.join(", ")) };
        let usual = giga(median(self.paces().filter_map(|pace| pace.peak.usual))?);
        let most = self.paces().filter(|pace| !pace.discarded).map(|pace| pace.moved * 100.0).fold(0.0, f64::max);
        let repeated: usize = self.paces().map(|pace| pace.repeated).sum();
        let discarded = self.paces().filter(|pace| pace.discarded).count();
        Some(format!(
            "{best}most of the time, f32: {usual:.0}, at most {most:.1} % apart in a row; {repeated} rounds repeated, \
             {discarded} rows discarded"
        ))
    }

    fn row(&self, row: &Row) -> Value {
        let measured = &row.measured;
        let ratios = self.precisions.iter().flat_map(|precision| {
            let rivals = measured.scores.iter().filter(|score| score.engine.rivals(*precision));
            rivals.filter_map(|rival| {
                let ratio = row.ratio(*precision, rival)?;
                Some(json!({ "precision": precision.as_str(), "against": rival.engine.to_string(), "ratio": ratio }))
            })
        });
        let mut json = json!({
            "what": row.work.to_string(),
            "tokens": row.tokens,
            "operations": row.operations,
            "engines": measured.scores.iter().map(|score| self.score(row, score)).collect::<Vec<_>>(),
            "ratios": ratios.collect::<Vec<_>>(),
        });
        if let (Some(row), Value::Object(pace)) = (json.as_object_mut(), measured.pace.json()) {
            row.extend(pace);
        }
        json
    }

    fn score(&self, row: &Row, score: &Score) -> Value {
        json!({
            "library": score.engine.library.as_str(),
            "precision": score.engine.precision.as_str(),
            "ms": score.median,
            "ms_min": score.least,
            "ms_max": score.most,
            "cores": score.cores,
            "tokens_per_s": row.tokens_per_second(score),
            "gops": row.operations_per_second(score).map(giga),
            "share_of_peak": row.share_of_peak(score, self.threads),
        })
    }
}

// === impl Row ===

impl Row {
    /// This program's times in a number format.
    pub(crate) fn own(&self, precision: Precision) -> Option<&Score> {
        self.measured.score(Engine { library: Library::Tamis, precision })
    }

    /// How many times as long a rival takes as this program in a number format.
    pub(crate) fn ratio(&self, precision: Precision, rival: &Score) -> Option<f64> {
        Some(rival.median / self.own(precision)?.median)
    }

    /// None for images.
    pub(crate) fn tokens_per_second(&self, score: &Score) -> Option<f64> {
        #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
        let tokens = self.tokens as f64;
        (self.tokens > 0).then(|| tokens / score.median * 1e3)
    }

    /// Additions and multiplications, padding not counted.
    pub(crate) fn operations_per_second(&self, score: &Score) -> Option<f64> {
        Some(self.operations? / score.median * 1e3)
    }

    /// The share of what so many cores could do at best in its number format.
    pub(crate) fn share_of_peak(&self, score: &Score, threads: u16) -> Option<f64> {
        let peak = self.measured.pace.peak.of(score.engine.precision)? * f64::from(threads);
        Some(self.operations_per_second(score)? / peak)
    }
}

/// Compares how the processor fared in rows that are alike: one that was slow for the whole of a row was steady too.
fn settle(paces: Vec<&mut Pace>) {
    let best = paces.iter().filter_map(|pace| pace.peak.f32).fold(0.0, f64::max);
    for pace in paces {
        pace.discarded |= pace.peak.f32.is_some_and(|speed| speed < best * (1.0 - BELOW_MAX));
    }
}

/// Who used more processors than it was given threads, and where that was worst.
fn busy(rows: &[Row], threads: u16) -> Vec<String> {
    let allowed = f64::from(threads) * (1.0 + CORES_BEYOND);
    let mut worst: BTreeMap<Engine, (f64, Work)> = BTreeMap::new();
    for (row, score) in rows.iter().flat_map(|row| row.measured.scores.iter().map(move |score| (row, score))) {
        let known = worst.get(&score.engine).map_or(allowed, |(cores, _)| *cores);
        if score.cores > known {
            worst.insert(score.engine, (score.cores, row.work));
        }
    }
    let note = |(engine, (cores, work)): (Engine, (f64, Work))| {
        let given = if threads == 1 { "1 thread".to_owned() } else { format!("{threads} threads") };
        format!("{engine} kept {cores:.1} processors busy in {work}, though given {given}")
    };
    worst.into_iter().map(note).collect()
}

fn giga(operations: f64) -> f64 {
    operations / 1e9
}

/// Those of [`FEATURES`] that the processor has.
fn features(cpuinfo: &str) -> Vec<&'static str> {
    let is_list = |line: &&str| line.starts_with("flags") || line.starts_with("Features");
    let list = cpuinfo.lines().find(is_list).and_then(|line| line.split_once(':')).map_or("", |(_, list)| list);
    FEATURES.into_iter().filter(|feature| list.split_whitespace().any(|word| word == *feature)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::bench::engine::rounds::Peak;

    pub(crate) fn engine(library: Library, precision: Precision) -> Engine {
        Engine { library, precision }
    }

    pub(crate) fn pace() -> Pace {
        let peak = Peak { f32: Some(100e9), bf16: Some(200e9), int8: None, usual: Some(99e9) };
        Pace { peak, moved: 0.01, rounds: 5, repeated: 0, discarded: false }
    }

    pub(crate) fn row(work: Work, times: &[(Engine, f64)]) -> Row {
        let score = |(engine, median): &(Engine, f64)| Score {
            engine: *engine,
            median: *median,
            least: *median,
            most: *median,
            cores: 1.0,
        };
        let measured = Measured { scores: times.iter().map(score).collect(), pace: pace() };
        Row { work, tokens: 16, operations: Some(340e6), measured }
    }

    pub(crate) fn report(rows: Vec<Row>) -> Report {
        let conditions = Conditions {
            at: SystemTime::UNIX_EPOCH,
            cpus: 2,
            cpu_model: "test CPU".into(),
            load_before: None,
            target: "this process".into(),
            arguments: Vec::new(),
        };
        Report {
            conditions,
            features: vec!["avx2"],
            tier: Tier::Portable,
            threads: 1,
            rounds: 5,
            shapes: Shapes::Any,
            model: "test-model".into(),
            precisions: Precision::ALL.to_vec(),
            versions: Vec::new(),
            corpus: None,
            photo: None,
            text_entrants: Vec::new(),
            image_entrants: Vec::new(),
            rows,
            scaling: Vec::new(),
            service: None,
            notes: Vec::new(),
        }
    }

    fn single() -> Row {
        let times = [
            (engine(Library::Tamis, Precision::F32), 4.0),
            (engine(Library::Tamis, Precision::Bf16), 2.0),
            (engine(Library::Onnxruntime, Precision::F32), 6.0),
            (engine(Library::Openvino, Precision::Bf16), 5.0),
        ];
        row(Work::Equal { texts: 1, tokens: 16 }, &times)
    }

    #[test]
    fn ratios_say_how_many_times_as_long_a_rival_takes() {
        let json = report(vec![single()]).json();
        let ratio = |precision: &str, against: &str| {
            let ratios = json["rows"][0]["ratios"].as_array().unwrap();
            let found = ratios.iter().find(|row| row["precision"] == precision && row["against"] == against);
            found.map(|row| row["ratio"].as_f64().unwrap())
        };
        assert_eq!(ratio("f32", "onnxruntime f32"), Some(1.5));
        assert_eq!(ratio("bf16", "onnxruntime f32"), Some(3.0));
        assert_eq!(ratio("bf16", "openvino bf16"), Some(2.5));
        assert_eq!(ratio("int8", "onnxruntime f32"), None);
    }

    #[test]
    fn speed_is_told_as_a_share_of_what_the_cores_can_do() {
        let row = single();
        let score = row.own(Precision::F32).unwrap();
        assert_eq!(row.operations_per_second(score), Some(85e9));
        assert_eq!(row.share_of_peak(score, 1), Some(0.85));
        assert_eq!(row.share_of_peak(score, 2), Some(0.425));
        assert_eq!(row.tokens_per_second(score), Some(4000.0));
    }

    #[test]
    fn a_row_on_a_slower_processor_than_the_others_is_discarded() {
        let mut slow = single();
        slow.measured.pace.peak.f32 = Some(72e9);
        let mut report = report(vec![single(), slow]);
        report.finish();
        let discarded: Vec<_> = report.rows.iter().map(|row| row.measured.pace.discarded).collect();
        assert_eq!(discarded, [false, true]);
        assert!(report.text().contains("1 x 16 *"), "{}", report.text());
    }

    #[test]
    fn what_judges_the_rows_stands_above_them() {
        let mut report = report(vec![single()]);
        report.rows[0].measured.scores[3].cores = 1.8;
        report.finish();
        let text = report.text();
        let parts = [
            "peak of a core, GOP/s: f32 100, bf16 200\nmost of the time, f32: 99, at most 1.0 % apart",
            "0 rounds repeated, 0 rows discarded",
            "openvino bf16 kept 1.8 processors busy in 1 x 16",
        ];
        for part in parts {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
    }

    #[test]
    fn features_are_those_that_kernels_are_written_for() {
        assert_eq!(features("model name : x\nflags\t\t: fpu avx2 sse fma avx512_bf16x\n"), ["avx2", "fma"]);
        assert!(features("").is_empty());
    }
}
