//! What the contestants compute, and how many operations that takes.

use std::{fmt, path::PathBuf};

use anyhow::{Context as _, anyhow};
use engine::{ImageInput, ModelFiles};
use serde::Deserialize;
use serde_json::Value;

use super::Group;

/// Tokens of a text in the rows of equal texts.
const LENGTHS: [usize; 3] = [16, 64, 256];
/// Texts of a call in the rows of batches.
const BATCHES: [usize; 2] = [8, 32];
/// Texts of a call in the second row of mixed texts.
const MIXED_CALL: usize = 32;
/// Texts of the rows of mixed texts: what pads them takes seconds for these.
pub(crate) const MIXED_TEXTS: usize = 128;
/// Multiplications of EfficientNet-Lite0, which are as many as its additions.
const LITE0_PRODUCTS: f64 = 385_187_552.0;

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// One call of texts that have so many tokens each.
    Equal { texts: usize, tokens: usize },
    /// Real texts, so many a call.
    Mixed { call: usize },
    /// A network for images, from normalised pixels to logits.
    Network,
    /// From the bytes of a JPEG to labels.
    Photo,
}

/// What a contestant is given.
#[derive(Clone, Debug)]
pub(crate) enum Task {
    /// Calls of texts as token ids.
    Texts(Vec<Call>),
    /// The network alone.
    Network(Picture),
    /// All that lies between a file and its labels.
    Photo(Picture),
}

/// The texts of one call.
pub(crate) type Call = Vec<Vec<u32>>;

/// Texts that come with the rivals.
#[derive(Debug, Deserialize)]
pub(crate) struct Snippets {
    pub(crate) texts: Vec<String>,
    /// What they are, for people.
    pub(crate) source: String,
}

/// A file with an image: where it is, and what this program makes of it.
#[derive(Clone, Debug)]
pub(crate) struct Picture {
    pub(crate) path: PathBuf,
    pub(crate) input: ImageInput,
}

/// The shape of an encoder of texts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    pub(crate) hidden: f64,
    pub(crate) wide: f64,
    pub(crate) layers: f64,
}

/// The rows of a group, in their order.
pub(crate) fn rows(group: Group) -> Vec<Work> {
    let equal = |texts: usize| LENGTHS.map(|tokens| Work::Equal { texts, tokens });
    match group {
        Group::Single => equal(1).to_vec(),
        Group::Batch => BATCHES.into_iter().flat_map(equal).collect(),
        Group::Mixed => vec![Work::Mixed { call: 1 }, Work::Mixed { call: MIXED_CALL }],
        Group::Image => vec![Work::Network, Work::Photo],
        Group::Scaling | Group::Service => Vec::new(),
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal { texts, tokens } => write!(f, "{texts} x {tokens}"),
            Self::Mixed { call: 1 } => f.write_str("mixed, 1 a call"),
            Self::Mixed { call } => write!(f, "mixed, {call} a call"),
            Self::Network => f.write_str("network"),
            Self::Photo => f.write_str("JPEG to labels"),
        }
    }
}

impl Task {
    /// Tokens that it has; images have none.
    pub(crate) fn tokens(&self) -> usize {
        match self {
            Self::Texts(calls) => calls.iter().flatten().map(Vec::len).sum(),
            Self::Network(_) | Self::Photo(_) => 0,
        }
    }

    /// Additions and multiplications that it takes, padding not counted; none where other work is the larger part.
    pub(crate) fn operations(&self, shape: Shape) -> Option<f64> {
        match self {
            Self::Texts(calls) => Some(calls.iter().flatten().map(|ids| shape.operations(ids.len())).sum()),
            Self::Network(_) => Some(2.0 * LITE0_PRODUCTS),
            Self::Photo(_) => None,
        }
    }
}

impl Shape {
    /// Reads it from the checkpoint's own description.
    pub(crate) fn read(files: &ModelFiles) -> anyhow::Result<Self> {
        let path = files.path("config.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&serde_json::from_str(&text)?).with_context(|| format!("{} is no encoder's", path.display()))
    }

    fn parse(config: &Value) -> anyhow::Result<Self> {
        // DistilBERT has names of its own.
        let number = |names: [&str; 2]| {
            let found = names.into_iter().find_map(|name| config.get(name)?.as_f64());
            found.ok_or_else(|| anyhow!("there is no {}", names[0]))
        };
        Ok(Self {
            hidden: number(["hidden_size", "dim"])?,
            wide: number(["intermediate_size", "hidden_dim"])?,
            layers: number(["num_hidden_layers", "n_layers"])?,
        })
    }

    /// Additions and multiplications of a text: the dense layers for each token, attention for each pair.
    fn operations(self, tokens: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a few hundred")]
        let tokens = tokens as f64;
        let dense = 4.0 * self.hidden * self.hidden + 2.0 * self.hidden * self.wide;
        let attention = 2.0 * tokens * self.hidden;
        2.0 * self.layers * tokens * (dense + attention)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const MINILM: Shape = Shape { hidden: 384.0, wide: 1536.0, layers: 6.0 };

    #[test]
    fn attention_counts_with_the_square_of_the_length() {
        let (one, two) = (MINILM.operations(100), MINILM.operations(200));
        assert!((one - (21_233_664.0 * 100.0 + 9_216.0 * 100.0 * 100.0)).abs() < 1.0, "{one}");
        assert!((two - (21_233_664.0 * 200.0 + 9_216.0 * 200.0 * 200.0)).abs() < 1.0, "{two}");
    }

    #[test]
    fn padding_is_no_work() {
        let task = Task::Texts(vec![vec![vec![1; 100], vec![1; 200]]]);
        assert_eq!(task.tokens(), 300);
        assert_eq!(task.operations(MINILM), Some(MINILM.operations(100) + MINILM.operations(200)));
    }

    #[test]
    fn a_shape_is_read_in_every_familys_words() {
        let bert = json!({ "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6 });
        let distilbert = json!({ "dim": 384, "hidden_dim": 1536, "n_layers": 6 });
        assert_eq!((Shape::parse(&bert).unwrap(), Shape::parse(&distilbert).unwrap()), (MINILM, MINILM));
        assert!(Shape::parse(&json!({ "hidden_size": 384 })).is_err());
    }

    #[test]
    fn rows_have_names_of_their_own() {
        let groups = [Group::Single, Group::Batch, Group::Mixed, Group::Image];
        let names: Vec<_> = groups.into_iter().flat_map(rows).map(|work| work.to_string()).collect();
        let mut unique = names.clone();
        unique.sort();
        unique.dedup();
        assert_eq!((unique.len(), names.len()), (13, 13));
        assert_eq!((names[0].as_str(), names[8].as_str()), ("1 x 16", "32 x 256"));
    }
}
