//! The vectors of the words.

use candle_core::Result;
use candle_nn::VarBuilder;

use crate::{
    encoder::Config,
    weights::{MappedF32, Weights},
};

/// Rows of f32. The table of words is half of a small model, of which a text reads some dozen rows: it stays in the file,
/// whose pages all processes of a machine share.
pub(super) enum Table {
    Mapped(MappedF32),
    /// Where the file has another format.
    Owned(Vec<f32>),
}

// === impl Table ===

impl Table {
    /// The words of a checkpoint.
    pub(super) fn read(weights: &Weights, embeddings: &VarBuilder<'_>, config: &Config) -> Result<Self> {
        let words = embeddings.pp("word_embeddings");
        let (rows, width) = (config.vocab_size, config.hidden_size);
        if let Some(table) = weights.mapped(&format!("{}.weight", words.prefix()), &[rows, width]) {
            return Ok(Self::Mapped(table));
        }
        Ok(Self::Owned(words.get((rows, width), "weight")?.flatten_all()?.to_vec1()?))
    }

    pub(super) fn row(&self, row: usize, width: usize) -> &[f32] {
        let values = match self {
            Self::Mapped(table) => table.values(),
            Self::Owned(values) => values,
        };
        &values[row * width..][..width]
    }
}
