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
    type Scales = __m512;
    const PANELS: usize = 2;

    #[inline(always)]
    unsafe fn start(offset: i32) -> __m512i {
        // SAFETY: the caller has the features.
        unsafe { _mm512_set1_epi32(offset) }
    }

    #[inline(always)]
    unsafe fn scales(at: *const u16) -> __m512 {
        // SAFETY: the caller has the features and passes 16 values.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
    }

    #[inline(always)]
    unsafe fn weights(at: *const u8) -> __m512i {
        // SAFETY: the caller has the features and passes 64 bytes.
        unsafe { _mm512_loadu_si512(at.cast()) }
    }

    #[inline(always)]
    unsafe fn nibbles(at: *const u8) -> [__m512i; 2] {
        // SAFETY: the caller has the features and passes 64 bytes.
        unsafe {
            let (both, low) = (_mm512_loadu_si512(at.cast()), _mm512_set1_epi8(15));
            [_mm512_and_si512(both, low), _mm512_and_si512(_mm512_srli_epi16::<4>(both), low)]
        }
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
    unsafe fn join(sums: __m512i, scales: __m512, scale: f32, acc: *mut f32) {
        // SAFETY: the caller has the features and passes 16 sums.
        unsafe {
            let sums = _mm512_mul_ps(_mm512_cvtepi32_ps(sums), scales);
            _mm512_storeu_ps(acc, _mm512_fmadd_ps(sums, _mm512_set1_ps(scale), _mm512_loadu_ps(acc)));
        }
    }

    #[inline(always)]
    unsafe fn raise(minima: __m512, amount: f32, acc: *mut f32) {
        // SAFETY: the caller has the features and passes 16 sums.
        unsafe {
            _mm512_storeu_ps(acc, _mm512_fmadd_ps(minima, _mm512_set1_ps(amount), _mm512_loadu_ps(acc)));
        }
    }
}

/// The scales of 16 outputs.
#[inline(always)]
unsafe fn scale_halves(at: *const u16) -> [__m256; 2] {
    // SAFETY: the caller has AVX2 and F16C, and passes 16 values.
    unsafe { [0, 8].map(|from| _mm256_cvtph_ps(_mm_loadu_si128(at.add(from).cast()))) }
}

/// Joins the sums of 16 outputs.
#[inline(always)]
unsafe fn join_halves(sums: [__m256i; 2], scales: [__m256; 2], scale: f32, acc: *mut f32) {
    // SAFETY: the caller has AVX2 and FMA, and passes 16 sums.
    unsafe {
        for half in 0..2 {
            let acc = acc.add(half * 8);
            let sums = _mm256_mul_ps(_mm256_cvtepi32_ps(sums[half]), scales[half]);
            _mm256_storeu_ps(acc, _mm256_fmadd_ps(sums, _mm256_set1_ps(scale), _mm256_loadu_ps(acc)));
        }
    }
}

/// `acc = fma(minima, amount, acc)` of 16 outputs.
#[inline(always)]
unsafe fn raise_halves(minima: [__m256; 2], amount: f32, acc: *mut f32) {
    // SAFETY: the caller has AVX2 and FMA, and passes 16 sums.
    unsafe {
        for (half, minima) in minima.into_iter().enumerate() {
            let acc = acc.add(half * 8);
            let raised = _mm256_fmadd_ps(minima, _mm256_set1_ps(amount), _mm256_loadu_ps(acc));
            _mm256_storeu_ps(acc, raised);
        }
    }
}

/// 32 bytes of two weights each: the low halves, and the high ones.
#[inline(always)]
unsafe fn split(at: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller has AVX2 and passes 32 bytes.
    unsafe {
        let (both, low) = (_mm256_loadu_si256(at.cast()), _mm256_set1_epi8(15));
        [_mm256_and_si256(both, low), _mm256_and_si256(_mm256_srli_epi16::<4>(both), low)]
    }
}

struct AvxVnni;

impl Bytes for AvxVnni {
    type Weights = [__m256i; 2];
    type Inputs = __m256i;
    type Sums = [__m256i; 2];
    type Scales = [__m256; 2];
    const PANELS: usize = 1;

    #[inline(always)]
    unsafe fn start(offset: i32) -> [__m256i; 2] {
        // SAFETY: the caller has the features.
        unsafe { [_mm256_set1_epi32(offset); 2] }
    }

    #[inline(always)]
    unsafe fn scales(at: *const u16) -> [__m256; 2] {
        // SAFETY: as the trait demands.
        unsafe { scale_halves(at) }
    }

    #[inline(always)]
    unsafe fn weights(at: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller has the features and passes 64 bytes.
        unsafe { [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())] }
    }

    #[inline(always)]
    unsafe fn nibbles(at: *const u8) -> [[__m256i; 2]; 2] {
        // SAFETY: the caller has the features and passes 64 bytes.
        let [[a, b], [c, d]] = unsafe { [split(at), split(at.add(32))] };
        [[a, c], [b, d]]
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
    unsafe fn join(sums: [__m256i; 2], scales: [__m256; 2], scale: f32, acc: *mut f32) {
        // SAFETY: as the trait demands.
        unsafe { join_halves(sums, scales, scale, acc) };
    }

    #[inline(always)]
    unsafe fn raise(minima: [__m256; 2], amount: f32, acc: *mut f32) {
        // SAFETY: as the trait demands.
        unsafe { raise_halves(minima, amount, acc) };
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
    type Scales = [__m256; 2];
    const PANELS: usize = 1;

    #[inline(always)]
    unsafe fn start(offset: i32) -> [__m256i; 4] {
        // SAFETY: the caller has the features. The offset is in the first of an output's two sums.
        unsafe { [_mm256_set1_epi64x(i64::from(offset as u32)); 4] }
    }

    #[inline(always)]
    unsafe fn scales(at: *const u16) -> [__m256; 2] {
        // SAFETY: as the trait demands.
        unsafe { scale_halves(at) }
    }

    #[inline(always)]
    unsafe fn weights(at: *const u8) -> [__m256i; 4] {
        // SAFETY: the caller has the features and passes 64 bytes.
        unsafe { [0, 16, 32, 48].map(|from| _mm256_cvtepu8_epi16(_mm_loadu_si128(at.add(from).cast()))) }
    }

    #[inline(always)]
    unsafe fn nibbles(at: *const u8) -> [[__m256i; 4]; 2] {
        // SAFETY: the caller has the features and passes 64 bytes.
        unsafe {
            let mut all = [[_mm256_setzero_si256(); 4]; 2];
            for half in 0..2 {
                for (all, bytes) in all.iter_mut().zip(split(at.add(half * 32))) {
                    all[half * 2] = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(bytes));
                    all[half * 2 + 1] = _mm256_cvtepu8_epi16(_mm256_extracti128_si256::<1>(bytes));
                }
            }
            all
        }
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
    unsafe fn join(sums: [__m256i; 4], scales: [__m256; 2], scale: f32, acc: *mut f32) {
        // SAFETY: as the trait demands.
        unsafe {
            // Horizontal additions work within halves of 128 bits: the outputs are then in the order 0, 1, 4, 5, 2, 3, 6, 7.
            let low = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(sums[0], sums[1]));
            let high = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_hadd_epi32(sums[2], sums[3]));
            join_halves([low, high], scales, scale, acc);
        }
    }

    #[inline(always)]
    unsafe fn raise(minima: [__m256; 2], amount: f32, acc: *mut f32) {
        // SAFETY: as the trait demands.
        unsafe { raise_halves(minima, amount, acc) };
    }
}
