//! Functions that some families apply between dense layers instead of GELU, in a pass of their own.

#![expect(unsafe_code, unsafe_op_in_unsafe_fn, reason = "pointers into matrices, checked before")]

use std::ops::Range;

use crate::{
    Cpu, Matrix, Precision, math,
    simd::{Kernel, Simd},
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
    assert!(rows.end <= x.rows() && x.width().is_multiple_of(16), "rows {rows:?} of {}", x.rows());
    assert_ne!(x.precision(), Precision::Int8, "bytes have a scale");
    cpu.run(Each { x, rows, activation });
}

struct Each<'a> {
    x: &'a mut Matrix,
    rows: Range<usize>,
    activation: Activation,
}

impl Kernel for Each<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let Self { x, rows, activation } = self;
        let (precision, width, stride) = (x.precision(), x.width(), x.stride());
        for row in rows {
            let words = x.words_mut()[row * stride..].as_mut_ptr();
            for column in (0..width).step_by(S::LANES) {
                if precision == Precision::F32 {
                    let place: *mut f32 = words.cast::<f32>().add(column);
                    S::store(place, apply::<S>(activation, S::load(place)));
                } else {
                    let place: *mut u16 = words.cast::<u16>().add(column);
                    S::store_bf16(place, apply::<S>(activation, S::load_bf16(place)));
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn apply<S: Simd>(activation: Activation, x: S::V) -> S::V {
    match activation {
        Activation::GeluTanh => math::gelu_tanh::<S>(x),
        // The operands stand so that what is not a number goes through.
        Activation::Relu => S::max(S::splat(0.0), x),
    }
}
