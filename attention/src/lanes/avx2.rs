//! The sixteen lanes as two 256-bit registers.

use super::Lanes;
use std::arch::x86_64::*;

/// Sixteen f32 in two AVX2 registers. FMA and F16C are needed too.
#[derive(Clone, Copy)]
pub struct Avx2(__m256, __m256);

/// Round to nearest, ties to even, whatever the control register says, and raise no exception.
const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// The sum of 8 lanes. The upper half is added onto the lower one until one lane is left: 8 lanes become 4,
/// 2, 1.
///
/// # Safety
///
/// The caller has enabled AVX.
#[inline(always)]
pub(super) unsafe fn sum_of_eight(v: __m256) -> f32 {
    // SAFETY: the caller has AVX.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

#[inline(always)]
unsafe fn widen(bits: __m128i) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits))) }
}

/// Rounds 8 lanes to bf16. The results are in the low halves of 8 32-bit words.
#[inline(always)]
unsafe fn narrow(x: __m256) -> __m256i {
    // SAFETY: the caller has AVX2.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
        let rounded = _mm256_add_epi32(bits, half);
        let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
    }
}

#[inline(always)]
unsafe fn power(x: __m256) -> __m256 {
    // SAFETY: the caller has AVX2.
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}

/// A mask of 8 lanes, which have the indices `offset..offset + 8`: all ones where the index is below `n`,
/// else zero.
#[inline(always)]
unsafe fn first(n: usize, offset: usize) -> __m256 {
    let left = n.saturating_sub(offset).min(8) as i32;
    // SAFETY: the caller has AVX2.
    unsafe {
        let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32(left), index))
    }
}

// SAFETY of the blocks in this impl: by the trait's contract the caller has enabled the features, and
// pointers are valid for 16 elements (32 for pairs). All loads and stores are unaligned ones.
impl Lanes for Avx2 {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see the impl.
        let v = unsafe { _mm256_set1_ps(x) };
        Avx2(v, v)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see the impl.
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let low = widen(_mm_loadu_si128(p.cast()));
            Avx2(low, widen(_mm_loadu_si128(p.add(8).cast())))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
            Avx2(low, _mm256_cvtph_ps(_mm_loadu_si128(p.add(8).cast())))
        }
    }
    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let widen = |p: *const u8| {
                let bits = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
                let sign = _mm256_slli_epi32::<24>(_mm256_and_si256(bits, _mm256_set1_epi32(0x80)));
                let rest = _mm256_slli_epi32::<20>(_mm256_and_si256(bits, _mm256_set1_epi32(0x7f)));
                let unit = _mm256_set1_ps(super::E4M3_UNIT);
                _mm256_mul_ps(_mm256_castsi256_ps(_mm256_or_si256(sign, rest)), unit)
            };
            Avx2(widen(p), widen(p.add(8)))
        }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self, Self) {
        // SAFETY: see the impl.
        unsafe {
            let (a, b) = (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(16).cast()));
            let mask = _mm256_set1_epi32(!0xffff);
            let even = Avx2(
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(a)),
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(b)),
            );
            let odd = Avx2(
                _mm256_castsi256_ps(_mm256_and_si256(a, mask)),
                _mm256_castsi256_ps(_mm256_and_si256(b, mask)),
            );
            (even, odd)
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_div_ps(self.0, other.0), _mm256_div_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_max_ps(self.0, other.0), _mm256_max_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_min_ps(self.0, other.0), _mm256_min_ps(self.1, other.1)) }
    }
    #[inline(always)]
    unsafe fn above(self, other: Self) -> u32 {
        // SAFETY: see the impl.
        unsafe {
            let low = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self.0, other.0));
            let high = _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(self.1, other.1));
            low as u32 | (high as u32) << 8
        }
    }
    #[inline(always)]
    unsafe fn keep_first(self, n: usize, fill: f32) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let fill = _mm256_set1_ps(fill);
            let low = _mm256_blendv_ps(fill, self.0, first(n, 0));
            Avx2(low, _mm256_blendv_ps(fill, self.1, first(n, 8)))
        }
    }
    #[inline(always)]
    unsafe fn drop_first(self, n: usize, fill: f32) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let fill = _mm256_set1_ps(fill);
            let low = _mm256_blendv_ps(self.0, fill, first(n, 0));
            Avx2(low, _mm256_blendv_ps(self.1, fill, first(n, 8)))
        }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }
    #[inline(always)]
    unsafe fn exp2_int(self) -> Self {
        // SAFETY: see the impl.
        unsafe { Avx2(power(self.0), power(self.1)) }
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        // SAFETY: see the impl.
        unsafe {
            // Packing works within 128-bit halves, which gives the order 0..4, 8..12, 4..8, 12..16.
            let packed = _mm256_packus_epi32(narrow(self.0), narrow(self.1));
            _mm256_storeu_si256(p.cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(packed));
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        // SAFETY: see the impl.
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1));
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // This is the same tree of additions as in `Lanes::sum`, done in registers.
        // SAFETY: see the impl.
        unsafe { sum_of_eight(_mm256_add_ps(self.0, self.1)) }
    }
}
