//! AVX-512: 16 lanes, 32 registers.
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

/// With (`DOT`) or without the instructions for dot products of bf16 and int8.
#[derive(Clone, Copy)]
pub(super) struct Avx512<const DOT: bool>;

/// # Safety
///
/// The CPU has these instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx512vnni,avx2,fma")]
pub(super) unsafe fn run_dot<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512<true>>()
}

/// # Safety
///
/// The CPU has these instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512<false>>()
}

/// The first of two bf16.
#[inline(always)]
unsafe fn low(x: __m512) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(x)))
}

/// The second of two bf16.
#[inline(always)]
unsafe fn high(x: __m512) -> __m512 {
    _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0xffff_0000_u32.cast_signed())))
}

impl<const DOT: bool> Simd for Avx512<DOT> {
    const LANES: usize = 16;
    const TILE_ROWS: usize = 8;
    type V = __m512;

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }

    #[inline(always)]
    unsafe fn splat_word(p: *const u32) -> __m512 {
        _mm512_set1_ps(f32::from_bits(*p))
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        _mm512_storeu_ps(p, x)
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()))))
    }

    #[inline(always)]
    unsafe fn store_bf16(p: *mut u16, x: __m512) {
        let halves = if DOT {
            std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x))
        } else {
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
            // What is not a number stays none: rounded, it could become infinite.
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(1 << 22));
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(_mm512_mask_mov_epi32(rounded, nan, quiet)))
        };
        _mm256_storeu_si256(p.cast(), halves);
    }

    #[inline(always)]
    unsafe fn store_u8(p: *mut u8, x: __m512) {
        let positive = _mm512_max_epi32(_mm512_cvtps_epi32(x), _mm512_setzero_si512());
        _mm_storeu_si128(p.cast(), _mm512_cvtusepi32_epi8(positive));
    }

    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }

    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        _mm512_sub_ps(a, b)
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        _mm512_mul_ps(a, b)
    }

    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        _mm512_div_ps(a, b)
    }

    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        _mm512_max_ps(a, b)
    }

    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        _mm512_min_ps(a, b)
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }

    #[inline(always)]
    unsafe fn round(x: __m512) -> __m512 {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
    }

    #[inline(always)]
    unsafe fn scale(x: __m512, n: __m512) -> __m512 {
        _mm512_scalef_ps(x, n)
    }

    #[inline(always)]
    unsafe fn from_int(x: __m512) -> __m512 {
        _mm512_cvtepi32_ps(_mm512_castps_si512(x))
    }

    #[inline(always)]
    unsafe fn sum(x: __m512) -> f32 {
        _mm512_reduce_add_ps(x)
    }

    #[inline(always)]
    unsafe fn greatest(x: __m512) -> f32 {
        _mm512_reduce_max_ps(x)
    }

    #[inline(always)]
    unsafe fn least(x: __m512) -> f32 {
        _mm512_reduce_min_ps(x)
    }

    #[inline(always)]
    unsafe fn dot_bf16(sum: __m512, a: __m512, b: __m512) -> __m512 {
        if DOT {
            let (a, b) = (std::mem::transmute::<__m512, __m512bh>(a), std::mem::transmute::<__m512, __m512bh>(b));
            return _mm512_dpbf16_ps(sum, a, b);
        }
        _mm512_fmadd_ps(high(a), high(b), _mm512_fmadd_ps(low(a), low(b), sum))
    }

    #[inline(always)]
    unsafe fn dot_int8(sum: __m512, a: __m512, b: __m512) -> __m512 {
        let (sum, a, b) = (_mm512_castps_si512(sum), _mm512_castps_si512(a), _mm512_castps_si512(b));
        if DOT {
            return _mm512_castsi512_ps(_mm512_dpbusd_epi32(sum, a, b));
        }
        // In 16 bits, of which the product of two bytes needs all: the instruction for bytes saturates.
        let even_a = _mm512_and_si512(a, _mm512_set1_epi16(0xff));
        let odd_a = _mm512_srli_epi16::<8>(a);
        let even_b = _mm512_srai_epi16::<8>(_mm512_slli_epi16::<8>(b));
        let odd_b = _mm512_srai_epi16::<8>(b);
        let products = _mm512_add_epi32(_mm512_madd_epi16(even_a, even_b), _mm512_madd_epi16(odd_a, odd_b));
        _mm512_castsi512_ps(_mm512_add_epi32(sum, products))
    }

    #[inline(always)]
    unsafe fn pair_halves(a: __m512, b: __m512) -> (__m512, __m512) {
        let (a, b) = (_mm512_castps_si512(a), _mm512_castps_si512(b));
        let even = _mm512_mask_blend_epi16(0xaaaa_aaaa, a, _mm512_slli_epi32::<16>(b));
        let odd = _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_srli_epi32::<16>(a), b);
        let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        let word = |x| _mm512_castsi512_ps(x);
        (word(_mm512_permutex2var_epi32(even, first, odd)), word(_mm512_permutex2var_epi32(even, second, odd)))
    }

    /// In registers: pairs of words, then pairs of pairs, then two rounds of quarters.
    #[inline(always)]
    unsafe fn transpose(from: Strided<*const u32>, rows: usize, to: Strided<*mut u32>) {
        let mut a = [_mm512_setzero_si512(); 16];
        for (row, x) in a.iter_mut().enumerate() {
            if row < rows {
                *x = _mm512_loadu_si512(from.start.add(row * from.stride).cast());
            }
        }
        let mut b = [_mm512_setzero_si512(); 16];
        for i in 0..8 {
            b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
        }
        // a[4 i + c] has, in its quarter q, column 4 q + c of the rows 4 i to 4 i + 3.
        for i in 0..4 {
            a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
            a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
            a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
            a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
        }
        for c in 0..4 {
            let upper_even = _mm512_shuffle_i32x4::<0x88>(a[c], a[4 + c]);
            let upper_odd = _mm512_shuffle_i32x4::<0xdd>(a[c], a[4 + c]);
            let lower_even = _mm512_shuffle_i32x4::<0x88>(a[8 + c], a[12 + c]);
            let lower_odd = _mm512_shuffle_i32x4::<0xdd>(a[8 + c], a[12 + c]);
            let put = |column: usize, x: __m512i| {
                _mm512_storeu_si512(to.start.add(column * to.stride).cast(), x);
            };
            put(c, _mm512_shuffle_i32x4::<0x88>(upper_even, lower_even));
            put(4 + c, _mm512_shuffle_i32x4::<0x88>(upper_odd, lower_odd));
            put(8 + c, _mm512_shuffle_i32x4::<0xdd>(upper_even, lower_even));
            put(12 + c, _mm512_shuffle_i32x4::<0xdd>(upper_odd, lower_odd));
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u32) {
        _mm_prefetch::<_MM_HINT_T1>(p.cast())
    }
}
