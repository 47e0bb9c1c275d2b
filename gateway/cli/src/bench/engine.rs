//! `tamis bench engine`: the engine of this program and its rivals, side by side on this machine.
//!
//! No mesh and no wire: models run in this process, the rivals in Python beside it, one contestant at a time. All are
//! given the same token ids, and take turns, so that whatever the machine does meanwhile, it does to all of them.

mod callers;
mod contest;
mod corpus;
mod field;
mod own;
mod peak;
mod report;
mod rival;
mod rounds;
mod scaling;
mod service;
mod setup;
mod tables;
mod work;

use std::{fmt, path::PathBuf};

use clap::ValueEnum;
use engine::{Precision, Tier};

use crate::{home::Home, output::say};

/// Flags of `tamis bench engine`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Rivals to measure in the same run, separated by commas. They are set up with pip in a virtual environment in the
    /// data directory (about 700 MB, once), and given the weights that this program uses.
    #[arg(long, value_name = "LIBRARIES", value_enum, value_delimiter = ',')]
    against: Vec<Library>,
    /// Embedding model to measure; its int8 form is the model of the same name with -int8 behind it.
    #[arg(long, value_name = "NAME", default_value = "all-minilm-l6-v2")]
    model: String,
    /// Threads of each contestant.
    #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: u16,
    /// Turns of each contestant in each row; the median counts. Turns in which the processor's own speed was not steady
    /// are repeated, three times as many at most.
    #[arg(long, value_name = "NUMBER", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Measure only this; separated by commas.
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',')]
    only: Vec<Group>,
    /// Measure only in these number formats [default: f32,bf16,int8].
    #[arg(long, value_name = "FORMATS", value_delimiter = ',')]
    precision: Vec<Precision>,
    /// Set of CPU instructions to use [default: the best that the CPU has].
    #[arg(long, value_name = "TIER")]
    tier: Option<Tier>,
    /// Whether OpenVINO compiles a network anew for each shape. That makes it a little faster, but is no way to serve
    /// texts of all lengths. The report says which.
    #[arg(long, value_enum, default_value_t = Shapes::Any)]
    shapes: Shapes,
    /// A file of texts, one a line: the first 128 for the rows of mixed texts, the first 300 to calibrate the rivals'
    /// int8, the first 4096 for --only service [default: 1,024 texts of VADER's data, or, without rivals, the built-in
    /// ones; for --only service those of `tamis bench load`].
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// A photo [default: a JPEG of 640 x 480 pixels that scikit-learn ships, if there are rivals].
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    /// Python to make the virtual environment with [default: that of the environment that is there, or python3].
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Print the results as JSON.
    #[arg(long)]
    json: bool,
}

/// Rows that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Group {
    /// One text of 16, 64 and 256 tokens.
    Single,
    /// 8 and 32 texts of 16, 64 and 256 tokens.
    Batch,
    /// Real texts of mixed lengths, one a call and 32 a call.
    Mixed,
    /// Single texts on one worker and on two.
    Scaling,
    /// What a service could answer at best: texts/s and latency of 64 callers on two workers, with the texts that
    /// `tamis bench load --closed 64` sends.
    Service,
    /// EfficientNet-Lite0: the network alone, and from the bytes of a JPEG to labels.
    Image,
}

/// For which lengths of texts a network is compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shapes {
    /// Once for all, as one serves them.
    Any,
    /// For those of each row.
    Fixed,
}

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Library {
    /// This program.
    #[value(skip)]
    Tamis,
    /// ONNX Runtime, by Microsoft.
    Onnxruntime,
    /// OpenVINO, by Intel.
    Openvino,
}

/// Who computes, and in which number format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Engine {
    pub(crate) library: Library,
    pub(crate) precision: Precision,
}

impl Library {
    /// As pip names it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Tamis => "tamis",
            Self::Onnxruntime => "onnxruntime",
            Self::Openvino => "openvino",
        }
    }

    /// Number formats that it computes in.
    pub(crate) fn precisions(self) -> &'static [Precision] {
        match self {
            Self::Tamis | Self::Openvino => &Precision::ALL,
            Self::Onnxruntime => &[Precision::F32, Precision::Int8],
        }
    }
}

impl Engine {
    /// Whether its times stand beside those that this program reaches in `precision`: those of the same format do.
    /// ONNX Runtime has no bf16, and its f32 is what one would use in its place.
    pub(crate) fn rivals(self, precision: Precision) -> bool {
        let instead = self.library == Library::Onnxruntime && self.precision == Precision::F32;
        self.library != Library::Tamis && (self.precision == precision || instead && precision == Precision::Bf16)
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.library.as_str(), self.precision)
    }
}

impl Args {
    /// Whether this group is wanted.
    fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }

    /// Whether any row of texts is wanted.
    fn wants_texts(&self) -> bool {
        [Group::Single, Group::Batch, Group::Mixed, Group::Scaling, Group::Service]
            .into_iter()
            .any(|group| self.wants(group))
    }

    /// The number formats that are wanted, the most exact first.
    fn precisions(&self) -> Vec<Precision> {
        let wanted = |precision: &Precision| self.precision.is_empty() || self.precision.contains(precision);
        Precision::ALL.into_iter().filter(wanted).collect()
    }

    /// The rivals, each once.
    fn rivals(&self) -> Vec<Library> {
        let mut rivals = self.against.clone();
        rivals.sort_unstable();
        rivals.dedup();
        rivals
    }
}

/// Measures, and prints the tables.
pub(crate) fn run(args: &Args, home: &Home) -> anyhow::Result<()> {
    let report = contest::hold(args, home)?;
    if args.json {
        say(serde_json::to_string_pretty(&report.json())?)?;
    } else {
        say(report.text())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[&str]) -> Args {
        Line::try_parse_from([&["engine"], words].concat()).unwrap().args
    }

    #[test]
    fn everything_is_measured_unless_something_is_named() {
        let all = parse(&[]);
        assert!(all.wants(Group::Image) && all.wants_texts() && all.rivals().is_empty());
        assert_eq!(all.precisions(), Precision::ALL);
        let some = parse(&["--only", "image", "--precision", "int8,f32", "--against", "openvino,onnxruntime,openvino"]);
        assert!(some.wants(Group::Image) && !some.wants_texts());
        assert_eq!(some.precisions(), [Precision::F32, Precision::Int8]);
        assert_eq!(some.rivals(), [Library::Onnxruntime, Library::Openvino]);
    }

    #[test]
    fn nobody_names_this_program_as_its_own_rival() {
        assert!(Line::try_parse_from(["engine", "--against", "tamis"]).is_err());
    }

    #[test]
    fn rivals_stand_beside_the_format_that_one_would_use_instead() {
        let engine = |library, precision| Engine { library, precision };
        let f32 = engine(Library::Onnxruntime, Precision::F32);
        assert!(f32.rivals(Precision::F32) && f32.rivals(Precision::Bf16) && !f32.rivals(Precision::Int8));
        assert!(!engine(Library::Openvino, Precision::F32).rivals(Precision::Bf16));
        assert!(!engine(Library::Tamis, Precision::F32).rivals(Precision::F32));
    }
}
