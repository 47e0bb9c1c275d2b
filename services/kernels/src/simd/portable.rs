//! Plain Rust in lanes of 8, which compilers turn into whatever vectors the target has by default.
//!
//! The contract of every function is that of [`Simd`]; each is an instruction, or a few.

#![expect(unsafe_code, unsafe_op_in_unsafe_fn, reason = "pointers to vectors, under the contract of Simd")]

use super::{Simd, Strided};
use crate::weights::{narrow, nearest_even};

const LANES: usize = 8;

#[derive(Clone, Copy)]
pub(super) struct Portable;

type V = [f32; LANES];

#[inline(always)]
fn zip(a: V, b: V, join: impl Fn(f32, f32) -> f32) -> V {
    std::array::from_fn(|i| join(a[i], b[i]))
}

/// Joins halves, as the vectors of the other tiers are joined.
#[inline(always)]
fn fold(x: V, join: impl Fn(f32, f32) -> f32) -> f32 {
    let four: [f32; 4] = std::array::from_fn(|i| join(x[i], x[i + 4]));
    join(join(four[0], four[2]), join(four[1], four[3]))
}

impl Simd for Portable {
    const LANES: usize = LANES;
    const TILE_ROWS: usize = if cfg!(target_arch = "aarch64") { 6 } else { 3 };
    type V = V;

    #[inline(always)]
    unsafe fn splat(x: f32) -> V {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn splat_word(p: *const u32) -> V {
        [f32::from_bits(*p); LANES]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> V {
        p.cast::<V>().read_unaligned()
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, x: V) {
        p.cast::<V>().write_unaligned(x)
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> V {
        std::array::from_fn(|i| f32::from_bits(u32::from(*p.add(i)) << 16))
    }

    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: V) {
        for (i, x) in x.into_iter().enumerate() {
            *p.add(i) = narrow(x)
        }
    }

    #[inline(always)]
    unsafe fn store_u8(p: *mut u8, x: V) {
        for (i, x) in x.into_iter().enumerate() {
            *p.add(i) = nearest_even(x) as u8
        }
    }

    #[inline(always)]
    unsafe fn add(a: V, b: V) -> V {
        zip(a, b, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn sub(a: V, b: V) -> V {
        zip(a, b, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn mul(a: V, b: V) -> V {
        zip(a, b, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn div(a: V, b: V) -> V {
        zip(a, b, |a, b| a / b)
    }

    #[inline(always)]
    unsafe fn max(a: V, b: V) -> V {
        zip(a, b, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn min(a: V, b: V) -> V {
        zip(a, b, |a, b| if a < b { a } else { b })
    }

    /// In one step only where the target always has the instruction: elsewhere that would be a call into the C library.
    #[inline(always)]
    unsafe fn fma(a: V, b: V, c: V) -> V {
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            std::array::from_fn(|i| a[i].mul_add(b[i], c[i]))
        } else {
            std::array::from_fn(|i| a[i] * b[i] + c[i])
        }
    }

    #[inline(always)]
    unsafe fn round(x: V) -> V {
        // Adding 1.5 x 2^23 leaves no bit for a fraction; good for magnitudes up to 2^22, which is far beyond an exponent.
        const SHIFT: f32 = 12_582_912.0;
        x.map(|x| (x + SHIFT) - SHIFT)
    }

    #[inline(always)]
    unsafe fn scale(x: V, n: V) -> V {
        zip(x, n, |x, n| x * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }

    #[inline(always)]
    unsafe fn from_int(x: V) -> V {
        x.map(|x| x.to_bits().cast_signed() as f32)
    }

    #[inline(always)]
    unsafe fn sum(x: V) -> f32 {
        fold(x, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn greatest(x: V) -> f32 {
        fold(x, |a, b| if a > b { a } else { b })
    }

    #[inline(always)]
    unsafe fn least(x: V) -> f32 {
        fold(x, |a, b| if a < b { a } else { b })
    }

    #[inline(always)]
    unsafe fn dot_bf16(sum: V, a: V, b: V) -> V {
        let low = |x: V| x.map(|x| f32::from_bits(x.to_bits() << 16));
        let high = |x: V| x.map(|x| f32::from_bits(x.to_bits() & 0xffff_0000));
        Self::fma(high(a), high(b), Self::fma(low(a), low(b), sum))
    }

    #[inline(always)]
    unsafe fn dot_int8(sum: V, a: V, b: V) -> V {
        std::array::from_fn(|i| {
            let (a, b) = (a[i].to_bits().to_le_bytes(), b[i].to_bits().to_le_bytes());
            let products = (0..4).map(|k| i32::from(a[k]) * i32::from(b[k].cast_signed()));
            f32::from_bits((sum[i].to_bits().cast_signed() + products.sum::<i32>()).cast_unsigned())
        })
    }

    #[inline(always)]
    unsafe fn pair_halves(a: V, b: V) -> (V, V) {
        let pair = |word: usize| {
            let (a, b) = (a[word / 2].to_bits(), b[word / 2].to_bits());
            let word = if word.is_multiple_of(2) { a & 0xffff | b << 16 } else { a >> 16 | b & 0xffff_0000 };
            f32::from_bits(word)
        };
        (std::array::from_fn(pair), std::array::from_fn(|word| pair(word + LANES)))
    }

    #[inline(always)]
    unsafe fn transpose(from: Strided<*const u32>, rows: usize, to: Strided<*mut u32>) {
        for column in 0..LANES {
            for row in 0..LANES {
                let word = if row < rows { *from.start.add(row * from.stride + column) } else { 0 };
                *to.start.add(column * to.stride + row) = word;
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u32) {}
}
