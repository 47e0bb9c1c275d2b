//! The one loop that all products share: the sums of a few rows by one panel, in registers.
//!
//! A step takes one word of every row and multiplies it with a line of the panel. What a word holds, one f32, two bf16
//! or four int8, is the business of a [`Dot`]. Every sum is made in the order of the inputs, whatever the number of rows
//! is, so that a row's results do not depend on the rows beside it.

#![expect(unsafe_code, unsafe_op_in_unsafe_fn, reason = "pointers into matrices, checked by their callers")]

use crate::simd::{Simd, Strided};

const CACHE_LINE_WORDS: usize = 16;

/// Multiplies and adds the values of words, and makes f32 of the sums.
pub(crate) trait Dot {
    /// # Safety
    ///
    /// That of [`Simd`].
    unsafe fn add<S: Simd>(sum: S::V, a: S::V, b: S::V) -> S::V;

    /// The value of the sums of a row, whose first column is `column`.
    ///
    /// # Safety
    ///
    /// That of [`Simd`], and this has what it needs of the row and of a vector of columns.
    unsafe fn value<S: Simd>(&self, row: usize, column: usize, sum: S::V) -> S::V;
}

/// Takes the values of a row that begin at `column`, and puts them where they belong.
pub(crate) trait Finish {
    /// # Safety
    ///
    /// That of [`Simd`], and there is a place for a vector of values of this row and column.
    unsafe fn put<S: Simd>(&self, row: usize, column: usize, values: S::V);
}

pub(crate) struct F32;
pub(crate) struct Bf16;

/// Sums of u8 by i8. A row's u8 mean scale x (u8 - zero), a column's i8 mean scale x i8. Of rows there are as many as are
/// multiplied, of columns whole vectors.
pub(crate) struct Int8 {
    pub(crate) row_scales: *const f32,
    pub(crate) row_zeros: *const f32,
    pub(crate) column_scales: *const f32,
    pub(crate) column_sums: *const f32,
}

/// Rows by a panel.
#[derive(Clone, Copy)]
pub(crate) struct Operands {
    /// The first word of each row, and words from one to the next.
    pub(crate) rows: Strided<*const u32>,
    /// Words of a row.
    pub(crate) words: usize,
    /// Lines of the panel.
    pub(crate) panel: Strided<*const u32>,
    /// What will be wanted next, and words of it that are asked for in a step.
    pub(crate) next: Strided<*const u32>,
}

// === impl F32 ===

impl Dot for F32 {
    #[inline(always)]
    unsafe fn add<S: Simd>(sum: S::V, a: S::V, b: S::V) -> S::V {
        S::fma(a, b, sum)
    }

    #[inline(always)]
    unsafe fn value<S: Simd>(&self, _: usize, _: usize, sum: S::V) -> S::V {
        sum
    }
}

// === impl Bf16 ===

impl Dot for Bf16 {
    #[inline(always)]
    unsafe fn add<S: Simd>(sum: S::V, a: S::V, b: S::V) -> S::V {
        S::dot_bf16(sum, a, b)
    }

    #[inline(always)]
    unsafe fn value<S: Simd>(&self, _: usize, _: usize, sum: S::V) -> S::V {
        sum
    }
}

// === impl Int8 ===

impl Dot for Int8 {
    #[inline(always)]
    unsafe fn add<S: Simd>(sum: S::V, a: S::V, b: S::V) -> S::V {
        S::dot_int8(sum, a, b)
    }

    #[inline(always)]
    unsafe fn value<S: Simd>(&self, row: usize, column: usize, sum: S::V) -> S::V {
        let scale = S::mul(S::splat(*self.row_scales.add(row)), S::load(self.column_scales.add(column)));
        // Every byte of the row was too large by the zero.
        let excess = S::splat(-*self.row_zeros.add(row));
        S::mul(S::fma(excess, S::load(self.column_sums.add(column)), S::from_int(sum)), scale)
    }
}

