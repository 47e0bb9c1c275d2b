//! Attention among the rows of a text.
//!
//! Head by head, so that the keys and values of one fit into the nearest cache: its keys are transposed into panels (see
//! `weights`), then a tile of queries at a time has its scores, their softmax and its mix of values made while they are
//! there. The sum of a softmax divides the mixed values, of which there are fewer than scores.

#![expect(unsafe_code, unsafe_op_in_unsafe_fn, reason = "pointers into matrices, checked before")]

use std::{marker::PhantomData, ops::Range};

use crate::{
    Cpu, Matrix, Precision, math,
    memory::{Block, round_up, times},
    product::To,
    simd::{Kernel, Number, Simd, Strided},
    tile::{self, Bf16, Dot, F32, Finish, Operands},
};

/// Most rows of a tile in any tier.
const TILE_ROWS_MAX: usize = 8;
/// Panels of keys are at most as wide as this, and rows of scores are whole panels.
const PANEL_MAX: usize = 32;
const GAP: usize = 16;

/// How rows are divided among heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// How many there are.
    pub count: usize,
    /// Columns of each, a multiple of 32.
    pub width: usize,
}

/// Memory that attention works in; it grows to the longest text that it sees.
#[derive(Debug)]
pub struct Scratch {
    rows: usize,
    width: usize,
    keys: Block,
    values: Block,
    scores: Block,
    /// The scores in bf16.
    rounded: Block,
}

// === impl Scratch ===

impl Scratch {
    /// For texts of so many rows and heads of this width.
    ///
    /// # Panics
    ///
    /// If that is more than there are addresses.
    #[must_use]
    pub fn new(rows: usize, width: usize) -> Self {
        let rows = round_up(rows, PANEL_MAX);
        Self {
            rows,
            width,
            keys: Block::new(times(rows, width)),
            values: Block::new(times(rows.div_ceil(2), width)),
            scores: Block::new(times(TILE_ROWS_MAX, rows + GAP)),
            rounded: Block::new(times(TILE_ROWS_MAX, rows / 2 + GAP)),
        }
    }

    fn reserve(&mut self, rows: usize, width: usize) {
        if rows > self.rows || width > self.width {
            *self = Self::new(rows.max(self.rows), width.max(self.width));
        }
    }
}

/// Mixes the values of a text's rows by how much their keys are like each row's query (Vaswani et al., 2017).
///
/// `qkv` has in each row the queries of all heads, already divided by the root of a head's width, then their keys, then
/// their values, in f32 or bf16; the sums are f32 either way. `out` is f32 or bf16 and has the heads' columns.
///
/// # Panics
///
/// If the shapes do not fit, or a head's width is no multiple of 32.
pub fn attend(cpu: Cpu, qkv: &Matrix, text: Range<usize>, heads: Heads, (out, scratch): (&mut Matrix, &mut Scratch)) {
    let columns = times(heads.count, heads.width);
    assert!(heads.width > 0 && heads.width.is_multiple_of(PANEL_MAX), "a head of {} columns", heads.width);
    assert!(qkv.width() == times(3, columns) && out.width() == columns, "{heads:?}");
    assert!(text.end <= qkv.rows() && text.end <= out.rows(), "rows {text:?}");
    if text.is_empty() {
        return;
    }
    scratch.reserve(text.len(), heads.width);
    // SAFETY: the matrix has these rows of three times the heads' columns, `out` has them of the heads' columns, and the
    // scratch has grown to the text.
    unsafe {
        match out.precision() {
            Precision::F32 => in_precision(cpu, qkv, out.numbers_mut::<f32>(&text), heads, (text, scratch)),
            Precision::Bf16 => in_precision(cpu, qkv, out.numbers_mut::<u16>(&text), heads, (text, scratch)),
            Precision::Int8 => panic!("attention in int8"),
        }
    }
}

/// # Safety
///
/// What [`Attention`] says of them is so.
unsafe fn in_precision<N: Number>(
    cpu: Cpu,
    qkv: &Matrix,
    out: Strided<*mut N>,
    heads: Heads,
    (text, scratch): (Range<usize>, &mut Scratch),
) {
    let (from, rows) = (qkv.words_of(&text), text.len());
    match qkv.precision() {
        Precision::F32 => cpu.run(Attention { format: PhantomData::<InF32>, qkv: from, rows, heads, scratch, out }),
        Precision::Bf16 => cpu.run(Attention { format: PhantomData::<InBf16>, qkv: from, rows, heads, scratch, out }),
        Precision::Int8 => panic!("attention in int8"),
    }
}

/// A text of so many rows: of the heads' queries, keys and values in words of the format, and of their columns in `out`.
/// The scratch has room for it.
struct Attention<'a, T, N> {
    format: PhantomData<T>,
    qkv: Strided<*const u32>,
    rows: usize,
    heads: Heads,
    scratch: &'a mut Scratch,
    out: Strided<*mut N>,
}

