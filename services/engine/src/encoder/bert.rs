//! BERT (Devlin et al., 2018) in candle's operations, and the families that are BERT under other names.
//!
//! candle-transformers has a `BertModel`, but it wants every text padded to the longest of its batch and a mask for the
//! padding. Here the rows of all texts stand one below the other, so that the dense layers see one matrix without
//! padding, and only attention goes text by text. It also spreads every step over all cores, which workers own one by
//! one (see `product` and `rows`).

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use super::{Config, Encoder, Family, Packed, config::Activation, observe::Observe};
use crate::{
    Error, ItemError, Reason,
    manifest::Site,
    product::{dense, matmul},
    rows::{AddNorm, Each, Softmax, gelu, gelu_tanh, relu},
    weights::Weights,
};

/// An encoder with absolute positions and the normalisation after each block.
pub(super) struct Bert {
    words: Tensor,
    /// Positions with the first token type added, below them the same with the second: a pair of texts has both.
    positions: Tensor,
    /// Positions of one type.
    positions_max: u32,
    /// Token types of which the checkpoint has a vector: 1 or 2.
    types: u32,
    norm: AddNorm,
    layers: Vec<Layer>,
    heads: usize,
    bytes: u64,
}

struct Layer {
    /// Query, key and value side by side, so that one product makes them.
    qkv: Dense,
    output: Dense,
    output_norm: AddNorm,
    up: Dense,
    activation: Each,
    down: Dense,
    down_norm: AddNorm,
}

struct Dense {
    /// [in, out]
    weight: Tensor,
    bias: Tensor,
}

// === impl Bert ===

impl Bert {
    pub(super) fn load(config: &Config, weights: &Weights) -> std::result::Result<Self, Error> {
        Self::read(config, config.family.root(&weights.builder), weights.bytes)
            .map_err(|error| Error::load("model.safetensors", error))
    }

    fn read(config: &Config, root: VarBuilder<'_>, bytes: u64) -> Result<Self> {
        let hidden = config.hidden_size;
        let embeddings = root.pp("embeddings");
        let table = |name: &str, rows| embeddings.pp(name).get((rows, hidden), "weight");
        let types = match config.family {
            Family::DistilBert => Tensor::zeros((1, hidden), DType::F32, &Device::Cpu)?,
            Family::Bert | Family::Roberta => table("token_type_embeddings", config.type_vocab_size)?,
        };
        let positions = table("position_embeddings", config.max_position_embeddings)?;
        let positions = positions.narrow(0, config.first_position(), config.positions())?;
        let kinds = types.dim(0)?.min(2);
        let typed = (0..kinds).map(|kind| positions.broadcast_add(&types.get(kind)?)).collect::<Result<Vec<_>>>()?;
        let layers = root.pp(config.family.names().layers);
        let layer = |index: usize| Layer::read(config, layers.pp(index));
        Ok(Self {
            words: table("word_embeddings", config.vocab_size)?,
            positions: Tensor::cat(&typed, 0)?,
            positions_max: config.positions() as u32,
            types: kinds as u32,
            norm: norm(config, embeddings.pp("LayerNorm"))?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            heads: config.num_attention_heads,
            bytes,
        })
    }

    /// The vectors of all tokens, or nothing when nobody wants them any more.
    fn forward(&self, batch: Packed<'_>, wanted: &dyn Fn() -> bool) -> Result<Option<Tensor>> {
        let mut rows = self.embed(batch)?;
        for layer in &self.layers {
            if !wanted() {
                return Ok(None);
            }
            rows = layer.forward(&rows, batch, self.heads)?;
        }
        Ok(Some(rows))
    }

    /// The same, for who wants to see what goes into the products.
    pub(super) fn observe(&self, batch: Packed<'_>, seen: &mut dyn Observe) -> Result<()> {
        let mut rows = self.embed(batch)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let mut see = |site, rows: &Tensor| -> Result<()> {
                rows.to_vec2()?.iter().for_each(|row| seen.observe(index, site, row));
                Ok(())
            };
            see(Site::Attention, &rows)?;
            let mixed = layer.mix(&rows, batch, self.heads)?;
            see(Site::FeedForward, &mixed)?;
            rows = layer.feed_forward(&mixed)?;
        }
        Ok(())
    }

    /// What goes into the first layer.
    fn embed(&self, batch: Packed<'_>) -> Result<Tensor> {
        let mut positions: Vec<u32> = batch.texts().flat_map(|(_, length)| 0..length as u32).collect();
        if let Some(types) = batch.types {
            // A family without types tells the texts of a pair apart by the special tokens between them.
            let row =
                |(position, kind): (&mut u32, &u32)| *position += self.positions_max * kind.min(&(self.types - 1));
            positions.iter_mut().zip(types).for_each(row);
        }
        let words = self.words.index_select(&Tensor::new(batch.ids, &Device::Cpu)?, 0)?;
        let positions = self.positions.index_select(&Tensor::new(positions, &Device::Cpu)?, 0)?;
        self.norm.forward(&words, &positions)
    }
}

