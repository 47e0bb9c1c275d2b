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
use kernels::{Cpu, Heads, Matrix, Norm, Precision, Reserve, attend};

use self::{
    arena::Arena,
    layer::{Layer, Rounding},
    table::Table,
};
use super::{Config, Encoder, Family, Packed, Reader, family::Names, observe::Observe};
use crate::{
    Error, ItemError, Reason,
    manifest::{Site, Smoothing},
    weights::Weights,
};

mod arena;
mod layer;
mod table;

/// Rows that are computed at once: they fill a core, and their activations a second-level cache.
const ROWS_MAX: usize = 256;
/// Rows of the largest arena that is kept: most models read no text of more tokens. For others memory would stay taken
/// that is needed once in a while.
const KEPT_ROWS_MAX: usize = 512;
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

/// What the layers of an encoder are made by.
struct Recipe<'a> {
    config: &'a Config,
    names: &'a Names,
    cpu: Cpu,
    precision: Precision,
    smoothing: Option<&'a Smoothing>,
}

/// Whether there are kernels for the shape of this checkpoint.
pub(super) fn fits(config: &Config) -> bool {
    if config.family.names().is_none() {
        return false;
    }
    let head = config.hidden_size / config.num_attention_heads;
    let whole = |width: usize| width > 0 && width.is_multiple_of(HEAD_STEP) && width <= 1 << 16;
    whole(head) && whole(config.hidden_size) && whole(config.intermediate_size)
}

// === impl Recipe ===

impl Recipe<'_> {
    /// How rows are made ready for the product of a site.
    fn rounding(&self, layer: usize, site: Site) -> Rounding {
        let inverse = |smoothing: &Smoothing| smoothing.vector(layer, site).into_iter().map(f32::recip).collect();
        Rounding(Some(self.smoothing.map_or_else(|| vec![1.0; self.config.hidden_size], inverse)))
    }
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
        let refuse = |why: &dyn std::fmt::Display| Error::load("model.safetensors", why);
        let Some(names) = config.family.names().filter(|_| fits(config)) else {
            return Err(refuse(&"there are no kernels for its shape"));
        };
        Self::read(weights, &Recipe { config, names, cpu, precision, smoothing }).map_err(|error| refuse(&error))
    }

    fn read(weights: &Weights, recipe: &Recipe<'_>) -> candle_core::Result<Self> {
        let &Recipe { config, names, cpu, precision, .. } = recipe;
        let root = config.family.root(&weights.builder);
        let embeddings = root.pp("embeddings");
        let (positions, types) = positions(config, &embeddings)?;
        let bytes = config.num_hidden_layers * Layer::bytes(recipe);
        // The configuration may name layers that the file has not: it is told below which one is missing.
        let file_bytes = usize::try_from(weights.bytes()).unwrap_or(usize::MAX);
        let mut reserve = Reserve::new(bytes.min(file_bytes.saturating_mul(2)));
        let all = root.pp(names.layers);
        let layers = (0..config.num_hidden_layers).map(|index| Layer::read(recipe, (&all, index), &mut reserve));
        let width = config.hidden_size / config.num_attention_heads;
        Ok(Self {
            cpu,
            precision,
            bytes: (bytes + 4 * (positions.len() + others(recipe))) as u64,
            layers: layers.collect::<candle_core::Result<_>>()?,
            words: Table::read(weights, &embeddings, config)?,
            positions,
            positions_max: config.positions(),
            types,
            norm: layer::norm(config, embeddings.pp("LayerNorm"))?,
            rounding: recipe.rounding(0, Site::Attention),
            heads: Heads { count: config.num_attention_heads, width },
            inner: config.intermediate_size,
            arenas: Mutex::default(),
        })
    }

    /// Shows what goes into the products of each site while a text is computed.
    pub(super) fn observe(&self, ids: &[u32], seen: &mut dyn Observe) {
        let batch = Packed { ids, ends: &[ids.len()], types: None };
        self.with_arena(ids.len(), |arena| {
            self.embed(batch, arena);
            for (index, layer) in self.layers.iter().enumerate() {
                let mut see = |site, x: &Matrix| (0..ids.len()).for_each(|row| seen.observe(index, site, x.row(row)));
                see(Site::Attention, &arena.x);
                self.mix(layer, batch, arena);
                see(Site::FeedForward, &arena.x);
                layer.feed_forward(ids.len(), arena);
            }
        });
    }

    /// Leaves the vectors of all tokens in the arena. False if nobody wants them any more.
    fn forward(&self, batch: Packed<'_>, wanted: &dyn Fn() -> bool, arena: &mut Arena) -> bool {
        self.embed(batch, arena);
        for layer in &self.layers {
            if !wanted() {
                return false;
            }
            self.mix(layer, batch, arena);
            layer.feed_forward(batch.ids.len(), arena);
        }
        true
    }

    /// The first half of a layer.
    fn mix(&self, layer: &Layer, batch: Packed<'_>, arena: &mut Arena) {
        layer.project(batch.ids.len(), arena);
        for (start, length) in batch.texts() {
            let (qkv, mixed, scratch) = (&arena.qkv, &mut arena.mixed, &mut arena.scratch);
            attend(self.cpu, qkv, start..start + length, self.heads, (mixed, scratch));
        }
        layer.add_mixed(batch.ids.len(), arena);
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

    /// Lends an arena of so many rows, which is another chunk's afterwards unless it is for a text that is too long to
    /// come often.
    fn with_arena<T>(&self, rows: usize, compute: impl FnOnce(&mut Arena) -> T) -> T {
        let arenas = || self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        let used = if rows > KEPT_ROWS_MAX { None } else { arenas().pop() };
        let shape =
            arena::Shape { heads: self.heads, inner: self.inner, precision: self.precision, tier: self.cpu.tier() };
        let mut arena = used.filter(|arena| arena.rows() >= rows).unwrap_or_else(|| Arena::new(rows, shape));
        let computed = compute(&mut arena);
        if arena.rows() <= KEPT_ROWS_MAX {
            arenas().push(arena);
        }
        computed
    }
}

