//! ModernBERT (Warner et al., 2024).
//!
//! candle-transformers has a `ModernBert` too. This one can be given up between layers, reads checkpoints of an encoder
//! alone, says what a checkpoint lacks, and does not need memory with the square of a long text's length.

use candle_core::{D, Device, Result, Tensor};
use candle_nn::{
    Embedding, LayerNorm, LayerNormConfig, Linear, Module as _, VarBuilder, embedding, layer_norm, linear_b,
    rotary_emb::rope,
};

use super::{Activation, Config, Modern, Network, Texts, attention::Parts};

/// An encoder with rotated positions and the normalisation before each block.
pub(super) struct ModernBert {
    words: Embedding,
    norm: LayerNorm,
    layers: Vec<Layer>,
    /// In the layers that see the whole text, and in those that see a window.
    whole: Rotation,
    local: Rotation,
    last_norm: LayerNorm,
}

struct Layer {
    /// The first layer has none: the embeddings are normalised already.
    attention_norm: Option<LayerNorm>,
    /// Query, key and value side by side.
    qkv: Linear,
    heads: usize,
    window: Option<usize>,
    mixed: Linear,
    feed_norm: LayerNorm,
    /// What goes through the activation, and beside it what that is multiplied by.
    up: Linear,
    activation: Activation,
    down: Linear,
}

/// Turns pairs of components by angles that grow with the position (Su et al., 2021).
struct Rotation {
    /// [positions, half a head's width]
    cosines: Tensor,
    sines: Tensor,
}

// === impl ModernBert ===

impl ModernBert {
    pub(super) fn read(config: &Config, modern: &Modern, root: &VarBuilder<'_>) -> Result<Self> {
        let embeddings = root.pp("embeddings");
        let layers = root.pp("layers");
        let layer = |index: usize| Layer::read(config, modern, index, &layers.pp(index));
        Ok(Self {
            words: embedding(config.vocab_size, config.hidden_size, embeddings.pp("tok_embeddings"))?,
            norm: norm(config, modern, embeddings.pp("norm"))?,
            layers: (0..config.num_hidden_layers).map(layer).collect::<Result<_>>()?,
            whole: Rotation::new(config, modern.global_theta(), root.device())?,
            local: Rotation::new(config, modern.local_theta(), root.device())?,
            last_norm: norm(config, modern, root.pp("final_norm"))?,
        })
    }
}

impl Network for ModernBert {
    fn dimensions(&self) -> usize {
        self.words.hidden_size()
    }

    fn forward(&self, texts: &Texts, wanted: &dyn Fn() -> bool) -> Result<Option<Tensor>> {
        let mut rows = self.norm.forward(&self.words.forward(&texts.ids)?)?;
        for layer in &self.layers {
            if !wanted() {
                return Ok(None);
            }
            let rotation = if layer.window.is_some() { &self.local } else { &self.whole };
            rows = layer.forward(&rows, texts, rotation)?;
        }
        self.last_norm.forward(&rows).map(Some)
    }
}

// === impl Layer ===

impl Layer {
    fn read(config: &Config, modern: &Modern, index: usize, root: &VarBuilder<'_>) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let dense = |name: &str, inputs, outputs, bias| linear_b(inputs, outputs, bias, root.pp(name));
        Ok(Self {
            attention_norm: (index > 0).then(|| norm(config, modern, root.pp("attn_norm"))).transpose()?,
            qkv: dense("attn.Wqkv", hidden, 3 * hidden, modern.attention_bias)?,
            heads: config.num_attention_heads,
            window: modern.window(index),
            mixed: dense("attn.Wo", hidden, hidden, modern.attention_bias)?,
            feed_norm: norm(config, modern, root.pp("mlp_norm"))?,
            up: dense("mlp.Wi", hidden, 2 * inner, modern.mlp_bias)?,
            activation: config.hidden_act,
            down: dense("mlp.Wo", inner, hidden, modern.mlp_bias)?,
        })
    }

    fn forward(&self, rows: &Tensor, texts: &Texts, rotation: &Rotation) -> Result<Tensor> {
        let normed = self.attention_norm.as_ref().map_or_else(|| Ok(rows.clone()), |norm| norm.forward(rows))?;
        let mixed = self.attention(&normed, rotation)?.mix(texts.padding.as_ref(), self.window)?;
        let rows = (self.mixed.forward(&mixed)? + rows)?;
        let up = self.up.forward(&self.feed_norm.forward(&rows)?)?;
        let inner = up.dim(D::Minus1)? / 2;
        let activated = self.activation.apply(&up.narrow(D::Minus1, 0, inner)?)?;
        let gated = (activated * up.narrow(D::Minus1, inner, inner)?)?;
        self.down.forward(&gated)? + rows
    }

    fn attention(&self, rows: &Tensor, rotation: &Rotation) -> Result<Parts> {
        let (texts, tokens, hidden) = rows.dims3()?;
        let qkv = self.qkv.forward(rows)?.reshape((texts, tokens, 3, self.heads, hidden / self.heads))?;
        let by_head = |part: usize| qkv.narrow(2, part, 1)?.squeeze(2)?.transpose(1, 2)?.contiguous();
        Ok(Parts { queries: rotation.apply(&by_head(0)?)?, keys: rotation.apply(&by_head(1)?)?, values: by_head(2)? })
    }
}

// === impl Rotation ===

impl Rotation {
    fn new(config: &Config, theta: f64, device: &Device) -> Result<Self> {
        let width = config.hidden_size / config.num_attention_heads;
        let angle = |position: usize, pair: usize| position as f64 * theta.powf(-2.0 * pair as f64 / width as f64);
        let positions = config.positions();
        let table = |of: fn(f64) -> f64| {
            let row = |position| (0..width / 2).map(move |pair| of(angle(position, pair)) as f32);
            Tensor::from_vec((0..positions).flat_map(row).collect(), (positions, width / 2), device)
        };
        Ok(Self { cosines: table(f64::cos)?, sines: table(f64::sin)? })
    }

    fn apply(&self, parts: &Tensor) -> Result<Tensor> {
        rope(parts, &self.cosines, &self.sines)
    }
}

fn norm(config: &Config, modern: &Modern, root: VarBuilder<'_>) -> Result<LayerNorm> {
    let shape = LayerNormConfig { eps: config.layer_norm_eps, remove_mean: true, affine: modern.norm_bias };
    layer_norm(config.hidden_size, shape, root)
}