impl Encoder for Bert {
    fn dimensions(&self) -> usize {
        self.words.dims()[1]
    }

    fn parameter_bytes(&self) -> u64 {
        self.bytes
    }

    fn encode(
        &self,
        batch: Packed<'_>,
        wanted: &dyn Fn() -> bool,
        out: &mut [f32],
    ) -> std::result::Result<(), ItemError> {
        let rows =
            self.forward(batch, wanted).and_then(|rows| rows.map(|rows| rows.flatten_all()?.to_vec1()).transpose());
        match rows {
            Ok(Some(rows)) => {
                out.copy_from_slice(&rows);
                Ok(())
            }
            Ok(None) => Err(ItemError::new(Reason::Abandoned, "given up before it was computed")),
            Err(error) => {
                tracing::error!(%error, texts = batch.ends.len(), tokens = batch.ids.len(), "encoder failed");
                Err(ItemError::new(Reason::Engine, "the encoder failed"))
            }
        }
    }
}

// === impl Layer ===

impl Layer {
    fn read(config: &Config, root: VarBuilder<'_>) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let names = config.family.names();
        let part = |name: &str| Dense::read(root.pp(name), hidden, hidden);
        // Scores are divided by the root of a head's width: here once, in the weights.
        let scale = 1.0 / ((hidden / config.num_attention_heads) as f64).sqrt();
        let query = part(names.query)?;
        let query = Dense { weight: (query.weight * scale)?, bias: (query.bias * scale)? };
        let activation = match config.hidden_act {
            Activation::Gelu => gelu,
            Activation::GeluTanh => gelu_tanh,
            Activation::Relu => relu,
        };
        Ok(Self {
            qkv: Dense::beside(&[query, part(names.key)?, part(names.value)?])?,
            output: part(names.mixed)?,
            output_norm: norm(config, root.pp(names.mixed_norm))?,
            up: Dense::read(root.pp(names.up), hidden, inner)?,
            activation: Each(activation),
            down: Dense::read(root.pp(names.down), inner, hidden)?,
            down_norm: norm(config, root.pp(names.down_norm))?,
        })
    }

    fn forward(&self, rows: &Tensor, batch: Packed<'_>, heads: usize) -> Result<Tensor> {
        self.feed_forward(&self.mix(rows, batch, heads)?)
    }

    fn mix(&self, rows: &Tensor, batch: Packed<'_>, heads: usize) -> Result<Tensor> {
        let attended = self.output.forward(&self.attend(rows, batch, heads)?)?;
        self.output_norm.forward(&attended, rows)
    }

    fn feed_forward(&self, rows: &Tensor) -> Result<Tensor> {
        let inner = self.up.forward(rows)?;
        inner.inplace_op1(&self.activation)?;
        self.down_norm.forward(&self.down.forward(&inner)?, rows)
    }

    fn attend(&self, rows: &Tensor, batch: Packed<'_>, heads: usize) -> Result<Tensor> {
        let (tokens, hidden) = rows.dims2()?;
        let qkv = self.qkv.forward(rows)?.reshape((tokens, 3, heads, hidden / heads))?;
        let one = |(start, length): (usize, usize)| {
            let text = qkv.narrow(0, start, length)?;
            // [heads, tokens, width]: a view, whose strides the product takes as they are.
            let part = |index: usize| text.narrow(1, index, 1)?.squeeze(1)?.transpose(0, 1);
            let scores = matmul(&part(0)?, &part(1)?.t()?)?;
            scores.inplace_op1(&Softmax)?;
            let mixed = matmul(&scores, &part(2)?)?;
            mixed.transpose(0, 1)?.reshape((length, hidden))
        };
        let texts = batch.texts().map(one).collect::<Result<Vec<_>>>()?;
        if let [only] = texts.as_slice() { Ok(only.clone()) } else { Tensor::cat(&texts, 0) }
    }
}

// === impl Dense ===

impl Dense {
    fn read(root: VarBuilder<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        let weight = root.get((outputs, inputs), "weight")?.t()?;
        Ok(Self { weight, bias: root.get(outputs, "bias")? })
    }

    /// One layer with the outputs of all.
    fn beside(layers: &[Self]) -> Result<Self> {
        let weights: Vec<_> = layers.iter().map(|layer| layer.weight.t()).collect::<Result<_>>()?;
        let biases: Vec<_> = layers.iter().map(|layer| &layer.bias).collect();
        Ok(Self { weight: Tensor::cat(&weights, 0)?.t()?, bias: Tensor::cat(&biases, 0)? })
    }

    fn forward(&self, rows: &Tensor) -> Result<Tensor> {
        dense(rows, &self.weight, &self.bias)
    }
}

/// Checkpoints that were converted from TensorFlow call the weights gamma and beta.
fn norm(config: &Config, root: VarBuilder<'_>) -> Result<AddNorm> {
    let (weight, bias) = if root.contains_tensor("gamma") { ("gamma", "beta") } else { ("weight", "bias") };
    let get = |name| root.get(config.hidden_size, name);
    AddNorm::new(&get(weight)?, &get(bias)?, config.layer_norm_eps)
}
