//! The mean of a feature map's pixels.

#![expect(unsafe_code, unsafe_op_in_unsafe_fn, reason = "pointers into matrices, checked before")]

use std::ops::Range;

use crate::{
    Cpu, Matrix, Precision,
    simd::{Kernel, Number, Simd, Strided},
};

/// Writes the mean of these rows, column by column.
///
/// # Panics
///
/// If the rows are not there, none or bytes, or `out` has not as many numbers as there are columns, a multiple of 16.
pub fn average(cpu: Cpu, x: &Matrix, rows: Range<usize>, out: &mut [f32]) {
    assert!(!rows.is_empty(), "the mean of no rows");
    assert!(out.len() == x.width() && out.len().is_multiple_of(16), "{} means of {}", out.len(), x.width());
    let count = rows.len();
    match x.precision() {
        // SAFETY: the rows are there and as wide as the means, in whole vectors.
        Precision::F32 => unsafe { cpu.run(Means { rows: x.numbers::<f32>(&rows), count, out }) },
        // SAFETY: as above.
        Precision::Bf16 => unsafe { cpu.run(Means { rows: x.numbers::<u16>(&rows), count, out }) },
        Precision::Int8 => panic!("bytes have a scale"),
    }
}

/// `count` rows, as wide as `out`, which is whole vectors.
struct Means<'a, T> {
    rows: Strided<*const T>,
    count: usize,
    out: &'a mut [f32],
}

impl<T: Number> Kernel for Means<'_, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { rows, count, out } = self;
        for column in (0..out.len()).step_by(S::LANES) {
            let mut sum = S::splat(0.0);
            for row in 0..count {
                sum = S::add(sum, T::load::<S>(rows.start.add(row * rows.stride + column)));
            }
            S::store(out.as_mut_ptr().add(column), S::div(sum, S::splat(count as f32)));
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
