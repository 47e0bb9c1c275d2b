//! Layer normalisation (Ba et al., 2016), and the formats of what comes out of it.
//!
//! A row is passed over three times and not kept in registers, which would hold the narrowest rows only: it is in the
//! nearest cache, and norms take half a hundredth of an encoder's time in f32, two in int8.

#![expect(unsafe_code, unsafe_op_in_unsafe_fn, reason = "pointers into matrices, checked before")]

use std::ops::Range;

use crate::{
    Cpu, Matrix, Precision,
    product::To,
    simd::{Kernel, Simd},
    tile::Finish,
};

/// Partial sums: an addition takes some cycles, and the next one need not wait for it.
const CHAINS: usize = 4;

/// Gives every row mean 0 and variance 1, then a scale and a shift per column.
#[derive(Clone, Debug)]
pub struct Norm {
    scale: Vec<f32>,
    shift: Vec<f32>,
    epsilon: f32,
}

/// A copy of rows in the format that the next product reads.
#[derive(Debug)]
pub enum Copied<'a> {
    /// None: it reads the rows themselves.
    None,
    /// Rounded to bf16.
    Bf16(&'a mut Matrix),
    /// Multiplied by a factor per column, then rounded to bytes with a scale and a zero per row. The scale is not a number
    /// where one of the row is infinite or none.
    Int8(&'a mut Matrix, &'a [f32]),
}

// === impl Norm ===

impl Norm {
    /// # Panics
    ///
    /// If there are not as many scales as shifts, or no whole number of vectors (multiples of 16).
    #[must_use]
    pub fn new(scale: Vec<f32>, shift: Vec<f32>, epsilon: f32) -> Self {
        assert!(scale.len() == shift.len() && scale.len().is_multiple_of(16), "whole vectors of scales and shifts");
        Self { scale, shift, epsilon }
    }

    /// Normalises these rows in place, and writes the copy of each to the same row.
    ///
    /// # Panics
    ///
    /// If `x` is not f32 or has other columns, or the copy has not the shape of `x`.
    pub fn apply(&self, cpu: Cpu, x: &mut Matrix, rows: Range<usize>, copied: Copied<'_>) {
        let width = self.scale.len();
        assert!(
            x.precision() == Precision::F32 && x.width() == width && rows.end <= x.rows(),
            "{width} columns of f32"
        );
        match copied {
            // SAFETY: the rows are as wide as the norm, in whole vectors.
            Copied::None => unsafe { cpu.run(Rows { norm: self, x, rows, copy: NoCopy }) },
            Copied::Bf16(out) => {
                check(out, width, &rows);
                let copy = To(out.numbers_mut::<u16>(&(0..rows.end)));
                // SAFETY: as above, and the copy has these rows and columns.
                unsafe { cpu.run(Rows { norm: self, x, rows, copy }) };
            }
            Copied::Int8(out, factors) => {
                assert_eq!(out.precision(), Precision::Int8, "precision of a copy");
                check(out, width, &rows);
                assert_eq!(factors.len(), width, "a factor per column");
                // SAFETY: as above, and there is a factor per column.
                unsafe { cpu.run(Rows { norm: self, x, rows, copy: ToInt8(out, factors) }) };
            }
        }
    }
}

/// Rounds rows of f32 to bytes, with a scale and a zero per row (not a number where one of the row is infinite or none),
/// or to bf16, as `out` is.
///
/// # Panics
///
/// If `x` is not f32, `out` is, their columns differ or are no multiple of 16.
pub fn round(cpu: Cpu, x: &Matrix, rows: Range<usize>, (out, at): (&mut Matrix, usize)) {
    let width = x.width();
    assert!(x.precision() == Precision::F32 && rows.end <= x.rows() && width.is_multiple_of(16), "rows of f32");
    let to = at..at.saturating_add(rows.len());
    check(out, width, &to);
    match out.precision() {
        // SAFETY: rows of whole vectors, and as many of as many columns to write them to.
        Precision::Int8 => unsafe { cpu.run(Rounded { x, rows, copy: ToInt8(out, &[]), at }) },
        Precision::Bf16 => {
            let copy = To(out.numbers_mut::<u16>(&(0..to.end)));
            // SAFETY: as above.
            unsafe { cpu.run(Rounded { x, rows, copy, at }) };
        }
        Precision::F32 => panic!("f32 is not rounded"),
    }
}

fn check(out: &Matrix, width: usize, rows: &Range<usize>) {
    assert!(out.width() == width && rows.end <= out.rows(), "a copy of rows {rows:?} with {width} columns");
}

/// Rows of whole vectors, as wide as the norm, which `copy` has as well.
struct Rows<'a, C> {
    norm: &'a Norm,
    x: &'a mut Matrix,
    rows: Range<usize>,
    copy: C,
}

/// Rows of whole vectors, which `copy` has as well, from `at` on.
struct Rounded<'a, C> {
    x: &'a Matrix,
    rows: Range<usize>,
    copy: C,
    at: usize,
}

impl<C: RowCopy> Kernel for Rows<'_, C> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { norm, x, rows, mut copy } = self;
        for row in rows {
            let values = x.row_mut(row);
            normalize::<S>(norm, values);
            copy.write::<S>(row, values);
        }
    }
}

