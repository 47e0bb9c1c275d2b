//! Functions of vectors: exponential, GELU and its relatives. The contract of every function is that of [`Simd`].
//!
//! The coefficients are minimax fits made for these intervals (linear programming over Chebyshev nodes); the errors
//! below are those of f32 arithmetic against f64, and tests hold them.

#![expect(
    unsafe_code,
    unsafe_op_in_unsafe_fn,
    clippy::missing_safety_doc,
    reason = "made of the functions of Simd, under the contract of Simd"
)]

use crate::simd::Simd;

/// The least power of e that is not taken for less: e to it is still a normal number.
const EXP_LEAST: f32 = -87.0;

/// 2^x - 1 = x (c0 + c1 x + ...) for |x| <= 1/2; relative error of the whole 2e-7.
const POWER_OF_TWO: [f32; 5] = [std::f32::consts::LN_2, 0.240_222_36, 0.055_505_97, 0.009_671_95, 0.001_330_34];

/// e^x for x from -87 to 0; below, as for -87. For softmax, whose numbers are never positive. Relative error 3e-7, and 1e-7
/// times |x| more: the product with log2 e is rounded.
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    // The operands stand so that what is not a number goes through.
    let x = S::max(S::splat(EXP_LEAST), x);
    let power = S::mul(x, S::splat(std::f32::consts::LOG2_E));
    let whole = S::round(power);
    let part = S::sub(power, whole);
    let mut sum = S::splat(POWER_OF_TWO[4]);
    for c in [POWER_OF_TWO[3], POWER_OF_TWO[2], POWER_OF_TWO[1], POWER_OF_TWO[0], 1.0] {
        sum = S::fma(sum, part, S::splat(c));
    }
    S::scale(sum, whole)
}

/// Horner's rule.
#[inline(always)]
unsafe fn polynomial<S: Simd, const N: usize>(x: S::V, coefficients: &[f32; N]) -> S::V {
    let mut sum = S::splat(coefficients[N - 1]);
    for c in coefficients[..N - 1].iter().rev() {
        sum = S::fma(sum, x, S::splat(*c));
    }
    sum
}

#[inline(always)]
unsafe fn clamp<S: Simd>(x: S::V, bound: f32) -> S::V {
    // The operands stand so that what is not a number goes through.
    S::max(S::splat(-bound), S::min(S::splat(bound), x))
}

/// Cut to 0 to 6.
#[inline(always)]
pub(crate) unsafe fn relu6<S: Simd>(x: S::V) -> S::V {
    // The operands stand so that what is not a number goes through.
    S::min(S::splat(6.0), S::max(S::splat(0.0), x))
}

/// Beyond it the normal distribution is 0 or 1 to f32.
const GELU_BOUND: f32 = 5.6;
const GELU_ABOVE: [f32; 6] =
    [0.398_942_9, 0.032_854_427, 0.004_603_153, 0.000_156_055_16, 6.017_760_4e-6, 2.211_873_1e-8];
const GELU_BELOW: [f32; 6] = [1.0, 0.249_025_18, 0.028_037_882, 0.001_816_988, 6.814_602e-5, 1.153_437_2e-6];

/// x times the normal distribution's area below x (Hendrycks and Gimpel, 2016), as a quotient of polynomials; absolute
/// error 2e-6, relative to |x| 3e-7.
#[inline(always)]
pub(crate) unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    let near = clamp::<S>(x, GELU_BOUND);
    let square = S::mul(near, near);
    let above = S::mul(near, polynomial::<S, 6>(square, &GELU_ABOVE));
    let area = S::add(S::div(above, polynomial::<S, 6>(square, &GELU_BELOW)), S::splat(0.5));
    S::mul(x, area)
}

const ROUGH_BOUND: f32 = 4.2;
const ROUGH: [f32; 8] = [
    0.398_465_87,
    -0.065_528_2,
    0.009_298_226,
    -0.000_950_656_6,
    6.689_057e-5,
    -3.037_923e-6,
    7.941_308e-8,
    -9.017_487e-10,
];

/// The same with an absolute error below 1e-4 + 5e-6 |x|, without a division: for what is rounded to
/// 8 bits afterwards.
#[inline(always)]
pub(crate) unsafe fn gelu_rough<S: Simd>(x: S::V) -> S::V {
    let near = clamp::<S>(x, ROUGH_BOUND);
    let area = S::fma(near, polynomial::<S, 8>(S::mul(near, near), &ROUGH), S::splat(0.5));
    S::mul(x, area)
}