impl Encoder for Fused {
    fn dimensions(&self) -> usize {
        self.heads.count * self.heads.width
    }

    fn parameter_bytes(&self) -> u64 {
        self.bytes
    }

    fn encode(&self, batch: Packed<'_>, wanted: &dyn Fn() -> bool, read: &mut Reader<'_>) -> Result<(), ItemError> {
        let texts: Vec<_> = batch.texts().collect();
        // More at once would gain nothing, and take larger arenas.
        for group in groups(&texts) {
            let (start, rows) = (group[0].0, group.iter().map(|(_, length)| length).sum::<usize>());
            let ends: Vec<usize> = group.iter().map(|(first, length)| first + length - start).collect();
            let types = batch.types.map(|types| &types[start..start + rows]);
            let part = Packed { ids: &batch.ids[start..start + rows], ends: &ends, types };
            let done = self.with_arena(rows, |arena| {
                let done = self.forward(part, wanted, arena);
                if done {
                    for (start, length) in part.texts() {
                        let rows: Vec<&[f32]> = (start..start + length).map(|row| arena.x.row(row)).collect();
                        read(&rows);
                    }
                }
                done
            });
            if !done {
                return Err(ItemError::new(Reason::Abandoned, "given up before it was computed"));
            }
        }
        Ok(())
    }
}

/// Parameters beside the layers' products and the positions, in numbers.
fn others(recipe: &Recipe<'_>) -> usize {
    let &Recipe { config, smoothing, .. } = recipe;
    // A scale and a shift of each component, after the embeddings and twice in a layer.
    let norms = 2 * (1 + 2 * config.num_hidden_layers);
    let factors = smoothing.map_or(0, |_| Site::ALL.len() * config.num_hidden_layers);
    config.hidden_size * (config.vocab_size + norms + factors)
}

/// Divides texts, given by start and length, into neighbours of at most [`ROWS_MAX`] rows; a longer text is alone.
fn groups(texts: &[(usize, usize)]) -> Vec<&[(usize, usize)]> {
    let (mut groups, mut first, mut rows) = (Vec::new(), 0, 0);
    for (index, (_, length)) in texts.iter().enumerate() {
        if rows > 0 && rows + length > ROWS_MAX {
            groups.push(&texts[first..index]);
            (first, rows) = (index, 0);
        }
        rows += length;
    }
    if first < texts.len() {
        groups.push(&texts[first..]);
    }
    groups
}

/// The table of positions for each type of token, and how many types there are.
fn positions(config: &Config, embeddings: &VarBuilder<'_>) -> candle_core::Result<(Vec<f32>, usize)> {
    let hidden = config.hidden_size;
    let table = |name: &str, rows: usize| layer::numbers(&embeddings.pp(name), (rows, hidden), "weight");
    let types = match config.family {
        Family::DistilBert => vec![0.0; hidden],
        _ => table("token_type_embeddings", config.type_vocab_size)?,
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
