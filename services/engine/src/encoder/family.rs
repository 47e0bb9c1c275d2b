//! How the families of encoders differ. They are one network: dense layers, attention among all tokens of a text,
//! normalisation after each block. Their checkpoints name its parts differently, and RoBERTa counts positions from
//! another number.

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
}

/// What a family calls the parts of the network.
#[derive(Debug)]
pub(super) struct Names {
    /// What stands before every name in a checkpoint that has more than an encoder, as a classifier has.
    prefix: &'static str,
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
    prefix: "bert",
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
    prefix: "distilbert",
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

const ROBERTA: Names = Names { prefix: "roberta", ..BERT };

impl Family {
    /// The values of `model_type` in config.json that are run.
    pub(crate) const MODEL_TYPES: [&'static str; 5] = ["bert", "distilbert", "roberta", "xlm-roberta", "camembert"];

    /// The family of a `model_type`.
    pub(crate) fn of(model_type: &str) -> Option<Self> {
        match model_type {
            "bert" => Some(Self::Bert),
            "distilbert" => Some(Self::DistilBert),
            "roberta" | "xlm-roberta" | "camembert" => Some(Self::Roberta),
            _ => None,
        }
    }

    pub(super) fn names(self) -> &'static Names {
        match self {
            Self::Bert => &BERT,
            Self::DistilBert => &DISTILBERT,
            Self::Roberta => &ROBERTA,
        }
    }

    /// The part of a checkpoint that holds the encoder.
    pub(crate) fn root<'a>(self, checkpoint: &VarBuilder<'a>) -> VarBuilder<'a> {
        let below = checkpoint.pp(self.names().prefix);
        if below.contains_tensor("embeddings.word_embeddings.weight") { below } else { checkpoint.clone() }
    }
}
