//! Weights from a safetensors file, memory-mapped.

use std::{path::Path, sync::Arc};

use candle_core::{DType, Device, Result, Shape, Tensor, safetensors::MmapedSafetensors};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use safetensors::Dtype;
use yoke::Yoke;

use crate::Error;

/// The tensors of one file.
pub(crate) struct Weights {
    /// Reads tensors by name, as f32 whatever the file holds.
    pub(crate) builder: VarBuilder<'static>,
    /// Bytes of all tensors as f32.
    pub(crate) bytes: u64,
    map: Arc<MmapedSafetensors>,
}

/// The values of one tensor where they stand in the file. It keeps the file mapped.
#[derive(Clone)]
pub(crate) struct MappedF32(Yoke<&'static [f32], Arc<MmapedSafetensors>>);

/// The map as candle's builder wants it, which would have it to itself.
struct Shared(Arc<MmapedSafetensors>);

// === impl Weights ===

impl Weights {
    /// Maps a file into memory: pages are read when a tensor is, and not kept. The builder copies a tensor into memory of
    /// its own, so that replicas on one machine share the page cache but not the parameters; what [`Weights::mapped`]
    /// gives is shared.
    pub(crate) fn map(path: &Path) -> std::result::Result<Self, Error> {
        #[expect(unsafe_code, reason = "a file is mapped instead of copied")]
        // SAFETY: the bytes of a map must not change while it lives. The store never writes into a file that it has
        // published: it writes a new one and renames it, which leaves a mapped inode as it was.
        let map = unsafe { MmapedSafetensors::new(path) }.map_err(|error| Error::load(path.display(), error))?;
        let elements = |shape: &[usize]| shape.iter().map(|side| *side as u64).product::<u64>();
        let bytes = map.tensors().iter().map(|(_, tensor)| 4 * elements(tensor.shape())).sum();
        let map = Arc::new(map);
        let backend = Box::new(Shared(Arc::clone(&map)));
        Ok(Self { builder: VarBuilder::from_backend(backend, DType::F32, Device::Cpu), bytes, map })
    }

    /// The same tensors, which the builder reads to this device.
    pub(crate) fn on(&self, device: &Device) -> Self {
        let builder = self.builder.clone().set_device(device.clone());
        Self { builder, bytes: self.bytes, map: Arc::clone(&self.map) }
    }

    /// The values of a tensor without a copy. None if there is no tensor of this name and shape, or if it can not be read
    /// in place: it is not of f32, or stands in the file where no f32 may. The builder reads it then, or says what is wrong.
    pub(crate) fn mapped(&self, name: &str, shape: &[usize]) -> Option<MappedF32> {
        let yoke = Yoke::try_attach_to_cart(Arc::clone(&self.map), |map| {
            let tensor = map.get(name).ok().filter(|tensor| tensor.dtype() == Dtype::F32 && tensor.shape() == shape);
            tensor.and_then(|tensor| bytemuck::try_cast_slice(tensor.data()).ok()).ok_or(())
        });
        yoke.ok().map(MappedF32)
    }
}

// === impl MappedF32 ===

impl MappedF32 {
    /// All values, row by row.
    pub(crate) fn values(&self) -> &[f32] {
        self.0.get()
    }
}

// === impl Shared ===

impl SimpleBackend for Shared {
    fn get(&self, shape: Shape, name: &str, hint: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        SimpleBackend::get(self.0.as_ref(), shape, name, hint, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> Result<Tensor> {
        SimpleBackend::get_unchecked(self.0.as_ref(), name, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        SimpleBackend::contains_tensor(self.0.as_ref(), name)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    /// Writes a file of safetensors by hand: one tensor of three f32, whose bytes begin at this offset.
    fn write(folder: &Path, dtype: &str, offset: usize) -> PathBuf {
        let values: Vec<u8> = [1.0_f32, -2.0, 0.5].iter().flat_map(|value| value.to_le_bytes()).collect();
        let elements = if dtype == "F32" { 3 } else { 6 };
        let header = format!(r#"{{"t":{{"dtype":"{dtype}","shape":[1,{elements}],"data_offsets":[0,12]}}}}"#);
        let header = format!("{header:<width$}", width = offset - 8);
        let path = folder.join(format!("{dtype}-{offset}.safetensors"));
        let length = (header.len() as u64).to_le_bytes();
        fs::write(&path, [length.as_slice(), header.as_bytes(), &values].concat()).unwrap();
        path
    }

    #[test]
    fn a_mapped_tensor_outlives_its_weights() {
        let folder = tempfile::tempdir().unwrap();
        let weights = Weights::map(&write(folder.path(), "F32", 128)).unwrap();
        let first = weights.mapped("t", &[1, 3]).unwrap();
        let second = weights.mapped("t", &[1, 3]).unwrap();
        assert_eq!(first.values().as_ptr(), second.values().as_ptr(), "both lend the file's own bytes");
        assert_eq!(weights.bytes, 12);
        drop((weights, second));
        assert_eq!(first.clone().values(), [1.0, -2.0, 0.5]);
    }

    #[test]
    fn what_can_not_be_read_in_place_is_left_to_the_builder() {
        let folder = tempfile::tempdir().unwrap();
        let map = |dtype: &str, offset| Weights::map(&write(folder.path(), dtype, offset)).unwrap();
        let aligned = map("F32", 128);
        assert!(aligned.mapped("u", &[1, 3]).is_none() && aligned.mapped("t", &[3]).is_none());
        assert!(map("BF16", 128).mapped("t", &[1, 6]).is_none());
        for offset in [129, 130, 131] {
            let weights = map("F32", offset);
            assert!(weights.mapped("t", &[1, 3]).is_none(), "{offset}");
            let read: Vec<Vec<f32>> = weights.builder.get((1, 3), "t").unwrap().to_vec2().unwrap();
            assert_eq!(read, [[1.0, -2.0, 0.5]]);
        }
        assert!(map("F32", 132).mapped("t", &[1, 3]).is_some());
    }
}
