//! A layer: four products and what lies between them.

use candle_core::{Result, Shape, bail};
use candle_nn::VarBuilder;
use kernels::{
    Activation, Copied, Cpu, Dense, Epilogue, Matrix, Norm, Precision, Reserve, Weights, activate, multiply, round,
};

use super::{Recipe, arena::Arena};
use crate::{
    encoder::{Config, config},
    manifest::Site,
};

pub(super) struct Layer {
    cpu: Cpu,
    /// Query, key and value side by side, so that one product makes them.
    qkv: Weights,
    output: Weights,
    output_norm: Norm,
    up: Weights,
    /// What is applied in a pass of its own; none for GELU, which the product applies.
    activation: Option<Activation>,
    down: Weights,
    down_norm: Norm,
    /// For `up`.
    rounding: Rounding,
    /// For the next layer's `qkv`.
    next_rounding: Rounding,
}

/// How rows are made ready for a product that reads no f32: in int8, multiplied by these. None: there is no such product.
pub(super) struct Rounding(pub(super) Option<Vec<f32>>);

/// A dense layer as it is in the checkpoint.
struct Read {
    /// Row by row, a row per output.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

// === impl Layer ===

impl Layer {
    /// What the weights of one layer take of a reserve.
    pub(super) fn bytes(recipe: &Recipe<'_>) -> usize {
        let (hidden, inner) = (recipe.config.hidden_size, recipe.config.intermediate_size);
        let one = |outputs, inputs| Weights::bytes(recipe.cpu, recipe.precision, outputs, inputs);
        one(3 * hidden, hidden) + one(hidden, hidden) + one(inner, hidden) + one(hidden, inner)
    }

