//! Weights from a safetensors file, memory-mapped.

use std::path::Path;

use candle_core::{DType, Device, safetensors::MmapedSafetensors};
use candle_nn::VarBuilder;

use crate::Error;

/// The tensors of one file.
pub(crate) struct Weights {
    /// Reads tensors by name, as f32 whatever the file holds.
    pub(crate) builder: VarBuilder<'static>,
    /// Bytes of all tensors as f32.
    pub(crate) bytes: u64,
}

impl Weights {
    /// Maps a file into memory: pages are read when a tensor is, and not kept. Loading copies a tensor into memory of its
    /// own, as candle does, so that replicas on one machine share the page cache but not the parameters.
    pub(crate) fn map(path: &Path) -> Result<Self, Error> {
        #[expect(unsafe_code, reason = "a file is mapped instead of copied")]
        // SAFETY: the bytes of a map must not change while it lives. The store never writes into a file that it has
        // published: it writes a new one and renames it, which leaves a mapped inode as it was.
        let tensors = unsafe { MmapedSafetensors::new(path) }.map_err(|error| Error::load(path.display(), error))?;
        let elements = |shape: &[usize]| shape.iter().map(|side| *side as u64).product::<u64>();
        let bytes = tensors.tensors().iter().map(|(_, tensor)| 4 * elements(tensor.shape())).sum();
        Ok(Self { builder: VarBuilder::from_backend(Box::new(tensors), DType::F32, Device::Cpu), bytes })
    }
}
