//! Weights from a safetensors file, memory-mapped.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use candle_core::{DType, Device, safetensors::MmapedSafetensors};
use candle_nn::VarBuilder;
use safetensors::Dtype;
use yoke::Yoke;

use crate::Error;

/// The tensors of one file.
pub(crate) struct Weights {
    /// Reads tensors by name, as f32 whatever the file holds.
    pub(crate) builder: VarBuilder<'static>,
    /// Numbers of each tensor, by its name.
    numbers: Arc<[(String, u64)]>,
    path: PathBuf,
    /// Of the file, so that it is known again.
    stamp: (u64, SystemTime),
}

/// The values of one tensor where they stand in the file, through a map of its own: of that map only pages are in memory
/// that were read of this tensor, whatever else of the file was read through others.
pub(crate) struct MappedF32(Yoke<&'static [f32], Box<MmapedSafetensors>>);

// === impl Weights ===

impl Weights {
    /// Maps a file into memory, for as long as this lives: pages are read when a tensor is. The builder copies a tensor
    /// into memory of its own, so that replicas on one machine share the page cache but not the parameters; what
    /// [`Weights::mapped`] gives is shared.
    pub(crate) fn map(path: &Path) -> Result<Self, Error> {
        let stamp = stamp(path).map_err(Error::io(path))?;
        let map = map(path).map_err(|error| Error::load(path.display(), error))?;
        let elements = |shape: &[usize]| shape.iter().map(|side| *side as u64).product::<u64>();
        let numbers = map.tensors().into_iter().map(|(name, tensor)| (name, elements(tensor.shape()))).collect();
        let builder = VarBuilder::from_backend(Box::new(map), DType::F32, Device::Cpu);
        Ok(Self { builder, numbers, path: path.to_owned(), stamp })
    }

    /// The same tensors, which the builder reads to this device.
    pub(crate) fn on(&self, device: &Device) -> Self {
        let builder = self.builder.clone().set_device(device.clone());
        Self { builder, numbers: Arc::clone(&self.numbers), path: self.path.clone(), stamp: self.stamp }
    }

    /// Bytes of all tensors as f32.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes_below(&[""])
    }

    /// The same of those whose names begin with one of these prefixes.
    pub(crate) fn bytes_below(&self, prefixes: &[&str]) -> u64 {
        let is_below = |name: &str| prefixes.iter().any(|prefix| name.starts_with(prefix));
        let below = self.numbers.iter().filter(|(name, _)| is_below(name));
        below.map(|(_, numbers)| numbers * size_of::<f32>() as u64).sum()
    }

    /// The values of a tensor without a copy. None if there is no tensor of this name and shape, or if it can not be read
    /// in place: it is not of f32, or stands in the file where no f32 may, or the file has been replaced since, or is a link
    /// to one that its owner may write into. The builder reads it then, or says what is wrong.
    pub(crate) fn mapped(&self, name: &str, shape: &[usize]) -> Option<MappedF32> {
        if !fs::symlink_metadata(&self.path).ok()?.is_file() {
            return None;
        }
        let map = Box::new(map(&self.path).ok()?);
        if stamp(&self.path).ok()? != self.stamp {
            return None;
        }
        let yoke = Yoke::try_attach_to_cart(map, |map| {
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

fn map(path: &Path) -> candle_core::Result<MmapedSafetensors> {
    #[expect(unsafe_code, reason = "a file is mapped instead of copied")]
    // SAFETY: the bytes of a map must not change while it lives. The store never writes into a file that it has
    // published: it writes a new one and renames it, which leaves a mapped inode as it was. A file of somebody else, to
    // which a model may have a link, is only mapped while its model is loaded (see [`Weights::mapped`]); whoever writes
    // into it just then may end the process, as with every program that maps checkpoints.
    unsafe {
        MmapedSafetensors::new(path)
    }
}

/// Length and time of the last change.
fn stamp(path: &Path) -> io::Result<(u64, SystemTime)> {
    let metadata = fs::metadata(path)?;
    Ok((metadata.len(), metadata.modified()?))
}

#[cfg(test)]
mod tests {
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
        assert_eq!((weights.bytes(), weights.bytes_below(&["s", "t"]), weights.bytes_below(&["tt"])), (12, 12, 0));
        drop(weights);
        assert_eq!(first.values(), [1.0, -2.0, 0.5]);
    }

    #[test]
    fn a_file_that_took_the_place_of_the_one_that_was_mapped_is_not_mixed_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), "F32", 128);
        let weights = Weights::map(&path).unwrap();
        fs::rename(write(folder.path(), "F32", 132), &path).unwrap();
        assert!(weights.mapped("t", &[1, 3]).is_none());
        assert!(weights.builder.get((1, 3), "t").is_ok());
    }

    /// Bytes of a file that are in memory through maps of this process.
    #[cfg(target_os = "linux")]
    fn resident(path: &Path) -> usize {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.ends_with(path.to_str().unwrap()));
        let mut sum = 0;
        while let Some(size) = lines.find_map(|line| line.strip_prefix("Rss:")) {
            sum += size.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10;
            lines.by_ref().find(|line| line.ends_with(path.to_str().unwrap()));
        }
        sum
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_the_builder_has_read_does_not_stay_in_memory_beside_a_mapped_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("large.safetensors");
        let tensor = || candle_core::Tensor::ones((1 << 10, 1 << 10), DType::F32, &Device::Cpu).unwrap();
        let tensors = std::collections::HashMap::from([("layer", tensor()), ("table", tensor())]);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let weights = Weights::map(&path).unwrap();
        let layer = weights.builder.get((1 << 10, 1 << 10), "layer").unwrap();
        let table = weights.mapped("table", &[1 << 10, 1 << 10]).unwrap();
        assert_eq!(table.values()[7], 1.0);
        assert!(resident(&path) >= 4 << 20, "it was read through a map");
        drop(weights);
        assert!(resident(&path) <= 1 << 20, "{}", resident(&path));
        drop(layer);
    }

    #[test]
    fn what_can_not_be_read_in_place_is_left_to_the_builder() {
        let folder = tempfile::tempdir().unwrap();
        let map = |dtype: &str, offset| Weights::map(&write(folder.path(), dtype, offset)).unwrap();
        let aligned = map("F32", 128);
        assert!(aligned.mapped("u", &[1, 3]).is_none() && aligned.mapped("t", &[3]).is_none());
        assert!(map("BF16", 128).mapped("t", &[1, 6]).is_none());
        // Its owner may write into what is behind a link.
        let link = folder.path().join("link.safetensors");
        std::os::unix::fs::symlink(folder.path().join("F32-128.safetensors"), &link).unwrap();
        let linked = Weights::map(&link).unwrap();
        assert!(linked.mapped("t", &[1, 3]).is_none() && linked.builder.get((1, 3), "t").is_ok());
        for offset in [129, 130, 131] {
            let weights = map("F32", offset);
            assert!(weights.mapped("t", &[1, 3]).is_none(), "{offset}");
            let read: Vec<Vec<f32>> = weights.builder.get((1, 3), "t").unwrap().to_vec2().unwrap();
            assert_eq!(read, [[1.0, -2.0, 0.5]]);
        }
        assert!(map("F32", 132).mapped("t", &[1, 3]).is_some());
    }
}