/// The same by a hyperbolic tangent, which some checkpoints were trained with: x / (1 + e^(-2 u)), where u is
/// sqrt(2 / pi) (x + 0.044715 x^3).
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<S: Simd>(x: S::V) -> S::V {
    const TWICE_ROOT_2_OVER_PI: f32 = 1.595_769_2;
    let inner =
        S::mul(x, S::fma(S::mul(x, x), S::splat(0.044_715 * TWICE_ROOT_2_OVER_PI), S::splat(TWICE_ROOT_2_OVER_PI)));
    // e^-|2u|, which never overflows: x / (1 + e) for positive u, x e / (1 + e) for negative.
    let size = S::max(inner, S::sub(S::splat(0.0), inner));
    let power = exp::<S>(S::sub(S::splat(0.0), size));
    let share = S::div(S::splat(1.0), S::add(S::splat(1.0), power));
    let positive = S::mul(S::max(x, S::splat(0.0)), share);
    let negative = S::mul(S::mul(S::min(x, S::splat(0.0)), power), share);
    S::add(positive, negative)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Cpu,
        naive::{cpus, gelu as exact_gelu},
        simd::Kernel,
    };

    #[derive(Clone, Copy)]
    enum Function {
        Exp,
        Gelu,
        GeluRough,
        GeluTanh,
    }

    struct Each<'a>(Function, &'a mut [f32]);

    impl Kernel for Each<'_> {
        type Output = ();

        #[inline(always)]
        unsafe fn run<S: Simd>(self) {
            for values in self.1.chunks_exact_mut(S::LANES) {
                let x = S::load(values.as_ptr());
                let y = match self.0 {
                    Function::Exp => exp::<S>(x),
                    Function::Gelu => gelu::<S>(x),
                    Function::GeluRough => gelu_rough::<S>(x),
                    Function::GeluTanh => gelu_tanh::<S>(x),
                };
                S::store(values.as_mut_ptr(), y);
            }
        }
    }

    /// The function at `points`, in all tiers; each must be within `absolute + relative x |x|` of the exact one.
    fn check(function: Function, points: &[f32], exact: fn(f64) -> f64, (absolute, relative): (f64, f64)) {
        for cpu in cpus() {
            let mut values = points.to_vec();
            // SAFETY: the kernel takes whole vectors of a slice.
            unsafe { cpu.run(Each(function, &mut values)) };
            for (x, y) in points.iter().zip(&values) {
                let exact = exact(f64::from(*x));
                let bound = absolute + relative * f64::from(x.abs());
                assert!((f64::from(*y) - exact).abs() <= bound, "{}: {y} instead of {exact} at {x}", cpu.tier());
            }
        }
    }

    fn points(least: f32, greatest: f32) -> Vec<f32> {
        (0..1 << 14).map(|i| least + (greatest - least) * i as f32 / (1 << 14) as f32).collect()
    }

    #[test]
    fn activations_are_exact_to_their_bounds() {
        let tanh =
            |x: f64| 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh());
        for points in [points(-9.0, 9.0), points(-1e-3, 1e-3), points(-1e4, 1e4)] {
            check(Function::Gelu, &points, exact_gelu, (2e-6, 3e-7));
            check(Function::GeluRough, &points, exact_gelu, (1e-4, 5e-6));
            check(Function::GeluTanh, &points, tanh, (2e-6, 3e-7));
        }
    }

    #[test]
    fn the_exponential_of_what_is_not_positive_is_exact() {
        for cpu in cpus() {
            let points = points(-87.0, 0.0);
            let mut values = points.clone();
            // SAFETY: as above.
            unsafe { cpu.run(Each(Function::Exp, &mut values)) };
            for (x, y) in points.iter().zip(&values) {
                let relative = f64::from(*y) / f64::from(*x).exp() - 1.0;
                // The product with log2 e is rounded, which counts the more the larger it is.
                assert!(relative.abs() < 3e-7 + 1e-7 * f64::from(x.abs()), "{}: {y} at {x}", cpu.tier());
            }
        }
    }

    fn of(cpu: Cpu, function: Function, x: f32) -> [f32; 16] {
        let mut values = [x; 16];
        // SAFETY: as above.
        unsafe { cpu.run(Each(function, &mut values)) };
        values
    }

    #[test]
    fn infinities_and_what_is_not_a_number_come_out_as_they_should() {
        for cpu in cpus() {
            let activations = [Function::Gelu, Function::GeluRough, Function::GeluTanh];
            for function in activations.into_iter().chain([Function::Exp]) {
                assert!(of(cpu, function, f32::NAN).iter().all(|x| x.is_nan()), "{}", cpu.tier());
            }
            for function in activations {
                assert_eq!(of(cpu, function, f32::INFINITY), [f32::INFINITY; 16], "{}", cpu.tier());
                // Minus infinity by an area of 0, or of what rounding has left of it: either is seen.
                assert!(of(cpu, function, f32::NEG_INFINITY).iter().all(|x| !x.is_finite()), "{}", cpu.tier());
            }
            assert!(of(cpu, Function::Exp, f32::NEG_INFINITY).iter().all(|x| (0.0..1e-37).contains(x)));
        }
    }
}
