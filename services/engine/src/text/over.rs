//! A head over another model's vectors.

use std::sync::Arc;

use super::{TextModel, last::Linear, normalize};
use crate::{Error, head::Head, manifest::ModelFiles, weights::Weights};

/// A linear layer that reads the vectors of an embedding model as that model makes them.
pub(super) struct Over {
    /// The embedding model.
    pub(super) base: Arc<TextModel>,
    layer: Linear,
    pub(super) head: Head,
}

impl Over {
    /// Reads head.safetensors. The bytes that it takes are the second value.
    pub(super) fn load(files: &ModelFiles, base: TextModel) -> Result<(Self, u64), Error> {
        let manifest = &files.manifest;
        let refuse = |why: String| Error::load(format!("model {}", manifest.name), why);
        let Some(recipe) = &manifest.head else { return Err(refuse("it has no head".to_owned())) };
        let head = Head::new(recipe, Vec::new())?;
        let weights = Weights::map(&files.path("head.safetensors"))?;
        let dimensions = base.info.dimensions as usize;
        let layer = Linear::read(&weights.builder, dimensions, head.labels.len())
            .map_err(|error| refuse(format!("its head does not fit {}: {error}", base.info.name)))?;
        Ok((Self { base: Arc::new(base), layer, head }, weights.bytes()))
    }

    /// Logits from a vector.
    pub(super) fn forward(&self, mut vector: Vec<f32>) -> Vec<f32> {
        if self.base.info.normalize_default {
            normalize(&mut vector);
        }
        self.layer.forward(&vector)
    }
}
