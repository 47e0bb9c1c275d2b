//! Rows of activations.

use std::ops::Range;

use crate::{
    Precision, Reserve,
    memory::{Block, round_up, times},
    simd::{Number, Strided},
};

/// Words that no row uses, so that rows of a power of two do not all fall on the same lines of a cache.
const GAP_WORDS: usize = 16;
/// Numbers in the widest vector of any tier.
const VALUES_MAX: usize = 16;

/// Rows of numbers, one below the other, in the format of one precision: what a product reads or writes.
///
/// In int8 a number is scale x (byte - zero), with a scale and a zero per row.
#[derive(Debug)]
pub struct Matrix {
    precision: Precision,
    rows: usize,
    width: usize,
    /// Words from one row to the next.
    stride: usize,
    block: Block,
    /// One per row; only in int8.
    pub(crate) scales: Vec<f32>,
    /// One per row; only in int8.
    pub(crate) zeros: Vec<f32>,
}

// === impl Matrix ===

impl Matrix {
    /// Zeros, `rows` of `width`, in memory of their own.
    #[must_use]
    pub fn zeros(precision: Precision, rows: usize, width: usize) -> Self {
        Self::within(&mut Reserve::new(Self::bytes(precision, rows, width)), precision, rows, width)
    }

    /// What [`Self::within`] takes of its reserve.
    #[must_use]
    pub fn bytes(precision: Precision, rows: usize, width: usize) -> usize {
        Reserve::bytes(times(rows, stride(precision, width)))
    }

    /// Zeros, in memory of the reserve.
    #[must_use]
    pub fn within(reserve: &mut Reserve, precision: Precision, rows: usize, width: usize) -> Self {
        let stride = stride(precision, width);
        let per_row = if precision == Precision::Int8 { rows } else { 0 };
        Self {
            precision,
            rows,
            width,
            stride,
            block: reserve.take(times(rows, stride)),
            scales: vec![0.0; per_row],
            zeros: vec![0.0; per_row],
        }
    }

    /// Zeros without gaps between the rows, in memory of the reserve: pixels of feature maps, which may be shorter than
    /// the gap.
    ///
    /// # Panics
    ///
    /// In int8.
    #[must_use]
    pub fn pixels(precision: Precision, rows: usize, width: usize, reserve: &mut Reserve) -> Self {
        assert_ne!(precision, Precision::Int8, "pixels have no scales");
        let stride = pixel_words(precision, width);
        let block = reserve.take(times(rows, stride));
        Self { precision, rows, width, stride, block, scales: Vec::new(), zeros: Vec::new() }
    }

    /// Makes pixels of another map, without gaps, of the same memory; what they hold is arbitrary.
    ///
    /// # Panics
    ///
    /// If there is less memory than that, or in int8.
    pub fn reshape(&mut self, rows: usize, width: usize) {
        assert_ne!(self.precision, Precision::Int8, "pixels have no scales");
        let stride = pixel_words(self.precision, width);
        let words = self.words().len();
        assert!(rows.checked_mul(stride).is_some_and(|most| most <= words), "{rows} x {width} in {words} words");
        (self.rows, self.width, self.stride) = (rows, width, stride);
    }

    /// Format of the numbers.
    #[must_use]
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// How many rows there are.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Numbers in a row.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// A row of f32.
    ///
    /// # Panics
    ///
    /// In another precision, or if there is no such row.
    #[must_use]
    pub fn row(&self, row: usize) -> &[f32] {
        assert_eq!(self.precision, Precision::F32, "rows of f32 are lent, and no others");
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &self.block.get()[row * self.stride..][..self.width]
    }

    /// A row of f32, to be written.
    ///
    /// # Panics
    ///
    /// In another precision, or if there is no such row.
    pub fn row_mut(&mut self, row: usize) -> &mut [f32] {
        assert_eq!(self.precision, Precision::F32, "rows of f32 are lent, and no others");
        assert!(row < self.rows, "row {row} of {}", self.rows);
        &mut self.block.get_mut()[row * self.stride..][..self.width]
    }

    /// The words of these rows, for a kernel to read: of each row as many as its numbers take, rounded up to vectors of 16.
    ///
    /// # Panics
    ///
    /// If the rows are not there.
    pub(crate) fn words_of(&self, rows: &Range<usize>) -> Strided<*const u32> {
        self.check(rows);
        Strided { start: self.words()[rows.start * self.stride..].as_ptr(), stride: self.stride }
    }

    /// The numbers of these rows, for a kernel to read: of each row as many as its columns, rounded up to vectors of 16.
    ///
    /// # Panics
    ///
    /// If the rows are not there, or of another format.
    pub(crate) fn numbers<T: Number>(&self, rows: &Range<usize>) -> Strided<*const T> {
        self.check(rows);
        assert_eq!(self.precision, T::PRECISION, "format of the numbers");
        let stride = self.stride * self.precision.values_per_word();
        Strided { start: self.block.get::<T>()[rows.start * stride..].as_ptr(), stride }
    }

    /// The numbers of these rows, for a kernel to write: as many as it may read.
    ///
    /// # Panics
    ///
    /// If the rows are not there, or of another format.
    pub(crate) fn numbers_mut<T: Number>(&mut self, rows: &Range<usize>) -> Strided<*mut T> {
        self.check(rows);
        assert_eq!(self.precision, T::PRECISION, "format of the numbers");
        let stride = self.stride * self.precision.values_per_word();
        Strided { start: self.block.get_mut::<T>()[rows.start * stride..].as_mut_ptr(), stride }
    }

    fn check(&self, rows: &Range<usize>) {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
    }

    /// Words from one row to the next.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// All words; a row may be written up to the next multiple of 16 numbers.
    pub(crate) fn words(&self) -> &[u32] {
        self.block.get()
    }

    pub(crate) fn words_mut(&mut self) -> &mut [u32] {
        self.block.get_mut()
    }
}

/// Words from one row to the next: whole vectors, so that the last one of a row may be written in full, and a gap.
fn stride(precision: Precision, width: usize) -> usize {
    let words = width.div_ceil(precision.values_per_word());
    times(words.div_ceil(GAP_WORDS) + 1, GAP_WORDS)
}

/// Words of a pixel: whole vectors of any tier.
fn pixel_words(precision: Precision, width: usize) -> usize {
    round_up(width, VALUES_MAX) / precision.values_per_word()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "row 2 of 2")]
    fn what_an_earlier_map_left_behind_the_rows_is_not_lent() {
        let mut map = Matrix::pixels(Precision::F32, 4, 16, &mut Reserve::new(0));
        map.reshape(2, 16);
        map.row_mut(2);
    }

    #[test]
    #[should_panic(expected = "3 x 33 in 64 words")]
    fn a_map_does_not_grow_beyond_its_memory() {
        Matrix::pixels(Precision::F32, 4, 16, &mut Reserve::new(0)).reshape(3, 33);
    }
}
