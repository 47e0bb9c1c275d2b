//! How the families of encoders differ. Most are one network: dense layers, attention among all tokens of a text,
//! normalisation after each block. Their checkpoints name its parts differently, and RoBERTa counts positions from
//! another number. ModernBERT is a network of its own.

use candle_nn::VarBuilder;

/// A family of checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// BERT, with two types of tokens.
    Bert,
    /// DistilBERT: half the layers, and no types.
    DistilBert,
    /// RoBERTa, XLM-RoBERTa and CamemBERT: their positions begin behind the padding token's id.
    Roberta,
    /// ModernBERT: rotated instead of added positions, windows of attention, gated feed-forward layers.
    ModernBert,
}

/// What a family calls the parts of BERT's network.
#[derive(Debug)]
pub(super) struct Names {
    pub(super) layers: &'static str,
    pub(super) query: &'static str,
    pub(super) key: &'static str,
    pub(super) value: &'static str,
    pub(super) mixed: &'static str,
    pub(super) mixed_norm: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
    pub(super) down_norm: &'static str,
}

const BERT: Names = Names {
    layers: "encoder.layer",
    query: "attention.self.query",
    key: "attention.self.key",
    value: "attention.self.value",
    mixed: "attention.output.dense",
    mixed_norm: "attention.output.LayerNorm",
    up: "intermediate.dense",
    down: "output.dense",
    down_norm: "output.LayerNorm",
};

const DISTILBERT: Names = Names {
    layers: "transformer.layer",
    query: "attention.q_lin",
    key: "attention.k_lin",
    value: "attention.v_lin",
    mixed: "attention.out_lin",
    mixed_norm: "sa_layer_norm",
    up: "ffn.lin1",
    down: "ffn.lin2",
    down_norm: "output_layer_norm",
};

impl Family {
    /// The values of `model_type` in config.json that are run.
    pub(crate) const MODEL_TYPES: [&'static str; 6] =
        ["bert", "distilbert", "roberta", "xlm-roberta", "camembert", "modernbert"];

    /// The family of a `model_type`.
    pub(crate) fn of(model_type: &str) -> Option<Self> {
        match model_type {
            "bert" => Some(Self::Bert),
            "distilbert" => Some(Self::DistilBert),
            "roberta" | "xlm-roberta" | "camembert" => Some(Self::Roberta),
            "modernbert" => Some(Self::ModernBert),
            _ => None,
        }
    }

    /// None of a family that is not BERT's network.
    pub(super) fn names(self) -> Option<&'static Names> {
        match self {
            Self::Bert | Self::Roberta => Some(&BERT),
            Self::DistilBert => Some(&DISTILBERT),
            Self::ModernBert => None,
        }
    }

    /// What the names of an encoder's tensors begin with.
    pub(super) fn parts(self) -> [&'static str; 3] {
        // Where a family's checkpoints have no such norm, there is none of the name.
        ["embeddings.", self.names().map_or("layers.", |names| names.layers), "final_norm."]
    }

    /// The part of a checkpoint that holds the encoder: all of it, or what stands below a prefix if the checkpoint has
    /// more than an encoder, as a classifier has.
    pub(crate) fn root<'a>(self, checkpoint: &VarBuilder<'a>) -> VarBuilder<'a> {
        let (prefix, first) = match self {
            Self::Bert => ("bert", "embeddings.word_embeddings.weight"),
            Self::DistilBert => ("distilbert", "embeddings.word_embeddings.weight"),
            Self::Roberta => ("roberta", "embeddings.word_embeddings.weight"),
            Self::ModernBert => ("model", "embeddings.tok_embeddings.weight"),
        };
        let below = checkpoint.pp(prefix);
        if below.contains_tensor(first) { below } else { checkpoint.clone() }
    }
}
