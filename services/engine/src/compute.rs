//! How models are computed on this machine.

use kernels::{Precision, Tier};

/// Device, code path and number format. Each model makes of it what it can, and says in [`crate::ModelInfo`] what it did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compute {
    /// Where tensors live.
    pub device: DeviceChoice,
    /// What computes on a CPU.
    pub path: PathChoice,
    /// Number format of models whose manifests name none.
    pub precision: PrecisionChoice,
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// This machine's cores.
    #[default]
    Cpu,
    /// A CUDA device, by its number. Only in a build with the feature `cuda`.
    Cuda(usize),
    /// A Metal device, by its number. Only in a build with the feature `metal`.
    Metal(usize),
}

/// What computes on a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathChoice {
    /// The kernels of the best tier that the CPU has where a model has a fast path, candle where it has none.
    #[default]
    Auto,
    /// The kernels of this tier where a model has a fast path, candle where it has none.
    Kernels(Tier),
    /// candle, always: the reference.
    Candle,
}

/// Number format of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PrecisionChoice {
    /// bf16 where the CPU multiplies it faster than f32, f32 elsewhere.
    #[default]
    Auto,
    /// This one.
    Only(Precision),
}
