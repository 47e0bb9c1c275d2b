//! BERT (Devlin et al., 2018), and the families that are BERT under other names.
//!
//! candle-transformers has a `BertModel`, but none for the families in one, and none that can be given up between layers.

use candle_core::{Result, Tensor};
use candle_nn::{Embedding, LayerNorm, Linear, Module as _, VarBuilder, embedding, layer_norm, linear};

use super::{Activation, Config, Network, Texts, attention::Parts};
use crate::encoder::family::{Family, Names};

/// An encoder with absolute positions and the normalisation after each block.
pub(super) struct Bert {
    words: Embedding,
    /// From the first token's on, [tokens, hidden].
    positions: Tensor,
    /// None in a family that has no types of tokens.
    types: Option<Embedding>,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

struct Layer {
    query: Linear,
    key: Linear,
    value: Linear,
    heads: usize,
    mixed: Linear,
    mixed_norm: LayerNorm,
    up: Linear,
    activation: Activation,
    down: Linear,
    down_norm: LayerNorm,
}

// === impl Bert ===

impl Bert {
    pub(super) fn read(config: &Config, names: &Names, root: &VarBuilder<'_>) -> Result<Self> {
        let hidden = config.hidden_size;
        let embeddings = root.pp("embeddings");
        let table = |name: &str, rows| embedding(rows, hidden, embeddings.pp(name));
        let types = match config.family {
            Family::DistilBert => None,
            _ => Some(table("token_type_embeddings", config.type_vocab_size)?),
        };
        let positions = table("position_embeddings", config.max_position_embeddings)?;
        let layers = root.pp(names.layers);
        let layer = |index: usize| Layer::read(config, names, &layers.pp(index));
        Ok(Self {
            words: table("word_embeddings", config.vocab_size)?,
            positions: positions.embeddings().narrow(0, config.first_position(), config.positions())?,
            types,
            norm: layer_norm(hidden, config.layer_norm_eps, embeddings.pp("LayerNorm"))?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
        })
    }

    fn embed(&self, texts: &Texts) -> Result<Tensor> {
        let words = self.words.forward(&texts.ids)?;
        let mut rows = words.broadcast_add(&self.positions.narrow(0, 0, texts.ids.dim(1)?)?)?;
        if let Some(types) = &self.types {
            // With one type only, the texts of a pair are told apart by the special tokens between them.
            let last = types.embeddings().dim(0)? as u32 - 1;
            rows = (rows + types.forward(&texts.types.minimum(last)?)?)?;
        }
        self.norm.forward(&rows)
    }
}

impl Network for Bert {
    fn dimensions(&self) -> usize {
        self.words.hidden_size()
    }

    fn forward(&self, texts: &Texts, wanted: &dyn Fn() -> bool) -> Result<Option<Tensor>> {
        let mut rows = self.embed(texts)?;
        for layer in &self.layers {
            if !wanted() {
                return Ok(None);
            }
            rows = layer.forward(&rows, texts)?;
        }
        Ok(Some(rows))
    }
}

// === impl Layer ===

impl Layer {
    fn read(config: &Config, names: &Names, root: &VarBuilder<'_>) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let square = |name: &str| linear(hidden, hidden, root.pp(name));
        let norm = |name: &str| layer_norm(hidden, config.layer_norm_eps, root.pp(name));
        Ok(Self {
            query: square(names.query)?,
            key: square(names.key)?,
            value: square(names.value)?,
            heads: config.num_attention_heads,
            mixed: square(names.mixed)?,
            mixed_norm: norm(names.mixed_norm)?,
            up: linear(hidden, inner, root.pp(names.up))?,
            activation: config.hidden_act,
            down: linear(inner, hidden, root.pp(names.down))?,
            down_norm: norm(names.down_norm)?,
        })
    }

    fn forward(&self, rows: &Tensor, texts: &Texts) -> Result<Tensor> {
        let mixed = self.attention(rows)?.mix(texts.padding.as_ref(), None)?;
        let rows = self.mixed_norm.forward(&(self.mixed.forward(&mixed)? + rows)?)?;
        let inner = self.activation.apply(&self.up.forward(&rows)?)?;
        self.down_norm.forward(&(self.down.forward(&inner)? + rows)?)
    }

    fn attention(&self, rows: &Tensor) -> Result<Parts> {
        let (texts, tokens, hidden) = rows.dims3()?;
        let width = hidden / self.heads;
        let by_head = |part: &Linear| part.forward(rows)?.reshape((texts, tokens, self.heads, width))?.transpose(1, 2);
        Ok(Parts { queries: by_head(&self.query)?, keys: by_head(&self.key)?, values: by_head(&self.value)? })
    }
}