impl<C: RowCopy> Kernel for Rounded<'_, C> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, rows, mut copy, at } = self;
        for (index, row) in rows.enumerate() {
            copy.write::<S>(at + index, x.row(row));
        }
    }
}

/// # Safety
///
/// `values` are whole vectors, as many as the norm's.
#[inline(always)]
unsafe fn normalize<S: Simd>(norm: &Norm, values: &mut [f32]) {
    let (start, width) = (values.as_mut_ptr(), values.len());
    let mut sums = [S::splat(0.0); CHAINS];
    for block in blocks::<S>(width) {
        for (chain, sum) in sums.iter_mut().enumerate().take(block.vectors) {
            *sum = S::add(*sum, S::load(start.add(block.at + chain * S::LANES)));
        }
    }
    let mean = S::splat(join::<S>(sums) / width as f32);
    // The squares of the differences, and not the difference of the squares, which rounds away small variances.
    let mut sums = [S::splat(0.0); CHAINS];
    for block in blocks::<S>(width) {
        for (chain, sum) in sums.iter_mut().enumerate().take(block.vectors) {
            let place = start.add(block.at + chain * S::LANES);
            let difference = S::sub(S::load(place), mean);
            S::store(place, difference);
            *sum = S::fma(difference, difference, *sum);
        }
    }
    let variance = join::<S>(sums) / width as f32;
    let inverse = S::splat((variance + norm.epsilon).sqrt().recip());
    let (scale, shift) = (norm.scale.as_ptr(), norm.shift.as_ptr());
    for at in (0..width).step_by(S::LANES) {
        let scaled = S::mul(S::mul(S::load(start.add(at)), inverse), S::load(scale.add(at)));
        S::store(start.add(at), S::add(scaled, S::load(shift.add(at))));
    }
}

/// Some vectors of a row that are taken in one step.
struct Span {
    at: usize,
    vectors: usize,
}

#[inline(always)]
fn blocks<S: Simd>(width: usize) -> impl Iterator<Item = Span> {
    let step = CHAINS * S::LANES;
    (0..width).step_by(step).map(move |at| Span { at, vectors: ((width - at) / S::LANES).min(CHAINS) })
}

/// # Safety
///
/// That of [`Simd`].
#[inline(always)]
unsafe fn join<S: Simd>(sums: [S::V; CHAINS]) -> f32 {
    S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
}

/// Writes a row in another format.
trait RowCopy {
    /// # Safety
    ///
    /// `values` are whole vectors, and the row is there and has as many columns.
    unsafe fn write<S: Simd>(&mut self, row: usize, values: &[f32]);
}

struct NoCopy;
/// With a factor per column, or none at all.
struct ToInt8<'a>(&'a mut Matrix, &'a [f32]);

impl RowCopy for NoCopy {
    #[inline(always)]
    unsafe fn write<S: Simd>(&mut self, _: usize, _: &[f32]) {}
}

impl RowCopy for To<u16> {
    #[inline(always)]
    unsafe fn write<S: Simd>(&mut self, row: usize, values: &[f32]) {
        for at in (0..values.len()).step_by(S::LANES) {
            self.put::<S>(row, at, S::load(values.as_ptr().add(at)));
        }
    }
}

impl RowCopy for ToInt8<'_> {
    #[inline(always)]
    unsafe fn write<S: Simd>(&mut self, row: usize, values: &[f32]) {
        let Self(out, factors) = self;
        let (values, width) = (values.as_ptr(), values.len());
        let factors = if factors.is_empty() { std::ptr::null() } else { factors.as_ptr() };
        // 0 is among the values that can be told exactly: most of what GELU makes is near it.
        let (mut least, mut greatest) = (S::splat(0.0), S::splat(0.0));
        // No byte says that a number is infinite or none, and comparisons pass over it: this sum is 0 or not a number.
        let mut spoilt = S::splat(0.0);
        for at in (0..width).step_by(S::LANES) {
            let x = factored::<S>(values, factors, at);
            (least, greatest) = (S::min(least, x), S::max(greatest, x));
            spoilt = S::fma(x, S::splat(0.0), spoilt);
        }
        let (least, greatest) = (S::least(least), S::greatest(greatest));
        // A row of zeros has a scale all the same, by which nothing is divided to infinity.
        let scale = ((greatest - least) / 255.0).max(f32::MIN_POSITIVE * 1e8) + S::sum(spoilt);
        let zero = (-least / scale).round_ties_even();
        (out.scales[row], out.zeros[row]) = (scale, zero);
        let (inverse, zero) = (S::splat(scale.recip()), S::splat(zero));
        let stride = out.stride();
        let bytes: *mut u8 = out.words_mut()[row * stride..].as_mut_ptr().cast();
        for at in (0..width).step_by(S::LANES) {
            S::store_u8(bytes.add(at), S::fma(factored::<S>(values, factors, at), inverse, zero));
        }
    }
}

/// A vector of values, each times its factor if there are any.
///
/// # Safety
///
/// There are a vector of values from `at` on, and of factors, unless these are null.
#[inline(always)]
unsafe fn factored<S: Simd>(values: *const f32, factors: *const f32, at: usize) -> S::V {
    let x = S::load(values.add(at));
    if factors.is_null() { x } else { S::mul(x, S::load(factors.add(at))) }
}

#[cfg(test)]
mod tests;
