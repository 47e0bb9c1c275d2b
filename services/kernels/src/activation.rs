//! Functions that some families apply between dense layers instead of GELU, in a pass of their own.

#![expect(unsafe_code, unsafe_op_in_unsafe_fn, reason = "pointers into matrices, checked before")]

use std::ops::Range;

use crate::{
    Cpu, Matrix, Precision, math,
    simd::{Kernel, Number, Simd, Strided},
};

/// A function of every number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// GELU by a hyperbolic tangent.
    GeluTanh,
    /// The positive part.
    Relu,
}

/// Applies the function to these rows, in place.
///
/// # Panics
///
/// If the rows are not there, or bytes, or their columns no multiple of 16.
pub fn activate(cpu: Cpu, x: &mut Matrix, rows: Range<usize>, activation: Activation) {
    let width = x.width();
    assert!(width.is_multiple_of(16), "{width} columns are no whole vectors");
    let count = rows.len();
    match x.precision() {
        // SAFETY: the rows are there, of whole vectors.
        Precision::F32 => unsafe { cpu.run(Each { rows: x.numbers_mut::<f32>(&rows), count, width, activation }) },
        // SAFETY: as above.
        Precision::Bf16 => unsafe { cpu.run(Each { rows: x.numbers_mut::<u16>(&rows), count, width, activation }) },
        Precision::Int8 => panic!("bytes have a scale"),
    }
}

/// `count` rows of whole vectors.
struct Each<T> {
    rows: Strided<*mut T>,
    count: usize,
    width: usize,
    activation: Activation,
}

impl<T: Number> Kernel for Each<T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { rows, count, width, activation } = self;
        for row in 0..count {
            for column in (0..width).step_by(S::LANES) {
                let place = rows.start.add(row * rows.stride + column);
                T::store::<S>(place, apply::<S>(activation, T::load::<S>(place)));
            }
        }
    }
}

/// # Safety
///
/// That of [`Simd`].
#[inline(always)]
unsafe fn apply<S: Simd>(activation: Activation, x: S::V) -> S::V {
    match activation {
        Activation::GeluTanh => math::gelu_tanh::<S>(x),
        // The operands stand so that what is not a number goes through.
        Activation::Relu => S::max(S::splat(0.0), x),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::naive::{NANS, assert_near, cpus, matrix, noise, read, with_gaps};

    fn expected(activation: Activation, x: f32) -> f64 {
        let x = f64::from(x);
        match activation {
            Activation::GeluTanh => {
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
            }
            Activation::Relu => x.max(0.0),
        }
    }

    proptest! {
        #[test]
        fn the_function_of_these_rows_is_there_and_the_others_are_as_they_were(
            rows in 1_usize..9, range in (0_usize..9, 0_usize..9), vectors in 1_usize..5, seed in 0_u64..1000,
        ) {
            let (width, first) = (vectors * 16, range.0 % rows);
            let last = first + range.1 % (rows - first + 1);
            let values: Vec<f32> = noise(rows * width, seed).iter().map(|x| x * 6.0).collect();
            for (cpu, activation) in cpus().into_iter().flat_map(|cpu| [(cpu, Activation::GeluTanh), (cpu, Activation::Relu)]) {
                for (precision, tolerance) in [(Precision::F32, 2e-6), (Precision::Bf16, 0.005)] {
                    let x = matrix(cpu, precision, width, &values);
                    for mut x in [with_gaps(&x), x] {
                        let before = read(&x);
                        activate(cpu, &mut x, first..last, activation);
                        let after = read(&x);
                        let (from, to) = (first * width, last * width);
                        prop_assert_eq!(&after[..from], &before[..from]);
                        prop_assert_eq!(&after[to..], &before[to..]);
                        let exact: Vec<f64> = before[from..to].iter().map(|x| expected(activation, *x)).collect();
                        assert_near(&after[from..to], &exact, tolerance, &format!("{} {precision} {activation:?}", cpu.tier()));
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_a_number_stays_where_it_is() {
        for cpu in cpus() {
            for precision in [Precision::F32, Precision::Bf16] {
                let activations = [Activation::GeluTanh, Activation::Relu];
                for (activation, poison) in activations.into_iter().flat_map(|any| NANS.map(|nan| (any, nan))) {
                    let mut values = noise(32, 1);
                    values[17] = poison;
                    let mut x = matrix(cpu, precision, 32, &values);
                    activate(cpu, &mut x, 0..1, activation);
                    for (column, x) in read(&x).iter().enumerate() {
                        assert_eq!(x.is_nan(), column == 17, "{} {precision} {activation:?}: {column}", cpu.tier());
                    }
                }
            }
        }
    }
}
