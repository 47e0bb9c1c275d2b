//! What a transformer does row by row, on one core.
//!
//! candle's own operations are not used for the same reason as its product: from 65,536 values on they are shared with a
//! pool of threads that spin, one caller at a time, so that workers wait for each other.

use candle_core::{CpuStorage, CustomOp2, InplaceOp1, Layout, Result, Shape, Tensor, bail};

/// Adds two tensors [rows, width] and gives every row mean 0 and variance 1, then a scale and a shift per column
/// (Ba et al., 2016).
pub(crate) struct AddNorm {
    scale: Vec<f32>,
    shift: Vec<f32>,
    epsilon: f32,
}

/// Maps every value of a tensor, in place.
pub(crate) struct Each(pub(crate) fn(f32) -> f32);

/// Makes every row of the last dimension positive and its sum 1, in place.
pub(crate) struct Softmax;

/// x times the normal distribution's area below x (Hendrycks and Gimpel, 2016).
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + candle_core::cpu::erf::erf_f32(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// The same by a hyperbolic tangent, which some checkpoints were trained with.
pub(crate) fn gelu_tanh(x: f32) -> f32 {
    const ROOT_2_OVER_PI: f32 = 0.797_884_6;
    0.5 * x * (1.0 + (ROOT_2_OVER_PI * (x + 0.044_715 * x * x * x)).tanh())
}

/// The positive part.
pub(crate) fn relu(x: f32) -> f32 {
    x.max(0.0)
}

// === impl AddNorm ===

impl AddNorm {
    pub(crate) fn new(scale: &Tensor, shift: &Tensor, epsilon: f64) -> Result<Self> {
        Ok(Self { scale: scale.to_vec1()?, shift: shift.to_vec1()?, epsilon: epsilon as f32 })
    }

    pub(crate) fn forward(&self, left: &Tensor, right: &Tensor) -> Result<Tensor> {
        left.apply_op2_no_bwd(right, self)
    }

    fn row(&self, out: &mut [f32]) {
        let count = out.len() as f32;
        let mean = out.iter().sum::<f32>() / count;
        // The squares of the differences, and not the difference of the squares, which rounds away small variances.
        out.iter_mut().for_each(|x| *x -= mean);
        let variance = out.iter().map(|x| x * x).sum::<f32>() / count;
        let inverse = (variance + self.epsilon).sqrt().recip();
        for ((x, scale), shift) in out.iter_mut().zip(&self.scale).zip(&self.shift) {
            *x = *x * inverse * scale + shift;
        }
    }
}

impl CustomOp2 for AddNorm {
    fn name(&self) -> &'static str {
        "add and normalise"
    }

    fn cpu_fwd(
        &self,
        left: &CpuStorage,
        left_layout: &Layout,
        right: &CpuStorage,
        right_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (left, right) = (values(left, left_layout)?, values(right, right_layout)?);
        let width = self.scale.len();
        if left_layout.dims().last() != Some(&width) || left_layout.dims() != right_layout.dims() {
            bail!("{left_layout:?} + {right_layout:?} are no rows of {width}");
        }
        let mut out: Vec<f32> = left.iter().zip(right).map(|(left, right)| left + right).collect();
        out.chunks_exact_mut(width).for_each(|row| self.row(row));
        Ok((CpuStorage::F32(out), left_layout.shape().clone()))
    }
}

// === impl Each ===

impl InplaceOp1 for Each {
    fn name(&self) -> &'static str {
        "each"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        values_mut(storage, layout)?.iter_mut().for_each(|x| *x = self.0(*x));
        Ok(())
    }
}

// === impl Softmax ===

impl InplaceOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let Some(&width) = layout.dims().last() else { bail!("a number has no rows") };
        for row in values_mut(storage, layout)?.chunks_exact_mut(width.max(1)) {
            let greatest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|x| *x = (*x - greatest).exp());
            let inverse = row.iter().sum::<f32>().recip();
            row.iter_mut().for_each(|x| *x *= inverse);
        }
        Ok(())
    }
}

fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("{layout:?} is not contiguous") };
    Ok(&storage.as_slice::<f32>()?[start..end])
}

fn values_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> Result<&'a mut [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else { bail!("{layout:?} is not contiguous") };
    match storage {
        CpuStorage::F32(values) => Ok(&mut values[start..end]),
        _ => bail!("not f32"),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{D, Device};

    use super::*;

    fn random(shape: &[usize]) -> Tensor {
        Tensor::randn(0.0_f32, 2.0, shape, &Device::Cpu).unwrap()
    }

    /// candle's own operations are the reference; the rounding of f32 sums stays below 1e-5.
    #[track_caller]
    fn assert_near(ours: &Tensor, theirs: &Tensor) {
        let difference = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference < 1e-5, "{difference}");
    }

    #[test]
    fn rows_are_added_and_normalised() {
        let (left, right, scale, shift) = (random(&[7, 24]), random(&[7, 24]), random(&[24]), random(&[24]));
        let ours = AddNorm::new(&scale, &shift, 1e-12).unwrap().forward(&left, &right).unwrap();
        assert_near(
            &ours,
            &candle_nn::ops::layer_norm_slow(&(&left + &right).unwrap(), &scale, &shift, 1e-12).unwrap(),
        );
        assert!(AddNorm::new(&scale, &shift, 1e-12).unwrap().forward(&left, &random(&[6, 24])).is_err());
    }

    #[test]
    fn rows_sum_to_one_and_large_numbers_do_not_overflow() {
        let rows = (random(&[3, 5, 9]) * 1e3).unwrap();
        let theirs = candle_nn::ops::softmax(&rows, D::Minus1).unwrap();
        rows.inplace_op1(&Softmax).unwrap();
        assert_near(&rows, &theirs);
    }

    #[test]
    fn activations_are_candles() {
        let check = |ours: fn(f32) -> f32, theirs: fn(&Tensor) -> Result<Tensor>| {
            let x = random(&[100]);
            let theirs = theirs(&x).unwrap();
            x.inplace_op1(&Each(ours)).unwrap();
            assert_near(&x, &theirs);
        };
        check(gelu, Tensor::gelu_erf);
        check(gelu_tanh, Tensor::gelu);
        check(relu, Tensor::relu);
    }
}