/// Multiplies up to [`Simd::TILE_ROWS`] rows by a panel that is `VECTORS` vectors wide.
///
/// # Safety
///
/// There are `count` rows that have the words, the panel has as many lines of so many vectors, and `dot` and `finish` take
/// values of these rows and columns, counted from `at` on.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, D: Dot, F: Finish, const VECTORS: usize>(
    operands: &Operands,
    count: usize,
    at: (usize, usize),
    (dot, finish): (&D, &F),
) {
    match count {
        1 => tile::<S, D, F, 1, VECTORS>(operands, at, dot, finish),
        2 => tile::<S, D, F, 2, VECTORS>(operands, at, dot, finish),
        3 => tile::<S, D, F, 3, VECTORS>(operands, at, dot, finish),
        4 => tile::<S, D, F, 4, VECTORS>(operands, at, dot, finish),
        5 => tile::<S, D, F, 5, VECTORS>(operands, at, dot, finish),
        6 => tile::<S, D, F, 6, VECTORS>(operands, at, dot, finish),
        7 => tile::<S, D, F, 7, VECTORS>(operands, at, dot, finish),
        8 => tile::<S, D, F, 8, VECTORS>(operands, at, dot, finish),
        _ => unreachable!("no tier has tiles of {count} rows"),
    }
}

/// `ROWS` rows by a panel.
///
/// # Safety
///
/// That of [`multiply`].
#[inline(always)]
unsafe fn tile<S: Simd, D: Dot, F: Finish, const ROWS: usize, const VECTORS: usize>(
    operands: &Operands,
    (row, column): (usize, usize),
    dot: &D,
    finish: &F,
) {
    // Not compiled where registers would not do, and not called there.
    if ROWS > S::TILE_ROWS {
        unreachable!("{ROWS} rows in a tier of {}", S::TILE_ROWS);
    }
    let Operands { rows, words, panel, next } = *operands;
    let mut sums = [[S::splat(0.0); VECTORS]; ROWS];
    let (mut input, mut line, mut next, ask) = (rows.start, panel.start, next.start, next.stride);
    for _ in 0..words {
        let mut weights = [S::splat(0.0); VECTORS];
        for (v, weights) in weights.iter_mut().enumerate() {
            *weights = S::load(line.add(v * S::LANES).cast());
            if (v * S::LANES).is_multiple_of(CACHE_LINE_WORDS) {
                S::prefetch(next.wrapping_add(v * S::LANES));
            }
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let value = S::splat_word(input.add(r * rows.stride));
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = D::add::<S>(*sum, value, weights[v]);
            }
        }
        (input, line, next) = (input.add(1), line.add(panel.stride), next.wrapping_add(ask));
    }
    for (r, sums) in sums.iter().enumerate() {
        for (v, sum) in sums.iter().enumerate() {
            let column = column + v * S::LANES;
            finish.put::<S>(row + r, column, dot.value::<S>(row + r, column, *sum));
        }
    }
}

/// Divides rows into tiles, as even as possible: (first row, rows) of each. Peak speed needs four rows, so that nine in
/// two tiles are faster than eight and one.
#[inline(always)]
pub(crate) fn tiles(rows: usize, most: usize) -> impl Iterator<Item = (usize, usize)> + Clone {
    let count = rows.div_ceil(most);
    let (least, larger) = (rows.checked_div(count).unwrap_or(0), rows.checked_rem(count).unwrap_or(0));
    (0..count).map(move |tile| (tile * least + tile.min(larger), least + usize::from(tile < larger)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_the_rows_in_order_and_none_is_too_large() {
        for rows in 0..100 {
            for most in 1..9 {
                let mut next = 0;
                for (first, count) in tiles(rows, most) {
                    assert_eq!(first, next);
                    assert!((1..=most).contains(&count));
                    next += count;
                }
                assert_eq!(next, rows);
            }
        }
    }
}
