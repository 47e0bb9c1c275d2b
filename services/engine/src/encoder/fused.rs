//! The BERT family on a CPU, in the kernels of crate `kernels`.
//!
//! The rows of all texts of a chunk stand one below the other, without padding or mask. A layer is four products whose
//! epilogues do all that lies between them; the first makes queries, keys and values in one. Weights are packed when the
//! model is loaded, and what is computed lives in an arena that is used again for the next chunk. One thread computes a
//! chunk: other cores have chunks of their own.
//!
//! A row's bits depend on the texts beside it in nothing: see `kernels`.

use std::sync::{Mutex, PoisonError};

use candle_nn::VarBuilder;
use kernels::{Cpu, Heads, Norm, Precision, Reserve, attend};

use self::{
    arena::Arena,
    layer::{Layer, Rounding},
    table::Table,
};
use super::{Config, Encoder, Family, Packed};
use crate::{
    Error, ItemError, Reason,
    manifest::{Site, Smoothing},
    weights::Weights,
};

mod arena;
mod layer;
mod table;

/// What heads must be a multiple of to be mixed by the kernels.
const HEAD_STEP: usize = 32;

/// An encoder with absolute positions and the normalisation after each block.
pub(super) struct Fused {
    cpu: Cpu,
    precision: Precision,
    words: Table,
    /// Positions with the first token type added, below them the same with the second: a pair of texts has both.
    positions: Vec<f32>,
    /// Positions of one type.
    positions_max: usize,
    /// Token types of which the checkpoint has a vector: 1 or 2.
    types: usize,
    norm: Norm,
    rounding: Rounding,
    layers: Vec<Layer>,
    heads: Heads,
    inner: usize,
    bytes: u64,
    /// As many as chunks have been computed at once.
    arenas: Mutex<Vec<Arena>>,
}

/// Whether there are kernels for the shape of this checkpoint.
pub(super) fn fits(config: &Config) -> bool {
    let head = config.hidden_size / config.num_attention_heads;
    let whole = |width: usize| width > 0 && width.is_multiple_of(HEAD_STEP) && width <= 1 << 16;
    whole(head) && whole(config.hidden_size) && whole(config.intermediate_size)
}

// === impl Fused ===

impl Fused {
    /// Packs the weights of a checkpoint that [`fits`]. `smoothing` goes with int8.
    pub(super) fn load(
        config: &Config,
        weights: &Weights,
        (cpu, precision): (Cpu, Precision),
        smoothing: Option<&Smoothing>,
    ) -> Result<Self, Error> {
        Self::read(config, weights, (cpu, precision), smoothing)
            .map_err(|error| Error::load("model.safetensors", error))
    }

    fn read(
        config: &Config,
        weights: &Weights,
        (cpu, precision): (Cpu, Precision),
        smoothing: Option<&Smoothing>,
    ) -> candle_core::Result<Self> {
        let root = config.family.root(&weights.builder);
        let embeddings = root.pp("embeddings");
        let (positions, types) = positions(config, &embeddings)?;
        let bytes = config.num_hidden_layers * Layer::bytes(config, cpu, precision);
        let mut reserve = Reserve::new(bytes);
        let names = root.pp(config.family.names().layers);
        let layers = (0..config.num_hidden_layers).map(|index| {
            let rounding = |layer, site| Rounding::new(smoothing, (layer, site), config.hidden_size);
            let last = index + 1 == config.num_hidden_layers;
            let rounding = layer::Roundings {
                up: rounding(index, Site::FeedForward),
                next: if last { Rounding::none() } else { rounding(index + 1, Site::Attention) },
            };
            let factors = |site| smoothing.map(|smoothing| smoothing.vector(index, site));
            let factors = layer::Factors { attention: factors(Site::Attention), up: factors(Site::FeedForward) };
            Layer::read(config, names.pp(index), (cpu, precision), (factors, rounding), &mut reserve)
        });
        let layers = layers.collect::<candle_core::Result<Vec<_>>>()?;
        let words = Table::read(weights, &embeddings, config)?;
        let width = config.hidden_size / config.num_attention_heads;
        Ok(Self {
            cpu,
            precision,
            bytes: (bytes + 4 * (positions.len() + config.vocab_size * config.hidden_size)) as u64,
            words,
            positions,
            positions_max: config.positions(),
            types,
            norm: layer::norm(config, embeddings.pp("LayerNorm"))?,
            rounding: Rounding::new(smoothing, (0, Site::Attention), config.hidden_size),
            layers,
            heads: Heads { count: config.num_attention_heads, width },
            inner: config.intermediate_size,
            arenas: Mutex::default(),
        })
    }

