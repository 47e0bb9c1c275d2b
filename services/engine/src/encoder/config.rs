//! config.json, as checkpoints of the Hub carry it.

use std::{collections::BTreeMap, fs};

use serde::Deserialize;

use crate::{Error, manifest::ModelFiles};

/// The keys that matter. Others are let pass: the file is the publisher's, and full of training history.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    #[serde(default = "bert")]
    pub(crate) model_type: String,
    pub(crate) vocab_size: usize,
    pub(crate) hidden_size: usize,
    pub(crate) num_hidden_layers: usize,
    pub(crate) num_attention_heads: usize,
    pub(crate) intermediate_size: usize,
    #[serde(default)]
    pub(crate) hidden_act: Activation,
    pub(crate) max_position_embeddings: usize,
    #[serde(default = "two")]
    pub(crate) type_vocab_size: usize,
    #[serde(default = "epsilon")]
    pub(crate) layer_norm_eps: f64,
    #[serde(default = "absolute")]
    position_embedding_type: String,
    #[serde(default)]
    id2label: BTreeMap<String, String>,
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
        let config: Self = serde_json::from_slice(&bytes).map_err(|error| Error::load(path.display(), error))?;
        config.check(files).map_err(|why| Error::load(path.display(), why))?;
        Ok(config)
    }

    fn check(&self, files: &ModelFiles) -> Result<(), String> {
        let Self { hidden_size, num_attention_heads, max_position_embeddings, .. } = *self;
        if num_attention_heads == 0 || hidden_size == 0 || !hidden_size.is_multiple_of(num_attention_heads) {
            return Err(format!("hidden_size {hidden_size} is not shared evenly by {num_attention_heads} heads"));
        }
        if self.position_embedding_type != "absolute" {
            return Err(format!(
                "position_embedding_type {:?}: only \"absolute\" is run",
                self.position_embedding_type
            ));
        }
        let tokens = files.manifest.text.as_ref().map_or(0, |text| text.max_tokens);
        if tokens as usize > max_position_embeddings {
            return Err(format!(
                "the manifest's text.max_tokens is {tokens}, the checkpoint has {max_position_embeddings}"
            ));
        }
        Ok(())
    }

    /// The labels of a classifier, in the order of their ids; empty if the file does not name 0 to n - 1.
    pub(crate) fn labels(&self) -> Vec<String> {
        let label = |id: usize| self.id2label.get(&id.to_string()).cloned();
        (0..self.id2label.len()).map(label).collect::<Option<Vec<_>>>().unwrap_or_default()
    }
}

fn bert() -> String {
    "bert".to_owned()
}

fn absolute() -> String {
    "absolute".to_owned()
}

fn two() -> usize {
    2
}

fn epsilon() -> f64 {
    1e-12
}
