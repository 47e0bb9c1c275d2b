//! Encoders in candle's own operations: the reference that the fast paths are tested against, and what runs a network or
//! a device that has none.
//!
//! On a CPU every text is computed by itself, so that it needs no padding and no mask, and what is beside it can not
//! matter. candle spreads larger operations over a pool of threads that all callers share, whatever the number of
//! workers; that costs where workers own the cores, which is why this is not the hot path there. On a GPU, where one text
//! leaves most of the device idle, texts are computed together, the shorter ones padded and masked.

use candle_core::{DType, Device, Result, Tensor};
use candle_nn::VarBuilder;

use self::{bert::Bert, modernbert::ModernBert};
use super::{
    Config, Encoder, Packed, Reader,
    config::{Activation, Modern},
};
use crate::{Error, ItemError, Reason, weights::Weights};

mod attention;
mod bert;
mod modernbert;

/// A network with the device that it is on.
pub(super) struct Stock {
    network: Box<dyn Network>,
    device: Device,
    company: Company,
    bytes: u64,
}

/// Whether texts are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Company {
    Alone,
    Padded,
}

/// The layers of a family.
trait Network: Send + Sync {
    /// Components of a vector.
    fn dimensions(&self) -> usize;

    /// The vectors of all tokens, [texts, tokens, dimensions], or nothing once nobody wants them any more, which is
    /// asked between layers.
    fn forward(&self, texts: &Texts, wanted: &dyn Fn() -> bool) -> Result<Option<Tensor>>;
}

/// Texts side by side, as long as the longest of them.
struct Texts {
    /// [texts, tokens]
    ids: Tensor,
    /// Which text of a pair each token belongs to, [texts, tokens].
    types: Tensor,
    /// What is added to the scores that tokens give each other, [texts, 1, 1, tokens]. None: there is no padding.
    padding: Option<Tensor>,
}

// === impl Stock ===

impl Stock {
    pub(super) fn load(config: &Config, weights: &Weights) -> std::result::Result<Self, Error> {
        let company = if weights.builder.device().is_cpu() { Company::Alone } else { Company::Padded };
        let root = config.family.root(&weights.builder);
        let parts = config.family.parts().map(|part| root.pp(part).prefix());
        let bytes = weights.bytes_below(&parts.each_ref().map(String::as_str));
        Self::read(config, &weights.builder, company)
            .map(|stock| Self { bytes, ..stock })
            .map_err(|error| Error::load("model.safetensors", error))
    }

    fn read(config: &Config, checkpoint: &VarBuilder<'_>, company: Company) -> Result<Self> {
        let root = config.family.root(checkpoint);
        let network: Box<dyn Network> = match (config.family.names(), &config.modern) {
            (Some(names), _) => Box::new(Bert::read(config, names, &root)?),
            (None, Some(modern)) => Box::new(ModernBert::read(config, modern, &root)?),
            (None, None) => candle_core::bail!("the family {:?} has no network", config.family),
        };
        Ok(Self { network, device: checkpoint.device().clone(), company, bytes: 0 })
    }

    /// Writes the vectors of all texts; false once nobody wants them any more.
    fn run(&self, batch: Packed<'_>, wanted: &dyn Fn() -> bool, out: &mut [f32]) -> Result<bool> {
        let width = self.network.dimensions();
        let texts: Vec<_> = batch.texts().collect();
        for group in groups(&texts, self.company) {
            let longest = group.iter().map(|(_, length)| *length).max().unwrap_or_default();
            let Some(rows) = self.network.forward(&self.texts(batch, &group, longest)?, wanted)? else {
                return Ok(false);
            };
            let rows: Vec<f32> = rows.flatten_all()?.to_vec1()?;
            for (rows, (start, length)) in rows.chunks_exact(longest * width).zip(group) {
                out[start * width..(start + length) * width].copy_from_slice(&rows[..length * width]);
            }
        }
        Ok(true)
    }

    fn texts(&self, batch: Packed<'_>, group: &[(usize, usize)], longest: usize) -> Result<Texts> {
        let shape = (group.len(), longest);
        // A text is padded with its own first token: what is not finite in another's must not reach it even times zero.
        let padded = |values: &[u32]| -> Result<Tensor> {
            let row = |&(start, length): &(usize, usize)| {
                let padding = std::iter::repeat_n(values[start], longest - length);
                values[start..start + length].iter().copied().chain(padding)
            };
            Tensor::from_vec(group.iter().flat_map(row).collect(), shape, &self.device)
        };
        let mask = |&(_, length): &(usize, usize)| {
            (0..longest).map(move |token| if token < length { 0.0 } else { attention::UNSEEN })
        };
        let is_padded = group.iter().any(|(_, length)| *length < longest);
        let padding = is_padded.then(|| {
            let mask: Vec<f32> = group.iter().flat_map(mask).collect();
            Tensor::from_vec(mask, (group.len(), 1, 1, longest), &self.device)
        });
        Ok(Texts {
            ids: padded(batch.ids)?,
            types: batch.types.map_or_else(|| Tensor::zeros(shape, DType::U32, &self.device), padded)?,
            padding: padding.transpose()?,
        })
    }
}

impl Encoder for Stock {
    fn dimensions(&self) -> usize {
        self.network.dimensions()
    }

    fn parameter_bytes(&self) -> u64 {
        self.bytes
    }

    fn encode(
        &self,
        batch: Packed<'_>,
        wanted: &dyn Fn() -> bool,
        read: &mut Reader<'_>,
    ) -> std::result::Result<(), ItemError> {
        let width = self.dimensions();
        let mut out = vec![0.0; batch.ids.len() * width];
        match self.run(batch, wanted, &mut out) {
            Ok(true) => {
                for (start, length) in batch.texts() {
                    let rows: Vec<&[f32]> = out[start * width..(start + length) * width].chunks_exact(width).collect();
                    read(&rows);
                }
                Ok(())
            }
            Ok(false) => Err(ItemError::new(Reason::Abandoned, "given up before it was computed")),
            Err(error) => {
                tracing::error!(%error, texts = batch.ends.len(), tokens = batch.ids.len(), "encoder failed");
                Err(ItemError::new(Reason::Engine, "the encoder failed").shared())
            }
        }
    }
}

/// Divides texts, given by start and length, into those that are computed together. Among texts of like length at most
/// half of what is computed is padding: one long text among many short ones would make all of them long.
fn groups(texts: &[(usize, usize)], company: Company) -> Vec<Vec<(usize, usize)>> {
    if company == Company::Alone {
        return texts.iter().map(|text| vec![*text]).collect();
    }
    let mut rising = texts.to_vec();
    rising.sort_unstable_by_key(|(_, length)| *length);
    let mut groups: Vec<Vec<(usize, usize)>> = Vec::new();
    let mut tokens = 0;
    for text in rising {
        match groups.last_mut() {
            Some(group) if (group.len() + 1) * text.1 <= 2 * (tokens + text.1) => group.push(text),
            _ => {
                groups.push(vec![text]);
                tokens = 0;
            }
        }
        tokens += text.1;
    }
    groups
}

// === impl Activation ===

impl Activation {
    fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => x.gelu_erf(),
            Self::GeluTanh => x.gelu(),
            Self::Relu => x.relu(),
        }
    }
}

#[cfg(test)]
mod tests;
