//! 8-bit products on x86-64.

use std::arch::x86_64::*;

use super::product::Share;
use super::unit::Bytes;
use pagedraft_attention::lanes::{Avx2 as Avx2Lanes, Avx512 as Avx512Lanes};

/// Does one share of a product.
///
/// # Safety
///
/// The machine has AVX-512 with VNNI; otherwise those of [`Share::run`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,bmi1,bmi2")]
pub(super) unsafe fn enter_avx512_vnni(share: Share<'_>) {
    // SAFETY: as the caller's; the features are enabled.
    unsafe { share.run::<Avx512Vnni, Avx512Lanes>() };
}

/// Does one share of a product.
///
/// # Safety
///
/// The machine has AVX2 and AVX-VNNI; otherwise those of [`Share::run`].
#[target_feature(enable = "avxvnni,avx2,fma,f16c,bmi1,bmi2")]
pub(super) unsafe fn enter_avx_vnni(share: Share<'_>) {
    // SAFETY: as the caller's; the features are enabled.
    unsafe { share.run::<AvxVnni, Avx2Lanes>() };
}

/// Does one share of a product.
///
/// # Safety
///
/// The machine has AVX2; otherwise those of [`Share::run`].
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
pub(super) unsafe fn enter_avx2(share: Share<'_>) {
    // SAFETY: as the caller's; the features are enabled.
    unsafe { share.run::<Avx2, Avx2Lanes>() };
}

struct Avx512Vnni;

impl Bytes for Avx512Vnni {
    type Weights = __m512i;
    type Inputs = __m512i;
    type Sums = __m512i;
    const PANELS: usize = 2;

    #[inline(always)]
    unsafe fn zeros() -> __m512i {
        // SAFETY: the caller has the features.
        unsafe { _mm512_setzero_si512() }
    }

    #[inline(always)]
    unsafe fn weights(at: *const u8) -> __m512i {
        // SAFETY: the caller has the features and passes 64 bytes.
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    #[inline(always)]
    unsafe fn inputs(at: *const u32) -> __m512i {
        // SAFETY: the caller has the features and passes 4 bytes.
        unsafe { _mm512_set1_epi32(at.read() as i32) }
    }

    #[inline(always)]
    unsafe fn add(sums: __m512i, w: __m512i, x: __m512i) -> __m512i {
        // SAFETY: the caller has the features.
        unsafe { _mm512_dpbusd_epi32(sums, w, x) }
    }

    #[inline(always)]
    unsafe fn join(sums: __m512i, offset: i32, scales: *const u16, scale: f32, acc: *mut f32) {
        // SAFETY: the caller has the features and passes 16 scales and 16 sums.
        unsafe {
            let sums = _mm512_cvtepi32_ps(_mm512_add_epi32(sums, _mm512_set1_epi32(offset)));
            let of_weights = _mm512_cvtph_ps(_mm256_loadu_si256(scales.cast()));
            let joined =
                _mm512_fmadd_ps(_mm512_mul_ps(sums, of_weights), _mm512_set1_ps(scale), _mm512_loadu_ps(acc));
            _mm512_storeu_ps(acc, joined);
        }
    }
}

/// Joins the sums of 8 outputs.
#[inline(always)]
unsafe fn join_half(sums: __m256i, offset: i32, scales: *const u16, scale: f32, acc: *mut f32) {
    // SAFETY: the caller has AVX2, FMA and F16C, and passes 8 scales and 8 sums.
    unsafe {
        let sums = _mm256_cvtepi32_ps(_mm256_add_epi32(sums, _mm256_set1_epi32(offset)));
        let of_weights = _mm256_cvtph_ps(_mm_loadu_si128(scales.cast()));
        let joined =
            _mm256_fmadd_ps(_mm256_mul_ps(sums, of_weights), _mm256_set1_ps(scale), _mm256_loadu_ps(acc));
        _mm256_storeu_ps(acc, joined);
    }
}

struct AvxVnni;

impl Bytes for AvxVnni {
    type Weights = [__m256i; 2];
    type Inputs = __m256i;
    type Sums = [__m256i; 2];
    const PANELS: usize = 1;

