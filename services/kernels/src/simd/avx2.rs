//! AVX2 and FMA: 8 lanes, 16 registers.
//!
//! The contract of every function is that of [`Simd`]; each is an instruction, or a few.

#![expect(
    unsafe_code,
    unsafe_op_in_unsafe_fn,
    clippy::missing_safety_doc,
    reason = "instructions that not every CPU has, and pointers to vectors"
)]

use std::arch::x86_64::*;

use super::{Kernel, Simd, Strided};

#[derive(Clone, Copy)]
pub(super) struct Avx2;

/// # Safety
///
/// The CPU has these instructions.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

/// Joins the halves of a vector.
#[inline(always)]
unsafe fn fold(x: __m256, join: impl Fn(__m128, __m128) -> __m128) -> f32 {
    let four = join(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
    let two = join(four, _mm_movehl_ps(four, four));
    _mm_cvtss_f32(join(two, _mm_shuffle_ps::<1>(two, two)))
}

/// The first of two bf16.
#[inline(always)]
unsafe fn low(x: __m256) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(x)))
}

/// The second of two bf16.
#[inline(always)]
unsafe fn high(x: __m256) -> __m256 {
    _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0xffff_0000_u32.cast_signed())))
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;
    type V = __m256;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }

    #[inline(always)]
    unsafe fn splat_word(p: *const u32) -> __m256 {
        _mm256_set1_ps(f32::from_bits(*p))
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        _mm256_loadu_ps(p)
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m256) {
        _mm256_storeu_ps(p, x)
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()))))
    }

    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: __m256) {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        // What is not a number stays none: rounded, it could become infinite.
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(1 << 22));
        let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(x, x);
        let chosen = _mm256_blendv_ps(_mm256_castsi256_ps(rounded), _mm256_castsi256_ps(quiet), nan);
        let high = _mm256_srli_epi32::<16>(_mm256_castps_si256(chosen));
        let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(high, high));
        _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed));
    }

    #[inline(always)]
    unsafe fn store_u8(p: *mut u8, x: __m256) {
        let ints = _mm256_cvtps_epi32(x);
        let shorts = _mm_packs_epi32(_mm256_castsi256_si128(ints), _mm256_extracti128_si256::<1>(ints));
        _mm_storel_epi64(p.cast(), _mm_packus_epi16(shorts, shorts));
    }

    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }

    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        _mm256_sub_ps(a, b)
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        _mm256_mul_ps(a, b)
    }

    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        _mm256_div_ps(a, b)
    }

    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        _mm256_max_ps(a, b)
    }

    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        _mm256_min_ps(a, b)
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    unsafe fn round(x: __m256) -> __m256 {
        _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
    }

    #[inline(always)]
    unsafe fn scale(x: __m256, n: __m256) -> __m256 {
        let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_mul_ps(x, _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent)))
    }

    #[inline(always)]
    unsafe fn from_int(x: __m256) -> __m256 {
        _mm256_cvtepi32_ps(_mm256_castps_si256(x))
    }

    #[inline(always)]
    unsafe fn sum(x: __m256) -> f32 {
        fold(x, |a, b| _mm_add_ps(a, b))
    }

    #[inline(always)]
    unsafe fn greatest(x: __m256) -> f32 {
        fold(x, |a, b| _mm_max_ps(a, b))
    }

    #[inline(always)]
    unsafe fn least(x: __m256) -> f32 {
        fold(x, |a, b| _mm_min_ps(a, b))
    }

    #[inline(always)]
    unsafe fn dot_bf16(sum: __m256, a: __m256, b: __m256) -> __m256 {
        _mm256_fmadd_ps(high(a), high(b), _mm256_fmadd_ps(low(a), low(b), sum))
    }

    #[inline(always)]
    unsafe fn dot_int8(sum: __m256, a: __m256, b: __m256) -> __m256 {
        let (sum, a, b) = (_mm256_castps_si256(sum), _mm256_castps_si256(a), _mm256_castps_si256(b));
        // In 16 bits, of which the product of two bytes needs all: the instruction for bytes saturates.
        let even_a = _mm256_and_si256(a, _mm256_set1_epi16(0xff));
        let odd_a = _mm256_srli_epi16::<8>(a);
        let even_b = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(b));
        let odd_b = _mm256_srai_epi16::<8>(b);
        let products = _mm256_add_epi32(_mm256_madd_epi16(even_a, even_b), _mm256_madd_epi16(odd_a, odd_b));
        _mm256_castsi256_ps(_mm256_add_epi32(sum, products))
    }

    #[inline(always)]
    unsafe fn pair_halves(a: __m256, b: __m256) -> (__m256, __m256) {
        let (a, b) = (_mm256_castps_si256(a), _mm256_castps_si256(b));
        let even = _mm256_castsi256_ps(_mm256_blend_epi16::<0xaa>(a, _mm256_slli_epi32::<16>(b)));
        let odd = _mm256_castsi256_ps(_mm256_blend_epi16::<0xaa>(_mm256_srli_epi32::<16>(a), b));
        // Each has two words of every half of the vector.
        let (lower, upper) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
        (_mm256_permute2f128_ps::<0x20>(lower, upper), _mm256_permute2f128_ps::<0x31>(lower, upper))
    }

    /// In registers: pairs of words, then pairs of pairs, then halves.
    #[inline(always)]
    unsafe fn transpose(from: Strided<*const u32>, rows: usize, to: Strided<*mut u32>) {
        let mut a = [_mm256_setzero_ps(); 8];
        for (row, x) in a.iter_mut().enumerate() {
            if row < rows {
                *x = _mm256_loadu_ps(from.start.add(row * from.stride).cast());
            }
        }
        let mut b = [_mm256_setzero_ps(); 8];
        for i in 0..4 {
            b[2 * i] = _mm256_unpacklo_ps(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm256_unpackhi_ps(a[2 * i], a[2 * i + 1]);
        }
        // a[4 i + c] has, in its half h, column 4 h + c of the rows 4 i to 4 i + 3.
        for i in 0..2 {
            a[4 * i] = _mm256_shuffle_ps::<0x44>(b[4 * i], b[4 * i + 2]);
            a[4 * i + 1] = _mm256_shuffle_ps::<0xee>(b[4 * i], b[4 * i + 2]);
            a[4 * i + 2] = _mm256_shuffle_ps::<0x44>(b[4 * i + 1], b[4 * i + 3]);
            a[4 * i + 3] = _mm256_shuffle_ps::<0xee>(b[4 * i + 1], b[4 * i + 3]);
        }
        for c in 0..4 {
            let put = |column: usize, x: __m256| _mm256_storeu_ps(to.start.add(column * to.stride).cast(), x);
            put(c, _mm256_permute2f128_ps::<0x20>(a[c], a[4 + c]));
            put(4 + c, _mm256_permute2f128_ps::<0x31>(a[c], a[4 + c]));
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u32) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast())
    }
}
