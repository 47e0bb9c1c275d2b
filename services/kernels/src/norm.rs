//! Layer normalisation (Ba et al., 2016), and the formats of what comes out of it.

#![expect(unsafe_code, unsafe_op_in_unsafe_fn, reason = "pointers into matrices, checked before")]

use std::ops::Range;

use crate::{
    Cpu, Matrix, Precision,
    simd::{Kernel, Simd},
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
            Copied::None => cpu.run(Rows { norm: self, x, rows, copy: NoCopy }),
            Copied::Bf16(out) => {
                assert_eq!(out.precision(), Precision::Bf16, "precision of a copy");
                check(out, width, &rows);
                cpu.run(Rows { norm: self, x, rows, copy: ToBf16(out) });
            }
            Copied::Int8(out, factors) => {
                assert_eq!(out.precision(), Precision::Int8, "precision of a copy");
                check(out, width, &rows);
                assert_eq!(factors.len(), width, "a factor per column");
                cpu.run(Rows { norm: self, x, rows, copy: ToInt8(out, factors) });
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
    check(out, width, &(at..at.saturating_add(rows.len())));
    match out.precision() {
        Precision::Int8 => cpu.run(Rounded { x, rows, copy: ToInt8(out, &[]), at }),
        Precision::Bf16 => cpu.run(Rounded { x, rows, copy: ToBf16(out), at }),
        Precision::F32 => panic!("f32 is not rounded"),
    }
}

fn check(out: &Matrix, width: usize, rows: &Range<usize>) {
    assert!(out.width() == width && rows.end <= out.rows(), "a copy of rows {rows:?} with {width} columns");
}

struct Rows<'a, C> {
    norm: &'a Norm,
    x: &'a mut Matrix,
    rows: Range<usize>,
    copy: C,
}

struct Rounded<'a, C> {
    x: &'a Matrix,
    rows: Range<usize>,
    copy: C,
    at: usize,
}

impl<C: Copy> Kernel for Rows<'_, C> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { norm, x, rows, mut copy } = self;
        for row in rows {
            let values = x.row_mut(row);
            normalize::<S>(norm, values);
            copy.copy::<S>(row, values);
        }
    }
}

impl<C: Copy> Kernel for Rounded<'_, C> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, rows, mut copy, at } = self;
        for (index, row) in rows.enumerate() {
            copy.copy::<S>(at + index, x.row(row));
        }
    }
}

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

#[inline(always)]
unsafe fn join<S: Simd>(sums: [S::V; CHAINS]) -> f32 {
    S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
}

/// Writes a row in another format.
trait Copy {
    /// # Safety
    ///
    /// `values` are whole vectors, and the row is one of as many columns.
    unsafe fn copy<S: Simd>(&mut self, row: usize, values: &[f32]);
}

struct NoCopy;
struct ToBf16<'a>(&'a mut Matrix);
/// With a factor per column, or none at all.
struct ToInt8<'a>(&'a mut Matrix, &'a [f32]);

impl Copy for NoCopy {
    #[inline(always)]
    unsafe fn copy<S: Simd>(&mut self, _: usize, _: &[f32]) {}
}

impl Copy for ToBf16<'_> {
    #[inline(always)]
    unsafe fn copy<S: Simd>(&mut self, row: usize, values: &[f32]) {
        let stride = self.0.stride();
        let out: *mut u16 = self.0.words_mut()[row * stride..].as_mut_ptr().cast();
        for at in (0..values.len()).step_by(S::LANES) {
            S::store_bf16(out.add(at), S::load(values.as_ptr().add(at)));
        }
    }
}

impl Copy for ToInt8<'_> {
    #[inline(always)]
    unsafe fn copy<S: Simd>(&mut self, row: usize, values: &[f32]) {
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

#[inline(always)]
unsafe fn factored<S: Simd>(values: *const f32, factors: *const f32, at: usize) -> S::V {
    let x = S::load(values.add(at));
    if factors.is_null() { x } else { S::mul(x, S::load(factors.add(at))) }
}

#[cfg(test)]
mod tests;