    /// Packs one of `layers`.
    pub(super) fn read(
        recipe: &Recipe<'_>,
        (layers, index): (&VarBuilder<'_>, usize),
        reserve: &mut Reserve,
    ) -> Result<Self> {
        let &Recipe { config, names, cpu, precision, smoothing } = recipe;
        let (hidden, inner, root) = (config.hidden_size, config.intermediate_size, layers.pp(index));
        let part = |name: &str| Read::new(root.pp(name), hidden, hidden);
        let factors = |site| smoothing.map(|smoothing| smoothing.vector(index, site));
        let mut qkv = part(names.query)?;
        // Scores are divided by the root of a head's width: here once, in the weights.
        let scale = 1.0 / ((hidden / config.num_attention_heads) as f32).sqrt();
        qkv.weight.iter_mut().chain(&mut qkv.bias).for_each(|x| *x *= scale);
        for below in [part(names.key)?, part(names.value)?] {
            qkv.weight.extend(below.weight);
            qkv.bias.extend(below.bias);
        }
        qkv.multiply(factors(Site::Attention));
        let mut up = Read::new(root.pp(names.up), hidden, inner)?;
        up.multiply(factors(Site::FeedForward));
        let mut pack =
            |layer: &Read| Weights::pack(cpu, precision, Dense { weight: &layer.weight, bias: &layer.bias }, reserve);
        let is_last = index + 1 == config.num_hidden_layers;
        Ok(Self {
            cpu,
            qkv: pack(&qkv),
            output: pack(&part(names.mixed)?),
            output_norm: norm(config, root.pp(names.mixed_norm))?,
            up: pack(&up),
            activation: match config.hidden_act {
                config::Activation::Gelu => None,
                config::Activation::GeluTanh => Some(Activation::GeluTanh),
                config::Activation::Relu => Some(Activation::Relu),
            },
            down: pack(&Read::new(root.pp(names.down), inner, hidden)?),
            down_norm: norm(config, root.pp(names.down_norm))?,
            rounding: recipe.rounding(index, Site::FeedForward),
            next_rounding: if is_last { Rounding(None) } else { recipe.rounding(index + 1, Site::Attention) },
        })
    }

    /// Makes queries, keys and values of the first rows.
    pub(super) fn project(&self, rows: usize, arena: &mut Arena) {
        let input = arena.copy.as_ref().unwrap_or(&arena.x);
        multiply(input, 0..rows, &self.qkv, Epilogue::Store, (&mut arena.qkv, 0));
    }

    /// Adds what attention has mixed, and makes it ready for the feed-forward block.
    pub(super) fn add_mixed(&self, rows: usize, arena: &mut Arena) {
        let Arena { x, copy, mixed, .. } = arena;
        match copy {
            Some(copy) if copy.precision() != mixed.precision() => {
                round(self.cpu, mixed, 0..rows, (copy, 0));
                multiply(copy, 0..rows, &self.output, Epilogue::Add, (x, 0));
            }
            _ => multiply(mixed, 0..rows, &self.output, Epilogue::Add, (x, 0)),
        }
        self.output_norm.apply(self.cpu, x, 0..rows, self.rounding.copied(copy.as_mut()));
    }

    /// Makes the rows of the next layer: some at a time, whose inner rows stay in a near cache.
    pub(super) fn feed_forward(&self, rows: usize, arena: &mut Arena) {
        let Arena { x, copy, inner, inner_copy, .. } = arena;
        for start in (0..rows).step_by(inner.rows()) {
            let count = inner.rows().min(rows - start);
            let input = copy.as_ref().unwrap_or(x);
            let epilogue = if self.activation.is_some() { Epilogue::Store } else { Epilogue::Gelu };
            multiply(input, start..start + count, &self.up, epilogue, (inner, 0));
            if let Some(activation) = self.activation {
                activate(self.cpu, inner, 0..count, activation);
            }
            if let Some(bytes) = inner_copy {
                round(self.cpu, inner, 0..count, (bytes, 0));
            }
            let input = inner_copy.as_ref().unwrap_or(inner);
            multiply(input, 0..count, &self.down, Epilogue::Add, (x, start));
            self.down_norm.apply(self.cpu, x, start..start + count, self.next_rounding.copied(copy.as_mut()));
        }
    }
}

// === impl Rounding ===

impl Rounding {
    /// The copy that a norm makes into this matrix.
    pub(super) fn copied<'a>(&'a self, copy: Option<&'a mut Matrix>) -> Copied<'a> {
        match (&self.0, copy) {
            (Some(factors), Some(copy)) if copy.precision() == Precision::Int8 => Copied::Int8(copy, factors),
            (Some(_), Some(copy)) => Copied::Bf16(copy),
            _ => Copied::None,
        }
    }
}

// === impl Read ===

impl Read {
    fn new(root: VarBuilder<'_>, inputs: usize, outputs: usize) -> Result<Self> {
        Ok(Self { weight: numbers(&root, (outputs, inputs), "weight")?, bias: numbers(&root, outputs, "bias")? })
    }

    fn multiply(&mut self, factors: Option<Vec<f32>>) {
        let Some(factors) = factors else { return };
        for row in self.weight.chunks_exact_mut(factors.len()) {
            row.iter_mut().zip(&factors).for_each(|(weight, factor)| *weight *= factor);
        }
    }
}

/// Checkpoints that were converted from TensorFlow call the weights gamma and beta.
pub(super) fn norm(config: &Config, root: VarBuilder<'_>) -> Result<Norm> {
    let (scale, shift) = if root.contains_tensor("gamma") { ("gamma", "beta") } else { ("weight", "bias") };
    let get = |name| numbers(&root, config.hidden_size, name);
    Ok(Norm::new(get(scale)?, get(shift)?, config.layer_norm_eps as f32))
}

/// A tensor, row by row. One that is not finite is refused here: it would spoil every text.
pub(super) fn numbers(root: &VarBuilder<'_>, shape: impl Into<Shape>, name: &str) -> Result<Vec<f32>> {
    let numbers: Vec<f32> = root.get(shape.into(), name)?.flatten_all()?.to_vec1()?;
    match numbers.iter().find(|number| !number.is_finite()) {
        None => Ok(numbers),
        Some(number) => bail!("{}.{name} has {number} among its numbers", root.prefix()),
    }
}