    #[inline(always)]
    unsafe fn zeros() -> [__m256i; 2] {
        // SAFETY: the caller has the features.
        unsafe { [_mm256_setzero_si256(); 2] }
    }

    #[inline(always)]
    unsafe fn weights(at: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller has the features and passes 64 bytes.
        unsafe { [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn inputs(at: *const u32) -> __m256i {
        // SAFETY: the caller has the features and passes 4 bytes.
        unsafe { _mm256_set1_epi32(at.read() as i32) }
    }

    #[inline(always)]
    unsafe fn add(sums: [__m256i; 2], w: [__m256i; 2], x: __m256i) -> [__m256i; 2] {
        // SAFETY: the caller has the features.
        unsafe { [_mm256_dpbusd_avx_epi32(sums[0], w[0], x), _mm256_dpbusd_avx_epi32(sums[1], w[1], x)] }
    }

    #[inline(always)]
    unsafe fn join(sums: [__m256i; 2], offset: i32, scales: *const u16, scale: f32, acc: *mut f32) {
        // SAFETY: the caller has the features and passes 16 scales and 16 sums.
        unsafe {
            join_half(sums[0], offset, scales, scale, acc);
            join_half(sums[1], offset, scales.add(8), scale, acc.add(8));
        }
    }
}

struct Avx2;

impl Bytes for Avx2 {
    /// Widened to 16 bits; a register holds 4 outputs.
    type Weights = [__m256i; 4];
    /// Widened to 16 bits.
    type Inputs = __m256i;
    /// Two sums for each output: over inputs 0 and 1, and over inputs 2 and 3 of each step.
    type Sums = [__m256i; 4];
    const PANELS: usize = 1;

    #[inline(always)]
    unsafe fn zeros() -> [__m256i; 4] {
        // SAFETY: the caller has the features.
        unsafe { [_mm256_setzero_si256(); 4] }
    }

    #[inline(always)]
    unsafe fn weights(at: *const u8) -> [__m256i; 4] {
        // SAFETY: the caller has the features and passes 64 bytes.
        unsafe { [0, 16, 32, 48].map(|from| _mm256_cvtepu8_epi16(_mm_loadu_si128(at.add(from).cast()))) }
    }

    #[inline(always)]
    unsafe fn inputs(at: *const u32) -> __m256i {
        // SAFETY: the caller has the features and passes 4 bytes.
        unsafe { _mm256_cvtepi8_epi16(_mm_set1_epi32(at.read() as i32)) }
    }

    #[inline(always)]
    unsafe fn add(sums: [__m256i; 4], w: [__m256i; 4], x: __m256i) -> [__m256i; 4] {
        // SAFETY: the caller has the features.
        unsafe {
            [
                _mm256_add_epi32(sums[0], _mm256_madd_epi16(w[0], x)),
                _mm256_add_epi32(sums[1], _mm256_madd_epi16(w[1], x)),
                _mm256_add_epi32(sums[2], _mm256_madd_epi16(w[2], x)),
                _mm256_add_epi32(sums[3], _mm256_madd_epi16(w[3], x)),
            ]
        }
    }

    #[inline(always)]
    unsafe fn join(sums: [__m256i; 4], offset: i32, scales: *const u16, scale: f32, acc: *mut f32) {
        // SAFETY: the caller has the features and passes 16 scales and 16 sums.
        unsafe {
            // Horizontal additions work within halves of 128 bits: the outputs are then in the order 0, 1, 4, 5, 2, 3, 6, 7.
            let low = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(sums[0], sums[1]));
            let high = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(sums[2], sums[3]));
            join_half(low, offset, scales, scale, acc);
            join_half(high, offset, scales.add(8), scale, acc.add(8));
        }
    }
}
