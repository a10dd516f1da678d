//! Vectors of sixteen f32 lanes. Every CPU kernel is written once, over these.
//!
//! A kernel is generic over [`Lanes`] and entered through [`Isa::run`](crate::isa::Isa::run), whose
//! wrappers carry the `#[target_feature]` of the instruction set. Every implementation does the same
//! arithmetic on each lane. AVX-512, AVX2 and NEON have a fused multiply-add, so their [`Lanes::mul_add`]
//! rounds once and they give the same bits. The portable implementation rounds the product and then the
//! sum, because a fused multiply-add in software would cost fifty times as much; it therefore counts as an
//! instruction set of its own in promise 1.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "aarch64")]
pub use neon::Neon;
pub use portable::Portable;
pub(crate) use portable::e4m3;

/// How many f32 a value of [`Lanes`] holds.
pub const LANES: usize = 16;

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

/// Prefetches the cache line at an address, which need not be valid. It has no other effect.
#[inline(always)]
pub(crate) fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// What the bits of an e4m3 value, moved to the place of an f32's, are to be multiplied with: the exponents are biased by 7 and
/// by 127.
const E4M3_UNIT: f32 = f32::from_bits(247 << 23);

/// Sixteen f32 values.
///
/// # Safety
///
/// The methods of an implementation may only be called inside a function that has the target
/// features of its instruction set enabled. Pointers must be valid for [`LANES`] elements; no
/// alignment is needed.
// The caller's duties are the same for all methods, so the trait states them once.
#[allow(clippy::missing_safety_doc)]
pub trait Lanes: Copy {
    /// A vector with `x` in every lane.
    unsafe fn splat(x: f32) -> Self;
    /// Loads 16 f32.
    unsafe fn load(p: *const f32) -> Self;
    /// Stores 16 f32.
    unsafe fn store(self, p: *mut f32);
    /// Loads 16 bf16 values, given as bits, and widens them exactly.
    unsafe fn load_bf16(p: *const u16) -> Self;
    /// Loads 16 f16 values, given as bits, and widens them exactly.
    unsafe fn load_f16(p: *const u16) -> Self;
    /// Loads 16 e4m3 values, given as bits, and widens them exactly; the two NaN of e4m3 become 480 and -480.
    unsafe fn load_e4m3(p: *const u8) -> Self;
    /// Loads 16 pairs of bf16 (32 values) and widens them exactly: first those of even index, then those of
    /// odd index.
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self, Self);
    /// `self + other`.
    unsafe fn add(self, other: Self) -> Self;
    /// `self - other`.
    unsafe fn sub(self, other: Self) -> Self;
    /// `self * other`.
    unsafe fn mul(self, other: Self) -> Self;
    /// `self / other`.
    unsafe fn div(self, other: Self) -> Self;
    /// `self * b + c`, rounded once; the portable lanes round twice.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// The greater of the two values in each lane. Where one is NaN the result is unspecified, so kernels
    /// mask first.
    unsafe fn max(self, other: Self) -> Self;
    /// The smaller of the two values in each lane. Where one is NaN the result is unspecified, so kernels
    /// mask first.
    unsafe fn min(self, other: Self) -> Self;
    /// A bit for each lane, lane 0 the lowest: 1 where `self` is greater than `other`, 0 where it is not or one is NaN.
    unsafe fn above(self, other: Self) -> u32;
    /// Keeps the first `n` lanes and puts `fill` in the others (`n >= 16` keeps all).
    unsafe fn keep_first(self, n: usize, fill: f32) -> Self;
    /// Puts `fill` in the first `n` lanes and keeps the others (`n >= 16` keeps none).
    unsafe fn drop_first(self, n: usize, fill: f32) -> Self;
    /// Rounds each lane to the nearest integer, ties to even.
    unsafe fn round(self) -> Self;
    /// 2 to the power of each lane, which must hold an integer in -126..=127.
    unsafe fn exp2_int(self) -> Self;
    /// Stores the 16 values as bf16, rounded to nearest even.
    unsafe fn store_bf16(self, p: *mut u16);
    /// Stores the 16 values as f16, rounded to nearest even.
    unsafe fn store_f16(self, p: *mut u16);

    /// The lanes as an array.
    #[inline(always)]
    unsafe fn to_array(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: `out` has room for 16 values; the caller has the features.
        unsafe { self.store(out.as_mut_ptr()) };
        out
    }
    /// The sum of the lanes by a fixed tree: the upper half is added onto the lower one until one lane is
    /// left (8, 4, 2, 1).
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller has the features.
        let mut a = unsafe { self.to_array() };
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                a[i] += a[i + half];
            }
            half /= 2;
        }
        a[0]
    }
    /// The greatest lane.
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        // SAFETY: the caller has the features.
        let a = unsafe { self.to_array() };
        a.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
    /// e to the power of each lane, with a relative error below 2e-7 for arguments in -87.33..=88.37. An
    /// argument outside that range gives the value at the nearer end (1.2e-38 or 2.4e38), a NaN an
    /// unspecified one.
    ///
    /// The method is that of Cephes' `expf`: with n = round(x log2 e), a polynomial of degree 7 gives
    /// e^(x - n ln 2), which is multiplied by 2^n.
    #[inline(always)]
    unsafe fn exp(self) -> Self {
        // SAFETY: the caller has the features.
        unsafe {
            let x = self.max(Self::splat(-87.33)).min(Self::splat(88.37));
            let n = x.mul(Self::splat(std::f32::consts::LOG2_E)).round();
            // ln 2 is subtracted in two parts. The first has so few bits that n times it is exact.
            let r = n.mul_add(Self::splat(-0.693_359_4), x);
            let r = n.mul_add(Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_2e-4);
            for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
                p = p.mul_add(r, Self::splat(c));
            }
            let y = p.mul_add(r.mul(r), r).add(Self::splat(1.0));
            y.mul(n.exp2_int())
        }
    }
}

#[cfg(test)]
mod tests;