impl<T: Format, N: Number> Kernel for Attention<'_, T, N> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { qkv, rows, heads, scratch, out, .. } = self;
        let columns = heads.count * heads.width;
        let words = heads.width / T::PER_WORD;
        let panels = rows.next_multiple_of(2 * S::LANES);
        let at = |row: usize, column: usize| Strided {
            start: qkv.start.add(row * qkv.stride + column / T::PER_WORD),
            ..qkv
        };
        let mut workspace = Workspace {
            keys: scratch.keys.get_mut().as_mut_ptr(),
            values: scratch.values.get_mut().as_mut_ptr(),
            scores: Strided { start: scratch.scores.get_mut().as_mut_ptr(), stride: scratch.rows + GAP },
            rounded: Strided { start: scratch.rounded.get_mut().as_mut_ptr(), stride: scratch.rows / 2 + GAP },
            inverses: [0.0; TILE_ROWS_MAX],
        };
        for head in 0..heads.count {
            let column = head * heads.width;
            transpose::<S>(at(0, columns + column), rows, words, workspace.keys);
            let values = T::values::<S>(at(0, 2 * columns + column), rows, words, &workspace);
            for (first, count) in tile::tiles(rows, S::TILE_ROWS) {
                let queries = at(first, column);
                score::<S, T>((queries, count), words, panels, &workspace);
                for row in 0..count {
                    workspace.inverses[row] = softmax::<S, T>(row, rows, panels, &workspace);
                }
                let out = To(Strided { start: out.start.add(first * out.stride + column), ..out });
                mix::<S, T, To<N>>(count, rows, (values, heads.width), (&workspace, &out));
            }
        }
    }
}

/// Where a head is worked on.
struct Workspace {
    /// Panels of transposed keys.
    keys: *mut u32,
    /// Values, where they are not read where they stand.
    values: *mut u32,
    scores: Strided<*mut f32>,
    rounded: Strided<*mut u16>,
    /// What the rows of the tile are multiplied by in the end.
    inverses: [f32; TILE_ROWS_MAX],
}

/// A number format of queries, keys, values and weights.
trait Format {
    type Dot: Dot;
    const DOT: Self::Dot;
    const PER_WORD: usize;

    /// Puts the values so that a word holds those of as many rows as a word holds numbers.
    ///
    /// # Safety
    ///
    /// There are `rows` rows of so many words, whole vectors, and the workspace has room for them.
    unsafe fn values<S: Simd>(
        from: Strided<*const u32>,
        rows: usize,
        words: usize,
        to: &Workspace,
    ) -> Strided<*const u32>;

    /// Takes a softmax's numbers, those from `column` on of a row.
    ///
    /// # Safety
    ///
    /// The workspace has the row and a vector of columns.
    unsafe fn keep<S: Simd>(row: usize, column: usize, values: S::V, to: &Workspace);

    /// What `keep` has kept of so many numbers a row, and words of a row.
    ///
    /// # Safety
    ///
    /// The workspace has room for them.
    unsafe fn kept(rows: usize, workspace: &Workspace) -> (Strided<*const u32>, usize);
}

struct InF32;
struct InBf16;

impl Format for InF32 {
    type Dot = F32;
    const DOT: F32 = F32;
    const PER_WORD: usize = 1;

    #[inline(always)]
    unsafe fn values<S: Simd>(from: Strided<*const u32>, _: usize, _: usize, _: &Workspace) -> Strided<*const u32> {
        from
    }

    #[inline(always)]
    unsafe fn keep<S: Simd>(row: usize, column: usize, values: S::V, to: &Workspace) {
        S::store(to.scores.start.add(row * to.scores.stride + column), values);
    }

    #[inline(always)]
    unsafe fn kept(rows: usize, workspace: &Workspace) -> (Strided<*const u32>, usize) {
        (Strided { start: workspace.scores.start.cast(), stride: workspace.scores.stride }, rows)
    }
}

impl Format for InBf16 {
    type Dot = Bf16;
    const DOT: Bf16 = Bf16;
    const PER_WORD: usize = 2;

    /// Pairs of rows, word by word.
    #[inline(always)]
    unsafe fn values<S: Simd>(
        from: Strided<*const u32>,
        rows: usize,
        words: usize,
        to: &Workspace,
    ) -> Strided<*const u32> {
        let width = 2 * words;
        for pair in 0..rows.div_ceil(2) {
            let upper = from.start.add(2 * pair * from.stride);
            let lower = if 2 * pair + 1 < rows { upper.add(from.stride) } else { std::ptr::null() };
            let out = to.values.add(pair * width);
            for word in (0..words).step_by(S::LANES) {
                let upper = S::load(upper.add(word).cast());
                let lower = if lower.is_null() { S::splat(0.0) } else { S::load(lower.add(word).cast()) };
                let (first, second) = S::pair_halves(upper, lower);
                S::store(out.add(2 * word).cast(), first);
                S::store(out.add(2 * word + S::LANES).cast(), second);
            }
        }
        Strided { start: to.values, stride: width }
    }

