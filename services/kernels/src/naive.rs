//! What the kernels compute, in f64 and one number at a time: what their tests compare with.

use std::{io::Write, sync::Once};

use proptest::prelude::*;

use crate::{Cpu, Matrix, Precision, Reserve, Tier, weights::narrow};

/// All tiers that this CPU has. Says once which were not to be had: what is not tested should be seen.
pub(crate) fn cpus() -> Vec<Cpu> {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        let names = |available: bool| {
            let tiers = Tier::ALL.into_iter().filter(|tier| tier.is_available() == available);
            tiers.map(Tier::as_str).collect::<Vec<_>>().join(" ")
        };
        // Not by a macro, whose output the harness keeps to itself.
        let _ = writeln!(std::io::stderr(), "tiers: {}; not on this CPU: {}", names(true), names(false));
    });
    Tier::ALL.into_iter().filter_map(Cpu::with).collect()
}

/// What is not a number: as divisions make it, and as one that rounding its bits would make a number of.
pub(crate) const NANS: [f32; 2] = [f32::NAN, f32::from_bits(0x7fff_ffff)];

/// Numbers of order 1, so many.
pub(crate) fn numbers(count: usize) -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec(-2.0_f32..2.0, count)
}

/// Numbers that look random, for shapes that are too large to be drawn one by one.
pub(crate) fn noise(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2) + 1;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// Rounded to bf16.
pub(crate) fn bf16(x: f32) -> f32 {
    f32::from_bits(u32::from(narrow(x)) << 16)
}

/// Rows of zeros, each right behind the other where the format allows that, and in an allocation of their own: an address
/// sanitizer sees what goes beyond the last one.
pub(crate) fn zeros(precision: Precision, rows: usize, width: usize) -> Matrix {
    match precision {
        Precision::Int8 => Matrix::zeros(precision, rows, width),
        _ => Matrix::pixels(precision, rows, width, &mut Reserve::new(0)),
    }
}

/// A matrix of these rows, of any width, as a norm's copy would be.
pub(crate) fn matrix(cpu: Cpu, precision: Precision, width: usize, values: &[f32]) -> Matrix {
    let rows = values.len() / width;
    let padded = width.next_multiple_of(16);
    let mut exact = zeros(Precision::F32, rows, if precision == Precision::F32 { width } else { padded });
    for (row, values) in values.chunks_exact(width).enumerate() {
        exact.row_mut(row)[..width].copy_from_slice(values);
    }
    if precision == Precision::F32 {
        return exact;
    }
    // Only whole vectors are rounded. The zeros behind a row are not told from what is exact: see `ToInt8`.
    let mut rounded = zeros(precision, rows, padded);
    crate::round(cpu, &exact, 0..rows, (&mut rounded, 0));
    if width == padded { rounded } else { copied(&rounded, zeros(precision, rows, width)) }
}

/// The same numbers, with gaps between the rows.
pub(crate) fn with_gaps(matrix: &Matrix) -> Matrix {
    copied(matrix, Matrix::zeros(matrix.precision(), matrix.rows(), matrix.width()))
}

/// The numbers of the first columns of a matrix.
fn copied(from: &Matrix, mut to: Matrix) -> Matrix {
    let (from_stride, to_stride) = (from.stride(), to.stride());
    let words = to.width().div_ceil(to.precision().values_per_word());
    for row in 0..to.rows() {
        let to = &mut to.words_mut()[row * to_stride..][..words];
        to.copy_from_slice(&from.words()[row * from_stride..][..words]);
    }
    (to.scales, to.zeros) = (from.scales.clone(), from.zeros.clone());
    to
}

/// The numbers that a matrix holds, row by row.
pub(crate) fn read(matrix: &Matrix) -> Vec<f32> {
    let mut all = Vec::new();
    for row in 0..matrix.rows() {
        let words = &matrix.words()[row * matrix.stride()..];
        let per_word = matrix.precision().values_per_word();
        for column in 0..matrix.width() {
            let part = words[column / per_word] >> (column % per_word * 32 / per_word);
            all.push(match matrix.precision() {
                Precision::F32 => f32::from_bits(part),
                Precision::Bf16 => f32::from_bits(part << 16),
                Precision::Int8 => matrix.scales[row] * ((part & 0xff) as f32 - matrix.zeros[row]),
            });
        }
    }
    all
}

pub(crate) fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2))
}

/// By its series where that converges, 1 beyond.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

/// Fails if two lists differ by more than `tolerance`, relative to 1 or to what is expected if that is more.
#[track_caller]
pub(crate) fn assert_near(found: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = (f64::from(*found) - expected).abs();
        assert!(difference <= tolerance * expected.abs().max(1.0), "{what}: {found} instead of {expected} at {index}");
    }
}
