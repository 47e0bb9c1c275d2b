//! A layer: four products and what lies between them.

use candle_core::Result;
use candle_nn::VarBuilder;
use kernels::{
    Activation, Copied, Cpu, Dense, Epilogue, Matrix, Norm, Precision, Reserve, Weights, activate, multiply, round,
};

use super::arena::Arena;
use crate::{
    encoder::{Config, config},
    manifest::{Site, Smoothing},
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
    roundings: Roundings,
}

/// How rows are made ready for a product that reads no f32: in int8, multiplied by these. None: there is no such product.
pub(super) struct Rounding(Option<Vec<f32>>);

/// What the normalisations of a layer make their copies for.
pub(super) struct Roundings {
    pub(super) up: Rounding,
    /// The first product of the next layer.
    pub(super) next: Rounding,
}

/// What the weights of a layer are multiplied by, input by input.
pub(super) struct Factors {
    pub(super) attention: Option<Vec<f32>>,
    pub(super) up: Option<Vec<f32>>,
}

/// A dense layer as it is in the checkpoint.
struct Read {
    /// Row by row, a row per output.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

// === impl Layer ===

impl Layer {
    /// What the weights of one layer take of a reserve.
    pub(super) fn bytes(config: &Config, cpu: Cpu, precision: Precision) -> usize {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let one = |outputs, inputs| Weights::bytes(cpu, precision, outputs, inputs);
        one(3 * hidden, hidden) + one(hidden, hidden) + one(inner, hidden) + one(hidden, inner)
    }

    pub(super) fn read(
        config: &Config,
        root: VarBuilder<'_>,
        (cpu, precision): (Cpu, Precision),
        (factors, roundings): (Factors, Roundings),
        reserve: &mut Reserve,
    ) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let names = config.family.names();
        let part = |name: &str| Read::new(root.pp(name), hidden, hidden);
        let mut qkv = part(names.query)?;
        // Scores are divided by the root of a head's width: here once, in the weights.
        let scale = 1.0 / ((hidden / config.num_attention_heads) as f32).sqrt();
        qkv.weight.iter_mut().chain(&mut qkv.bias).for_each(|x| *x *= scale);
        for below in [part(names.key)?, part(names.value)?] {
            qkv.weight.extend(below.weight);
            qkv.bias.extend(below.bias);
        }
        qkv.multiply(factors.attention.as_deref());
        let mut up = Read::new(root.pp(names.up), hidden, inner)?;
        up.multiply(factors.up.as_deref());
        let mut pack =
            |layer: &Read| Weights::pack(cpu, precision, Dense { weight: &layer.weight, bias: &layer.bias }, reserve);
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
            roundings,
        })
    }

    /// Makes queries, keys and values of the first rows.
    pub(super) fn project(&self, rows: usize, arena: &mut Arena) {
        let input = arena.copy.as_ref().unwrap_or(&arena.x);
        multiply(input, 0..rows, &self.qkv, Epilogue::Store, (&mut arena.qkv, 0));
    }

    /// Makes, of what attention has mixed, the rows of the next layer.
    pub(super) fn finish(&self, rows: usize, arena: &mut Arena) {
        let Arena { x, copy, mixed, .. } = arena;
        match copy {
            Some(copy) if copy.precision() != mixed.precision() => {
                round(self.cpu, mixed, 0..rows, (copy, 0));
                multiply(copy, 0..rows, &self.output, Epilogue::Add, (x, 0));
            }
            _ => multiply(mixed, 0..rows, &self.output, Epilogue::Add, (x, 0)),
        }
        self.output_norm.apply(self.cpu, x, 0..rows, self.roundings.up.copied(copy.as_mut()));
        for start in (0..rows).step_by(arena.inner.rows()) {
            self.feed_forward(start, arena.inner.rows().min(rows - start), arena);
        }
    }

    /// The feed-forward block of some rows, which stay in a near cache.
    fn feed_forward(&self, start: usize, rows: usize, arena: &mut Arena) {
        let Arena { x, copy, inner, inner_copy, .. } = arena;
        let input = copy.as_ref().unwrap_or(x);
        let epilogue = if self.activation.is_some() { Epilogue::Store } else { Epilogue::Gelu };
        multiply(input, start..start + rows, &self.up, epilogue, (inner, 0));
        if let Some(activation) = self.activation {
            activate(self.cpu, inner, 0..rows, activation);
        }
        match inner_copy {
            Some(bytes) => {
                round(self.cpu, inner, 0..rows, (bytes, 0));
                multiply(bytes, 0..rows, &self.down, Epilogue::Add, (x, start));
            }
            None => multiply(inner, 0..rows, &self.down, Epilogue::Add, (x, start)),
        }
        self.down_norm.apply(self.cpu, x, start..start + rows, self.roundings.next.copied(copy.as_mut()));
    }
}

// === impl Rounding ===

impl Rounding {
    /// For a product with this site's inputs, so many, whose weights are multiplied by the site's factors.
    pub(super) fn new(smoothing: Option<&Smoothing>, (layer, site): (usize, Site), inputs: usize) -> Self {
        let inverse = |smoothing: &Smoothing| smoothing.vector(layer, site).into_iter().map(f32::recip).collect();
        Self(Some(smoothing.map_or_else(|| vec![1.0; inputs], inverse)))
    }

    /// For what no product reads.
    pub(super) fn none() -> Self {
        Self(None)
    }

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
        let weight = root.get((outputs, inputs), "weight")?.flatten_all()?.to_vec1()?;
        Ok(Self { weight, bias: root.get(outputs, "bias")?.to_vec1()? })
    }

    fn multiply(&mut self, factors: Option<&[f32]>) {
        let Some(factors) = factors else { return };
        for row in self.weight.chunks_exact_mut(factors.len()) {
            row.iter_mut().zip(factors).for_each(|(weight, factor)| *weight *= factor);
        }
    }
}

/// Checkpoints that were converted from TensorFlow call the weights gamma and beta.
pub(super) fn norm(config: &Config, root: VarBuilder<'_>) -> Result<Norm> {
    let (scale, shift) = if root.contains_tensor("gamma") { ("gamma", "beta") } else { ("weight", "bias") };
    let get = |name| root.get(config.hidden_size, name)?.to_vec1();
    Ok(Norm::new(get(scale)?, get(shift)?, config.layer_norm_eps as f32))
}
