//! What a model is: its task, its files, where they come from, and the recipe around its weights.
//!
//! ```
//! let manifest = engine::Manifest::parse(
//!     r#"
//!     name = "my-minilm"
//!     task = "embedding"
//!     licence = "Apache-2.0"
//!
//!     [[sources]]
//!     hub = "sentence-transformers/all-MiniLM-L6-v2"
//!     revision = "main"
//!
//!     [[files]]
//!     name = "config.json"
//!     sha256 = "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"
//!     [[files]]
//!     name = "tokenizer.json"
//!     sha256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
//!     [[files]]
//!     name = "model.safetensors"
//!     sha256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
//!
//!     [text]
//!     pooling = "mean"
//!     max_tokens = 256
//!     "#,
//! )?;
//! assert_eq!(manifest.name.as_str(), "my-minilm");
//! # Ok::<(), engine::Error>(())
//! ```

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, PrecisionChoice, Revision, compute::written, convert};

mod check;
mod quantization;
mod source;

pub use quantization::{Exponents, Measured, Quantization, Site, Smoothing};
pub use source::{FileSource, HubSource, PipSource, Source};

/// A model in a file of TOML. Unknown keys are refused.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// How callers name the model.
    pub name: ModelName,
    /// What it does, and so which service loads it and which recipes it needs.
    pub task: Task,
    /// SPDX identifier of the licence of the weights, for people; 1 to 128 bytes.
    pub licence: String,
    /// Number format in which it is computed: "auto", "f32", "bf16", or "int8", which needs `quantization`. Images are not
    /// computed in int8, and a head is computed as its base is, so that it names none. Default: "auto", what the service's
    /// `compute.precision` says.
    #[serde(default, with = "written", skip_serializing_if = "PrecisionChoice::is_auto")]
    pub precision: PrecisionChoice,
    /// Where the files come from: tried in order, and every one is checked against the same digests. At least one.
    pub sources: Vec<Source>,
    /// The files: `model.safetensors` for every task, `config.json` and `tokenizer.json` too for texts; only
    /// `head.safetensors` where there is a base.
    pub files: Vec<FileSpec>,
    /// The embedding model whose vectors the head reads. Only for the task classification; default: none, the model has
    /// an encoder of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<BaseRecipe>,
    /// How texts become vectors. Required for all tasks but vision, which refuses it; refused also where there is a base,
    /// whose own recipe holds.
    pub text: Option<TextRecipe>,
    /// How images become tensors. Required for the task vision, refused for the others.
    pub image: Option<ImageRecipe>,
    /// How the last layer's numbers become labels. Required for classification and vision, refused for embedding and
    /// rerank.
    pub head: Option<HeadRecipe>,
    /// How the encoder was prepared for int8. Required with that precision, refused without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization: Option<Quantization>,
}

/// Name of a model: 1 to 128 bytes of lower-case letters, digits, `.`, `_` and `-`, a letter or digit first. It is a
/// folder's name too, so it can not name another folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelName(String);

/// What a model does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Texts to vectors.
    Embedding,
    /// Texts to labels.
    Classification,
    /// Images to labels and vectors.
    Vision,
    /// Queries and documents to scores: a cross-encoder with one logit, which reads both together.
    Rerank,
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Its name on this machine: a plain file name.
    pub name: String,
    /// Its path below the source's folder. Default: its name.
    pub path: Option<String>,
    /// Digest of the bytes as published.
    pub sha256: Sha256Digest,
    /// What is done with the published bytes before they are stored under `name`. Default: nothing.
    pub convert: Option<convert::Kind>,
}

/// 64 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Digest(String);

/// The model that a head was trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseRecipe {
    /// Its name; its task is embedding.
    pub model: ModelName,
    /// The revision that it had. A head reads the vectors of no other: they would mean something else to it.
    pub revision: Revision,
}

/// How texts become vectors. Letter case, accents and special tokens are the tokenizer's own business.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextRecipe {
    /// How the vectors of the tokens become one.
    pub pooling: Pooling,
    /// Whether the vector is scaled to length 1 unless the caller says otherwise. Default: true.
    #[serde(default = "yes")]
    pub normalize: bool,
    /// Most tokens of one text, special tokens included: what the model was trained for, at most the positions that
    /// its checkpoint has.
    pub max_tokens: u32,
    /// What stands before a text, by the role of the text. Only for the task embedding. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompts: Option<Prompts>,
}

/// What a model was trained to find before a text, blanks at the end included; at most 1,024 bytes each. Default: nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prompts {
    /// Before a question.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub query: String,
    /// Before a document that is to be found.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub document: String,
    /// Before a text that is compared with its like.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub symmetric: String,
}

/// How the vectors of a text's tokens become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The first token's.
    Cls,
    /// Their mean, special tokens included.
    Mean,
    /// Their greatest value, component by component.
    Max,
    /// The first token's, through the checkpoint's dense layer `pooler` and tanh: how BERT was trained to classify.
    Pooler,
}

/// How images become tensors. All of it was fixed when the weights were trained: another mean costs 11 points of top-1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRecipe {
    /// Layers of the network.
    pub architecture: Architecture,
    /// Pixels of the shorter side after resizing; at least `crop`, at most 4,096.
    pub resize: u32,
    /// How pixels are interpolated.
    pub filter: Filter,
    /// Pixels of each side of the square that is cut from the middle; 1 to 4,096.
    pub crop: u32,
    /// Subtracted from red, green and blue (0 to 255).
    pub mean: [f32; 3],
    /// What the difference is then divided by; above 0.
    pub std: [f32; 3],
    /// Whether vectors are scaled to length 1 unless the caller says otherwise. Default: true.
    #[serde(default = "yes")]
    pub normalize: bool,
}

