//! The vectors of the words.

use candle_core::Result;
use candle_nn::VarBuilder;

use crate::{encoder::Config, weights::Weights};

/// Rows of a table.
pub(super) struct Table(Vec<f32>);

impl Table {
    pub(super) fn read(_: &Weights, embeddings: &VarBuilder<'_>, config: &Config) -> Result<Self> {
        let table = embeddings.pp("word_embeddings").get((config.vocab_size, config.hidden_size), "weight")?;
        Ok(Self(table.flatten_all()?.to_vec1()?))
    }

    pub(super) fn row(&self, row: usize, width: usize) -> &[f32] {
        &self.0[row * width..][..width]
    }
}
