//! config.json, as checkpoints of the Hub carry it.

use std::{collections::BTreeMap, fs};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::Family;
use crate::{Error, manifest::ModelFiles};

mod modern;

pub(crate) use modern::{ClassifierPooling, Modern};

/// DistilBERT's own names of keys, and what the other families call them.
const DISTILBERT_KEYS: [(&str, &str); 5] = [
    ("dim", "hidden_size"),
    ("n_layers", "num_hidden_layers"),
    ("n_heads", "num_attention_heads"),
    ("hidden_dim", "intermediate_size"),
    ("activation", "hidden_act"),
];

/// The same for ModernBERT, whose files hold some keys under both names; its own count.
const MODERNBERT_KEYS: [(&str, &str); 2] = [("norm_eps", "layer_norm_eps"), ("hidden_activation", "hidden_act")];

/// The keys that matter. Others are let pass: the file is the publisher's, and full of training history.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) family: Family,
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) hidden_act: Activation,
    /// Rows of the table of positions.
    pub(crate) max_position_embeddings: usize,
    pub(crate) type_vocab_size: usize,
    pub(crate) layer_norm_eps: f64,
    /// Whether labels stand for themselves (sigmoid) instead of excluding each other (softmax).
    pub(crate) is_multi_label: bool,
    /// Only of ModernBERT.
    pub(crate) modern: Option<Modern>,
    id2label: BTreeMap<String, Value>,
    pad_token_id: usize,
}

/// The file as it is written, with the families' own keys under their common names.
#[derive(Deserialize)]
struct Written {
    vocab_size: usize,
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    #[serde(default)]
    hidden_act: Activation,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    layer_norm_eps: Option<f64>,
    position_embedding_type: Option<String>,
    problem_type: Option<String>,
    id2label: Option<BTreeMap<String, Value>>,
    pad_token_id: Option<usize>,
}

/// Activation of the feed-forward layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum Activation {
    #[default]
    #[serde(rename = "gelu", alias = "gelu_python")]
    Gelu,
    #[serde(rename = "gelu_new", alias = "gelu_pytorch_tanh", alias = "gelu_fast")]
    GeluTanh,
    #[serde(rename = "relu")]
    Relu,
}

impl Config {
    /// Reads a model's config.json.
    pub(crate) fn load(files: &ModelFiles) -> Result<Self, Error> {
        let path = files.path("config.json");
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let refuse = |why| Error::load(path.display(), why);
        let config = Self::parse(&bytes).map_err(refuse)?;
        let tokens = files.manifest.text.as_ref().map_or(0, |text| text.max_tokens);
        if tokens as usize > config.positions() {
            return Err(refuse(format!(
                "the manifest's text.max_tokens is {tokens}, the checkpoint has {}",
                config.positions()
            )));
        }
        Ok(config)
    }

    /// Reads and checks the text of a config.json.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut keys: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        // A file without the key is older than the other families.
        let model_type = keys.get("model_type").and_then(Value::as_str).unwrap_or("bert").to_owned();
        let family = Family::of(&model_type).ok_or_else(|| {
            format!(
                "config.json has the model_type {model_type:?}; this version runs {}",
                Family::MODEL_TYPES.join(", ")
            )
        })?;
        let own: &[(&str, &str)] = match family {
            Family::Bert | Family::Roberta => &[],
            Family::DistilBert => &DISTILBERT_KEYS,
            Family::ModernBert => &MODERNBERT_KEYS,
        };
        for (theirs, common) in own {
            if let Some(value) = keys.remove(*theirs) {
                keys.insert((*common).to_owned(), value);
            }
        }
        let modern = (family == Family::ModernBert).then(|| Modern::parse(&keys)).transpose()?;
        let written: Written = serde_json::from_value(Value::Object(keys)).map_err(|error| error.to_string())?;
        if let Some(kind) = written.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
            return Err(format!("position_embedding_type {kind:?}: only \"absolute\" is run"));
        }
        let config = Self::new(family, written, modern);
        config.check()?;
        Ok(config)
    }

    fn new(family: Family, written: Written, modern: Option<Modern>) -> Self {
        let epsilon = if family == Family::ModernBert { 1e-5 } else { 1e-12 };
        Self {
            family,
            vocab_size: written.vocab_size,
            hidden_size: written.hidden_size,
            num_hidden_layers: written.num_hidden_layers,
            num_attention_heads: written.num_attention_heads,
            intermediate_size: written.intermediate_size,
            hidden_act: written.hidden_act,
            max_position_embeddings: written.max_position_embeddings,
            type_vocab_size: written.type_vocab_size,
            layer_norm_eps: written.layer_norm_eps.unwrap_or(epsilon),
            is_multi_label: written.problem_type.as_deref() == Some("multi_label_classification"),
            modern,
            id2label: written.id2label.unwrap_or_default(),
            pad_token_id: written.pad_token_id.unwrap_or(if family == Family::Roberta { 1 } else { 0 }),
        }
    }

    fn check(&self) -> Result<(), String> {
        for (key, value, most) in [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden_size, 1 << 16),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 10),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 20),
            ("type_vocab_size", self.type_vocab_size, 1 << 16),
        ] {
            // Far beyond any encoder, and small enough that no product of them overflows.
            if value > most {
                return Err(format!("{key} is {value}: at most {most}"));
            }
        }
        let Self { hidden_size, num_attention_heads, max_position_embeddings, .. } = *self;
        if num_attention_heads == 0 || hidden_size == 0 || !hidden_size.is_multiple_of(num_attention_heads) {
            return Err(format!("hidden_size {hidden_size} is not shared evenly by {num_attention_heads} heads"));
        }
        if matches!(self.family, Family::Bert | Family::Roberta) && self.type_vocab_size == 0 {
            return Err("type_vocab_size is 0: a checkpoint of this family has at least one type of tokens".to_owned());
        }
        if max_position_embeddings <= self.first_position() {
            return Err(format!(
                "max_position_embeddings {max_position_embeddings}: the positions of tokens begin at {}",
                self.first_position()
            ));
        }
        self.modern.as_ref().map_or(Ok(()), |modern| modern.check(self))
    }

    /// The row of the table of positions that the first token gets.
    pub(crate) fn first_position(&self) -> usize {
        match self.family {
            Family::Bert | Family::DistilBert | Family::ModernBert => 0,
            Family::Roberta => self.pad_token_id.saturating_add(1),
        }
    }

    /// Most tokens of one text.
    pub(crate) fn positions(&self) -> usize {
        self.max_position_embeddings.saturating_sub(self.first_position())
    }

    /// The labels of a classifier, in the order of their ids; empty if the file does not name 0 to n - 1.
    pub(crate) fn labels(&self) -> Vec<String> {
        // A name that was a number stays one in JSON.
        let text = |name: &Value| name.as_str().map_or_else(|| name.to_string(), str::to_owned);
        let label = |id: usize| self.id2label.get(&id.to_string()).map(text);
        (0..self.id2label.len()).map(label).collect::<Option<Vec<_>>>().unwrap_or_default()
    }
}

fn two() -> usize {
    2
}
