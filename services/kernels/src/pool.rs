//! The mean of a feature map's pixels.

#![expect(unsafe_code, unsafe_op_in_unsafe_fn, reason = "pointers into matrices, checked before")]

use std::ops::Range;

use crate::{
    Cpu, Matrix, Precision,
    simd::{Kernel, Simd},
};

/// Writes the mean of these rows, column by column.
///
/// # Panics
///
/// If the rows are not there, none or bytes, or `out` has not as many numbers as there are columns, a multiple of 16.
pub fn average(cpu: Cpu, x: &Matrix, rows: Range<usize>, out: &mut [f32]) {
    assert!(rows.start < rows.end && rows.end <= x.rows(), "rows {rows:?} of {}", x.rows());
    assert!(out.len() == x.width() && out.len().is_multiple_of(16), "{} means of {}", out.len(), x.width());
    assert_ne!(x.precision(), Precision::Int8, "bytes have a scale");
    cpu.run(Means { x, rows, out });
}

struct Means<'a> {
    x: &'a Matrix,
    rows: Range<usize>,
    out: &'a mut [f32],
}

impl Kernel for Means<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, rows, out } = self;
        let (count, stride) = (S::splat(rows.len() as f32), x.stride());
        let first = x.words()[rows.start * stride..].as_ptr();
        for column in (0..out.len()).step_by(S::LANES) {
            let mut sum = S::splat(0.0);
            for row in 0..rows.len() {
                let words = first.add(row * stride);
                sum = S::add(
                    sum,
                    match x.precision() {
                        Precision::F32 => S::load(words.cast::<f32>().add(column)),
                        _ => S::load_bf16(words.cast::<u16>().add(column)),
                    },
                );
            }
            S::store(out.as_mut_ptr().add(column), S::div(sum, count));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::naive::{assert_near, cpus, matrix, noise, read};

    proptest! {
        #[test]
        fn a_column_has_the_mean_of_its_rows(
            rows in 1_usize..60, first in 0_usize..60, width in 1_usize..5, seed in 0_u64..1000,
        ) {
            let (first, width) = (first % rows, width * 16);
            for cpu in cpus() {
                for precision in [Precision::F32, Precision::Bf16] {
                    let x = matrix(cpu, precision, width, &noise(rows * width, seed));
                    let mut means = vec![0.0; width];
                    average(cpu, &x, first..rows, &mut means);
                    let values = read(&x);
                    let sum = |column: usize| (first..rows).map(|row| f64::from(values[row * width + column])).sum::<f64>();
                    let expected: Vec<f64> = (0..width).map(|column| sum(column) / (rows - first) as f64).collect();
                    assert_near(&means, &expected, 1e-6, &format!("{} {precision}", cpu.tier()));
                }
            }
        }
    }
}