/// Networks for images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// EfficientNet-Lite0: 224 pixels, 1,280 features.
    EfficientnetLite0,
    /// EfficientNet-Lite1: 240 pixels, 1,280 features.
    EfficientnetLite1,
    /// EfficientNet-Lite2: 260 pixels, 1,280 features.
    EfficientnetLite2,
}

/// Ways to interpolate pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// Two taps a side.
    Bilinear,
    /// Four taps a side (Catmull-Rom).
    Bicubic,
}

/// How the last layer's numbers become labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadRecipe {
    /// Names of the labels in the order of the logits: a list, or the name of a list that is built in. Default: what
    /// `id2label` in the checkpoint's config.json says.
    pub labels: Option<Labels>,
    /// What a probability is.
    pub activation: Activation,
    /// Logits are divided by it before the activation; finite, above 0. Default: 1.
    #[serde(default = "one")]
    pub temperature: f32,
    /// Probability from which a label counts as selected, 0 to 1, one per label. Default: 0.5 for each. Under softmax
    /// the best label is the selected one, and only two labels may have thresholds, which then sum to 1.
    #[serde(default)]
    pub thresholds: Vec<f32>,
}

/// Names of labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "labels: a list of names, or \"imagenet-1k\"")]
pub enum Labels {
    /// A list that is built in.
    Builtin(LabelSet),
    /// These.
    List(Vec<String>),
}

/// Lists of labels that are built in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LabelSet {
    /// The 1,000 classes of ILSVRC 2012, in the order of their WordNet ids.
    #[serde(rename = "imagenet-1k")]
    Imagenet1k,
}

/// What a probability is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Activation {
    /// Labels exclude each other: their probabilities sum to 1.
    Softmax,
    /// Each label stands for itself.
    Sigmoid,
}

/// A model whose files are on this machine, whole and checked.
#[derive(Clone, Debug)]
pub struct ModelFiles {
    /// What the model is.
    pub manifest: Manifest,
    /// Folder that holds every file of the manifest under its name.
    pub folder: PathBuf,
    /// The files of its base, if it has one.
    pub base: Option<Box<ModelFiles>>,
}

// === impl Manifest ===

impl Manifest {
    /// Reads and checks a manifest.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let manifest: Self = toml::from_str(text).map_err(|error| Error::manifest("manifest", error))?;
        manifest.check().map_err(|why| Error::manifest(format!("manifest of {}", manifest.name), why))?;
        Ok(manifest)
    }

    /// The models that need no manifest of the user's, ordered by name.
    #[must_use]
    pub fn builtin() -> Vec<Self> {
        const TEXTS: [&str; 7] = [
            include_str!("../models/all-minilm-l6-v2.toml"),
            include_str!("../models/all-minilm-l6-v2-int8.toml"),
            include_str!("../models/efficientnet-lite0.toml"),
            include_str!("../models/efficientnet-lite2.toml"),
            include_str!("../models/prompt-injection-minilm-v5.toml"),
            include_str!("../models/prompt-injection-minilm-v5-int8.toml"),
            include_str!("../models/sentiment-minilm-v1.toml"),
        ];
        #[expect(clippy::expect_used, reason = "the texts are part of the program, and a test parses them")]
        TEXTS.iter().map(|text| Self::parse(text).expect("built-in manifests are well-formed")).collect()
    }

    /// Whether vectors are scaled to length 1 unless the caller says otherwise.
    #[must_use]
    pub fn normalize_default(&self) -> bool {
        let text = self.text.as_ref().map(|recipe| recipe.normalize);
        text.or_else(|| self.image.as_ref().map(|recipe| recipe.normalize)).unwrap_or(true)
    }
}

// === impl ModelName ===

impl ModelName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ModelName {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-');
        let first = name.chars().next().is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if first && name.len() <= 128 && name.chars().all(inside) {
            return Ok(Self(name));
        }
        Err(format!(
            "{name:?} is no name for a model: 1 to 128 lower-case letters, digits, `.`, `_` and `-`, a letter or digit first"
        ))
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Task ===

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedding => "embedding",
            Self::Classification => "classification",
            Self::Vision => "vision",
            Self::Rerank => "rerank",
        })
    }
}

// === impl FileSpec ===

impl FileSpec {
    /// The file's path in a source whose files lie in `folder`.
    #[must_use]
    pub fn path_in(&self, folder: &str) -> String {
        let path = self.path.as_ref().unwrap_or(&self.name);
        if folder.is_empty() { path.clone() } else { format!("{folder}/{path}") }
    }
}

// === impl Sha256Digest ===

impl Sha256Digest {
    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Sha256Digest {
    type Error = String;

    fn try_from(digits: String) -> Result<Self, String> {
        if digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Ok(Self(digits));
        }
        Err(format!("{digits:?} is no sha256 digest: 64 lower-case hexadecimal digits"))
    }
}

impl From<Sha256Digest> for String {
    fn from(digest: Sha256Digest) -> Self {
        digest.0
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Labels ===

impl Labels {
    /// The names.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        match self {
            Self::List(names) => names.clone(),
            Self::Builtin(LabelSet::Imagenet1k) => {
                include_str!("../models/imagenet-1k.txt").lines().map(str::to_owned).collect()
            }
        }
    }
}

// === impl ModelFiles ===

impl ModelFiles {
    /// Where a file of the model lies.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn yes() -> bool {
    true
}

fn one() -> f32 {
    1.0
}