    #[inline(always)]
    unsafe fn keep<S: Simd>(row: usize, column: usize, values: S::V, to: &Workspace) {
        S::store_bf16(to.rounded.start.add(2 * row * to.rounded.stride + column), values);
    }

    #[inline(always)]
    unsafe fn kept(rows: usize, workspace: &Workspace) -> (Strided<*const u32>, usize) {
        (Strided { start: workspace.rounded.start.cast(), stride: workspace.rounded.stride }, rows.div_ceil(2))
    }
}

/// Writes the keys as panels of two vectors' width; what is missing to the last one is zero.
///
/// # Safety
///
/// There are `rows` keys of so many words, whole vectors, and room for as many panels as they need.
#[inline(always)]
unsafe fn transpose<S: Simd>(keys: Strided<*const u32>, rows: usize, words: usize, panels: *mut u32) {
    let width = 2 * S::LANES;
    for row in (0..rows.next_multiple_of(width)).step_by(S::LANES) {
        let panel = panels.add(row / width * width * words + row % width);
        let count = rows.saturating_sub(row).min(S::LANES);
        for word in (0..words).step_by(S::LANES) {
            let from = Strided { start: keys.start.wrapping_add(row * keys.stride + word), stride: keys.stride };
            S::transpose(from, count, Strided { start: panel.add(word * width), stride: width });
        }
    }
}

/// The scores of a tile of queries.
///
/// # Safety
///
/// There are `count` queries of so many words; the workspace has keys up to `panels`, a multiple of two vectors, and room
/// for as many scores.
#[inline(always)]
unsafe fn score<S: Simd, T: Format>(
    (queries, count): (Strided<*const u32>, usize),
    words: usize,
    panels: usize,
    workspace: &Workspace,
) {
    let finish = To(workspace.scores);
    let width = 2 * S::LANES;
    for column in (0..panels).step_by(width) {
        let start = workspace.keys.add(column * words).cast_const();
        let panel = Strided { start, stride: width };
        let operands = Operands { rows: queries, words, panel, next: Strided { start, stride: 0 } };
        tile::multiply::<S, T::Dot, _, 2>(&operands, count, (0, column), (&T::DOT, &finish));
    }
}

/// Makes of a row's scores what the values are to be multiplied by; and one over their sum is yet to be multiplied.
///
/// # Safety
///
/// The workspace has the row, of `padded` scores, whole vectors.
#[inline(always)]
unsafe fn softmax<S: Simd, T: Format>(row: usize, length: usize, padded: usize, workspace: &Workspace) -> f32 {
    let scores = workspace.scores.start.add(row * workspace.scores.stride);
    for column in length..padded {
        *scores.add(column) = f32::NEG_INFINITY;
    }
    let mut greatest = S::splat(f32::NEG_INFINITY);
    for column in (0..padded).step_by(S::LANES) {
        greatest = S::max(greatest, S::load(scores.add(column)));
    }
    let greatest = S::splat(S::greatest(greatest));
    let mut sum = S::splat(0.0);
    for column in (0..padded).step_by(S::LANES) {
        let power = math::exp::<S>(S::sub(S::load(scores.add(column)), greatest));
        sum = S::add(sum, power);
        T::keep::<S>(row, column, power, workspace);
    }
    S::sum(sum).recip()
}

/// Multiplies the tile's weights by the values.
///
/// # Safety
///
/// The workspace keeps `count` rows of `rows` weights; the values are as many, as wide as `width`, a multiple of two
/// vectors; and `out` may put values of so many rows and columns.
#[inline(always)]
unsafe fn mix<S: Simd, T: Format, O: Finish>(
    count: usize,
    rows: usize,
    (values, width): (Strided<*const u32>, usize),
    (workspace, out): (&Workspace, &O),
) {
    let (weights, words) = T::kept(rows, workspace);
    let finish = Scaled { out, inverses: &workspace.inverses };
    for column in (0..width).step_by(2 * S::LANES) {
        let start = values.start.add(column);
        let panel = Strided { start, ..values };
        let operands = Operands { rows: weights, words, panel, next: Strided { start, stride: 0 } };
        tile::multiply::<S, T::Dot, _, 2>(&operands, count, (0, column), (&T::DOT, &finish));
    }
}

/// Multiplies each row by a number of its own.
struct Scaled<'a, O> {
    out: &'a O,
    inverses: &'a [f32; TILE_ROWS_MAX],
}

impl<O: Finish> Finish for Scaled<'_, O> {
    #[inline(always)]
    unsafe fn put<S: Simd>(&self, row: usize, column: usize, values: S::V) {
        self.out.put::<S>(row, column, S::mul(values, S::splat(self.inverses[row])));
    }
}

#[cfg(test)]
mod tests;
