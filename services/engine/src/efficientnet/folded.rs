//! Layers as checkpoints have them, with the batch norms that follow them folded into their weights.

use candle_core::{Result, bail};
use candle_nn::VarBuilder;
use kernels::Dense;

use super::BATCH_NORM_EPSILON;

/// A layer's weights, a row per output, and a bias per output.
#[derive(Debug)]
pub(super) struct Layer {
    weight: Vec<f32>,
    bias: Vec<f32>,
}

// === impl Layer ===

impl Layer {
    /// A convolution of `shape` (outputs, inputs, lines, columns) and its norm. In a row the inputs of a place of the
    /// window stand together.
    pub(super) fn convolution(
        vars: &VarBuilder<'_>,
        (layer, norm): (&str, &str),
        shape: (usize, usize, usize, usize),
    ) -> Result<Self> {
        let outputs = shape.0;
        let weight = vars.pp(layer).get(shape, "weight")?.permute((0, 2, 3, 1))?;
        let mut weight = weight.flatten_all()?.to_vec1::<f32>()?;
        let norm = vars.pp(norm);
        let get = |name| norm.get(outputs, name)?.to_vec1::<f32>();
        let (gains, means, variances) = (get("weight")?, get("running_mean")?, get("running_var")?);
        let mut bias = get("bias")?;
        for (output, row) in weight.chunks_exact_mut(weight_row(shape)).enumerate() {
            let scale = gains[output] / (variances[output] + BATCH_NORM_EPSILON).sqrt();
            bias[output] -= means[output] * scale;
            row.iter_mut().for_each(|weight| *weight *= scale);
        }
        Self { weight, bias }.checked(layer)
    }

    /// A layer without a norm.
    pub(super) fn dense(vars: &VarBuilder<'_>, (outputs, inputs): (usize, usize)) -> Result<Self> {
        let weight = vars.get((outputs, inputs), "weight")?.flatten_all()?.to_vec1()?;
        Self { weight, bias: vars.get(outputs, "bias")?.to_vec1()? }.checked(&vars.prefix())
    }

    /// Refuses what would spoil every image; a ReLU6 may even hide it.
    fn checked(self, layer: &str) -> Result<Self> {
        if !self.weight.iter().chain(&self.bias).all(|number| number.is_finite()) {
            bail!("{layer}, with its norm, has a number that is not finite");
        }
        Ok(self)
    }

    /// As it is packed.
    pub(super) fn as_dense(&self) -> Dense<'_> {
        Dense { weight: &self.weight, bias: &self.bias }
    }
}

fn weight_row((_, inputs, lines, columns): (usize, usize, usize, usize)) -> usize {
    inputs * lines * columns
}
