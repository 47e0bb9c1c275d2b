//! What config.json says of a ModernBERT (Warner et al., 2024) and of no other family.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Activation, Config};

/// The keys that matter, with the defaults of transformers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Modern {
    /// Every so many layers, from the first on, see the whole text.
    #[serde(default = "three")]
    global_attn_every_n_layers: usize,
    /// What each layer sees, where it is written out: "full_attention" or "sliding_attention".
    layer_types: Option<Vec<String>>,
    /// Tokens that the other layers see, half of them on each side.
    #[serde(default = "window")]
    local_attention: usize,
    #[serde(default = "global_theta")]
    global_rope_theta: f64,
    #[serde(default = "local_theta")]
    local_rope_theta: f64,
    /// Where newer files write the thetas, by the type of layer.
    rope_parameters: Option<HashMap<String, Rotation>>,
    rope_scaling: Option<Value>,
    /// The dense layers of attention have biases.
    #[serde(default)]
    pub(crate) attention_bias: bool,
    /// The feed-forward layers have biases.
    #[serde(default)]
    pub(crate) mlp_bias: bool,
    /// The normalisations have biases.
    #[serde(default)]
    pub(crate) norm_bias: bool,
    /// What stands for a text in a classifier.
    #[serde(default)]
    pub(crate) classifier_pooling: ClassifierPooling,
    /// Activation of the dense layer before a classifier's last.
    #[serde(default)]
    pub(crate) classifier_activation: Activation,
}

/// What stands for a text in a classifier.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ClassifierPooling {
    /// Its first token.
    #[default]
    Cls,
    /// The mean of its tokens.
    Mean,
}

#[derive(Clone, Debug, Deserialize)]
struct Rotation {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
}

/// Most angles in a table of rotations: 131,072 positions of heads of 256, in 64 MB.
const ANGLES_MAX: usize = 1 << 24;
const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

// === impl Modern ===

impl Modern {
    pub(super) fn parse(keys: &Map<String, Value>) -> Result<Self, String> {
        serde_json::from_value(Value::Object(keys.clone())).map_err(|error| error.to_string())
    }

    pub(super) fn check(&self, config: &Config) -> Result<(), String> {
        if self.global_attn_every_n_layers == 0 {
            return Err("global_attn_every_n_layers is 0".to_owned());
        }
        let types = self.layer_types.as_deref().unwrap_or_default();
        if let Some(kind) = types.iter().find(|kind| ![FULL, SLIDING].contains(&kind.as_str())) {
            return Err(format!("layer_types has {kind:?}; this version runs {FULL} and {SLIDING}"));
        }
        if self.layer_types.is_some() && types.len() != config.num_hidden_layers {
            return Err(format!("layer_types names {} of {} layers", types.len(), config.num_hidden_layers));
        }
        let scaled = self.rope_scaling.as_ref().is_some_and(|scaling| !scaling.is_null());
        let kinds = self.rope_parameters.iter().flat_map(HashMap::values).filter_map(|of| of.rope_type.as_deref());
        if let Some(kind) = kinds.chain(scaled.then_some("scaled")).find(|kind| *kind != "default") {
            return Err(format!("positions are rotated in the way {kind:?}: only \"default\" is run"));
        }
        let width = config.hidden_size / config.num_attention_heads;
        if !width.is_multiple_of(2) {
            return Err(format!("heads have the width {width}: positions are rotated by pairs"));
        }
        let positions = config.max_position_embeddings;
        if positions > ANGLES_MAX / (width / 2) {
            let most = ANGLES_MAX / (width / 2);
            return Err(format!("max_position_embeddings is {positions}: at most {most} for heads of {width}"));
        }
        Ok(())
    }

    /// How many tokens on each side a layer sees; none if it sees the whole text.
    pub(crate) fn window(&self, layer: usize) -> Option<usize> {
        let slides = match &self.layer_types {
            Some(types) => types.get(layer).is_some_and(|kind| kind == SLIDING),
            None => !layer.is_multiple_of(self.global_attn_every_n_layers),
        };
        slides.then_some(self.local_attention / 2)
    }

    /// The base of the angles by which positions are rotated, in the layers that see the whole text.
    pub(crate) fn global_theta(&self) -> f64 {
        self.theta(FULL).unwrap_or(self.global_rope_theta)
    }

    /// The same in the layers that see a window.
    pub(crate) fn local_theta(&self) -> f64 {
        self.theta(SLIDING).unwrap_or(self.local_rope_theta)
    }

    fn theta(&self, kind: &str) -> Option<f64> {
        self.rope_parameters.as_ref()?.get(kind)?.rope_theta
    }
}

fn three() -> usize {
    3
}

fn window() -> usize {
    128
}

fn global_theta() -> f64 {
    160_000.0
}

fn local_theta() -> f64 {
    10_000.0
}
