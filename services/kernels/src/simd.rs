//! Vectors, as the kernels see them, and the way from a safe function to code compiled for a set of instructions.
//!
//! A kernel is a struct with its arguments that implements [`Kernel`]; [`Cpu::run`] calls it inside a function that has
//! the instructions of the tier enabled. Everything below is `inline(always)`, so that it is compiled there and not
//! before: a function of its own would be compiled for the least of all x86-64 CPUs.

#![expect(unsafe_code, reason = "instructions that not every CPU has")]

use crate::{Precision, Tier, memory::Plain};

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

/// A tier that this CPU has: the proof that its instructions may be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu(Tier);

/// Work for the vectors of any tier.
pub(crate) trait Kernel {
    type Output;

    /// To be implemented `inline(always)`.
    ///
    /// # Safety
    ///
    /// The instructions of `S` are there, and what the kernel's type says of its pointers and shapes is so.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// Vectors of one width, in registers. A vector holds f32s, or 32-bit words of another kind in the same bits.
///
/// # Safety
///
/// All functions need the instructions of the tier. Those with pointers read or write [`Self::LANES`] values there
/// (words, if not said otherwise), aligned as their type is.
#[expect(clippy::missing_safety_doc, reason = "one contract for all functions")]
pub(crate) trait Simd: Copy {
    /// Values in a vector.
    const LANES: usize;
    /// Rows of a product that are computed together: the sums of twice as many vectors fit into the registers, beside
    /// two of weights and one of an input.
    const TILE_ROWS: usize;
    type V: Copy;

    unsafe fn splat(x: f32) -> Self::V;
    /// The same 32 bits in all lanes.
    unsafe fn splat_word(p: *const u32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, x: Self::V);
    /// From bf16, of which there are as many as lanes.
    unsafe fn load_bf16(p: *const u16) -> Self::V;
    /// To bf16, rounded to the nearest, ties to even.
    unsafe fn store_bf16(p: *mut u16, x: Self::V);
    /// To bytes, rounded to the nearest (ties to even) of 0 to 255.
    unsafe fn store_u8(p: *mut u8, x: Self::V);

    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// The second if one is not a number.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The second if one is not a number.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// a x b + c.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// To the nearest integer, ties to even.
    unsafe fn round(x: Self::V) -> Self::V;
    /// x times 2 to the power of n, an integer from -126 to 127.
    unsafe fn scale(x: Self::V, n: Self::V) -> Self::V;
    /// From i32.
    unsafe fn from_int(x: Self::V) -> Self::V;

    unsafe fn sum(x: Self::V) -> f32;
    unsafe fn greatest(x: Self::V) -> f32;
    unsafe fn least(x: Self::V) -> f32;

    /// Adds to every f32 the products of two bf16 by two.
    unsafe fn dot_bf16(sum: Self::V, a: Self::V, b: Self::V) -> Self::V;
    /// Adds to every i32 the products of four u8 (of `a`) by four i8 (of `b`), exactly.
    unsafe fn dot_int8(sum: Self::V, a: Self::V, b: Self::V) -> Self::V;

    /// Pairs the 16-bit halves of words: (low of a, low of b), (high of a, high of b) for each word in turn.
    unsafe fn pair_halves(a: Self::V, b: Self::V) -> (Self::V, Self::V);

    /// Writes the transpose of LANES words of each of `rows` rows; rows up to LANES that are not there are zeros.
    unsafe fn transpose(from: Strided<*const u32>, rows: usize, to: Strided<*mut u32>);

    /// Asks for the cache line of `p` in the second-level cache. Any address will do.
    unsafe fn prefetch(p: *const u32);
}

/// Rows in memory: those of a matrix come from [`crate::Matrix::words_of`], [`crate::Matrix::numbers`] and
/// [`crate::Matrix::numbers_mut`], which check them. Nothing here knows how many there are.
#[derive(Clone, Copy)]
pub(crate) struct Strided<P> {
    pub(crate) start: P,
    /// From one row to the next, in elements.
    pub(crate) stride: usize,
}

/// A number as it lies in memory: an f32, or the bits of a bf16.
pub(crate) trait Number: Plain {
    const PRECISION: Precision;

    /// # Safety
    ///
    /// That of [`Simd`]: as many numbers as lanes are read.
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;

    /// # Safety
    ///
    /// That of [`Simd`]: as many numbers as lanes are written.
    unsafe fn store<S: Simd>(p: *mut Self, x: S::V);
}

impl Number for f32 {
    const PRECISION: Precision = Precision::F32;

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load(p) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut f32, x: S::V) {
        // SAFETY: the caller's promise.
        unsafe { S::store(p, x) }
    }
}

impl Number for u16 {
    const PRECISION: Precision = Precision::Bf16;

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const u16) -> S::V {
        // SAFETY: the caller's promise.
        unsafe { S::load_bf16(p) }
    }

    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut u16, x: S::V) {
        // SAFETY: the caller's promise.
        unsafe { S::store_bf16(p, x) }
    }
}

struct Lanes;

// === impl Lanes ===

impl Kernel for Lanes {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> usize {
        // What scratch rows and gaps between rows are made for.
        const { assert!(16 % S::LANES == 0 && S::TILE_ROWS <= 8) };
        S::LANES
    }
}

// === impl Cpu ===

impl Cpu {
    /// None if this CPU has not the instructions of the tier.
    #[must_use]
    pub fn with(tier: Tier) -> Option<Self> {
        tier.is_available().then_some(Self(tier))
    }

    /// The most capable tier that there is.
    #[must_use]
    pub fn best() -> Self {
        Self(Tier::detect())
    }

    /// The tier.
    #[must_use]
    pub fn tier(self) -> Tier {
        self.0
    }

    /// Values in a vector.
    pub(crate) fn lanes(self) -> usize {
        // SAFETY: the kernel touches no memory.
        unsafe { self.run(Lanes) }
    }

    /// Runs a kernel.
    ///
    /// # Safety
    ///
    /// What the kernel's type says of its pointers and shapes is so.
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: a value of this type exists only for a tier that the CPU has; the rest is the caller's promise.
        unsafe {
            match self.0 {
                #[cfg(target_arch = "x86_64")]
                Tier::Avx512Dot => avx512::run_dot(kernel),
                #[cfg(target_arch = "x86_64")]
                Tier::Avx512 => avx512::run(kernel),
                #[cfg(target_arch = "x86_64")]
                Tier::Avx2 => avx2::run(kernel),
                _ => kernel.run::<portable::Portable>(),
            }
        }
    }
}