    /// Leaves the vectors of all tokens in the arena. False if nobody wants them any more.
    fn forward(&self, batch: Packed<'_>, wanted: &dyn Fn() -> bool, arena: &mut Arena) -> bool {
        self.embed(batch, arena);
        for layer in &self.layers {
            if !wanted() {
                return false;
            }
            layer.project(batch.ids.len(), arena);
            for (start, length) in batch.texts() {
                let (qkv, mixed, scratch) = (&arena.qkv, &mut arena.mixed, &mut arena.scratch);
                attend(self.cpu, qkv, start..start + length, self.heads, (mixed, scratch));
            }
            layer.finish(batch.ids.len(), arena);
        }
        true
    }

    /// What goes into the first layer.
    fn embed(&self, batch: Packed<'_>, arena: &mut Arena) {
        let hidden = self.heads.count * self.heads.width;
        for (start, length) in batch.texts() {
            for position in 0..length {
                let row = start + position;
                // A family without types tells the texts of a pair apart by the special tokens between them.
                let kind = batch.types.map_or(0, |types| (types[row] as usize).min(self.types - 1));
                let position = &self.positions[(kind * self.positions_max + position) * hidden..][..hidden];
                let word = self.words.row(batch.ids[row] as usize, hidden);
                let out = arena.x.row_mut(row);
                out.iter_mut()
                    .zip(word.iter().zip(position))
                    .for_each(|(out, (word, position))| *out = word + position);
            }
        }
        let rows = 0..batch.ids.len();
        self.norm.apply(self.cpu, &mut arena.x, rows, self.rounding.copied(arena.copy.as_mut()));
    }

    /// The arena is another chunk's as soon as this is dropped.
    fn arena(&self, rows: usize) -> Arena {
        let used = self.arenas.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let shape =
            arena::Shape { heads: self.heads, inner: self.inner, precision: self.precision, tier: self.cpu.tier() };
        used.filter(|arena| arena.rows() >= rows).unwrap_or_else(|| Arena::new(rows, shape))
    }
}

impl Encoder for Fused {
    fn dimensions(&self) -> usize {
        self.heads.count * self.heads.width
    }

    fn parameter_bytes(&self) -> u64 {
        self.bytes
    }

    fn encode(&self, batch: Packed<'_>, wanted: &dyn Fn() -> bool, out: &mut [f32]) -> Result<(), ItemError> {
        let mut arena = self.arena(batch.ids.len());
        let done = self.forward(batch, wanted, &mut arena);
        if done {
            let rows = out.chunks_exact_mut(self.dimensions()).enumerate();
            rows.for_each(|(row, out)| out.copy_from_slice(arena.x.row(row)));
        }
        self.arenas.lock().unwrap_or_else(PoisonError::into_inner).push(arena);
        if done { Ok(()) } else { Err(ItemError::new(Reason::Abandoned, "given up before it was computed")) }
    }
}

/// The table of positions for each type of token, and how many types there are.
fn positions(config: &Config, embeddings: &VarBuilder<'_>) -> candle_core::Result<(Vec<f32>, usize)> {
    let hidden = config.hidden_size;
    let table =
        |name: &str, rows: usize| embeddings.pp(name).get((rows, hidden), "weight")?.flatten_all()?.to_vec1::<f32>();
    let types = match config.family {
        Family::DistilBert => vec![0.0; hidden],
        Family::Bert | Family::Roberta => table("token_type_embeddings", config.type_vocab_size)?,
    };
    let all = table("position_embeddings", config.max_position_embeddings)?;
    let positions = &all[config.first_position() * hidden..];
    let kinds = (types.len() / hidden).min(2);
    let with = |kind: &[f32]| positions.chunks_exact(hidden).flat_map(|row| add(row, kind)).collect::<Vec<_>>();
    Ok((types.chunks_exact(hidden).take(kinds).flat_map(with).collect(), kinds))
}

fn add(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

#[cfg(test)]
mod tests;
