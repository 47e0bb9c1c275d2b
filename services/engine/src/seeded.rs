//! A checkpoint of made-up weights, for tests.

use candle_core::{DType, Device, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};

/// Weights that depend on nothing but their names, scaled so that activations neither vanish nor saturate.
pub(crate) struct Seeded;

// === impl Seeded ===

impl Seeded {
    pub(crate) fn builder() -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(Self), DType::F32, Device::Cpu)
    }
}

impl SimpleBackend for Seeded {
    fn get(&self, shape: Shape, name: &str, _: Init, _: DType, device: &Device) -> Result<Tensor> {
        let inputs = shape.elem_count() / shape.dims()[0];
        let (middle, spread) = match name.rsplit('.').next() {
            Some("running_var") => (1.0, 0.5),
            Some("weight") if shape.rank() == 1 => (1.0, 0.5),
            Some("weight") => (0.0, 1.5 / (inputs as f32).sqrt()),
            _ => (0.1, 0.3),
        };
        let mut state =
            name.bytes().fold(2_166_136_261_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(16_777_619));
        let next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            middle + spread * ((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        Tensor::from_vec(std::iter::repeat_with(next).take(shape.elem_count()).collect(), shape, device)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        candle_core::bail!("{name} without a shape")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        true
    }
}
