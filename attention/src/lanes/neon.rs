//! The sixteen lanes as four 128-bit registers.

use super::Lanes;
use half::f16;
use std::arch::aarch64::*;

/// Sixteen f32 in four registers of AArch64 Advanced SIMD.
#[derive(Clone, Copy)]
pub struct Neon([float32x4_t; 4]);

impl Neon {
    #[inline(always)]
    unsafe fn zip(self, other: Self, f: unsafe fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
        let (a, b) = (self.0, other.0);
        // SAFETY: the caller has the features `f` needs.
        unsafe { Neon([f(a[0], b[0]), f(a[1], b[1]), f(a[2], b[2]), f(a[3], b[3])]) }
    }
}

#[inline(always)]
unsafe fn widen(bits: uint16x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vreinterpretq_f32_u32(vshll_n_u16::<16>(bits)) }
}

#[inline(always)]
unsafe fn narrow(x: float32x4_t) -> uint16x4_t {
    // SAFETY: the caller has NEON.
    unsafe {
        let bits = vreinterpretq_u32_f32(x);
        let odd = vandq_u32(vshrq_n_u32::<16>(bits), vdupq_n_u32(1));
        let rounded = vaddq_u32(bits, vaddq_u32(odd, vdupq_n_u32(0x7fff)));
        let quiet = vorrq_u32(bits, vdupq_n_u32(0x40_0000));
        let number = vceqq_f32(x, x);
        vshrn_n_u32::<16>(vbslq_u32(number, rounded, quiet))
    }
}

#[inline(always)]
unsafe fn add4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vaddq_f32(a, b) }
}
#[inline(always)]
unsafe fn sub4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vsubq_f32(a, b) }
}
#[inline(always)]
unsafe fn mul4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vmulq_f32(a, b) }
}
#[inline(always)]
unsafe fn div4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vdivq_f32(a, b) }
}
/// `a > b ? a : b` in each lane, as on x86. `vmaxq_f32` differs: it takes +0 to be greater than -0.
#[inline(always)]
unsafe fn max4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) }
}
/// `a < b ? a : b` in each lane, as on x86.
#[inline(always)]
unsafe fn min4(a: float32x4_t, b: float32x4_t) -> float32x4_t {
    // SAFETY: the caller has NEON.
    unsafe { vbslq_f32(vcltq_f32(a, b), a, b) }
}

// SAFETY of the blocks in this impl: by the trait's contract the caller has enabled the features, and
// pointers are valid for 16 elements (32 for pairs). All loads and stores are unaligned ones.
impl Lanes for Neon {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: see the impl.
        Neon([unsafe { vdupq_n_f32(x) }; 4])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: see the impl.
        unsafe { Neon([vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))]) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: see the impl.
        unsafe {
            vst1q_f32(p, self.0[0]);
            vst1q_f32(p.add(4), self.0[1]);
            vst1q_f32(p.add(8), self.0[2]);
            vst1q_f32(p.add(12), self.0[3]);
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: see the impl.
        unsafe {
            Neon([
                widen(vld1_u16(p)),
                widen(vld1_u16(p.add(4))),
                widen(vld1_u16(p.add(8))),
                widen(vld1_u16(p.add(12))),
            ])
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // No stable intrinsic for the conversion instruction takes plain bits on every compiler. The crate
        // `half` uses the instruction where the compiler allows it.
        let mut wide = [0.0f32; 16];
        for (i, w) in wide.iter_mut().enumerate() {
            // SAFETY: see the impl.
            *w = f16::from_bits(unsafe { *p.add(i) }).to_f32();
        }
        // SAFETY: see the impl.
        unsafe { Self::load(wide.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> Self {
        // SAFETY: see the impl.
        let bits = unsafe { p.cast::<[u8; 16]>().read_unaligned() };
        let wide = bits.map(super::e4m3);
        // SAFETY: see the impl.
        unsafe { Self::load(wide.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self, Self) {
        // SAFETY: see the impl.
        unsafe {
            let (mut even, mut odd) = (Self::splat(0.0), Self::splat(0.0));
            for i in 0..4 {
                let pairs = vreinterpretq_u32_u16(vld1q_u16(p.add(8 * i)));
                even.0[i] = vreinterpretq_f32_u32(vshlq_n_u32::<16>(pairs));
                odd.0[i] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(!0xffff)));
            }
            (even, odd)
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { self.zip(other, add4) }
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { self.zip(other, sub4) }
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { self.zip(other, mul4) }
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { self.zip(other, div4) }
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        let (a, b, c) = (self.0, b.0, c.0);
        // SAFETY: see the impl.
        unsafe {
            Neon([
                vfmaq_f32(c[0], a[0], b[0]),
                vfmaq_f32(c[1], a[1], b[1]),
                vfmaq_f32(c[2], a[2], b[2]),
                vfmaq_f32(c[3], a[3], b[3]),
            ])
        }
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { self.zip(other, max4) }
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        // SAFETY: see the impl.
        unsafe { self.zip(other, min4) }
    }
    #[inline(always)]
    unsafe fn above(self, other: Self) -> u32 {
        // SAFETY: see the impl.
        unsafe {
            let bits = vld1q_u32([1u32, 2, 4, 8].as_ptr());
            let four = |i: usize| vaddvq_u32(vandq_u32(vcgtq_f32(self.0[i], other.0[i]), bits));
            four(0) | four(1) << 4 | four(2) << 8 | four(3) << 12
        }
    }
    #[inline(always)]
    unsafe fn keep_first(mut self, n: usize, fill: f32) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let index = vld1q_u32([0u32, 1, 2, 3].as_ptr());
            for (i, v) in self.0.iter_mut().enumerate() {
                let left = n.saturating_sub(4 * i).min(4) as u32;
                *v = vbslq_f32(vcgtq_u32(vdupq_n_u32(left), index), *v, vdupq_n_f32(fill));
            }
            self
        }
    }
    #[inline(always)]
    unsafe fn drop_first(mut self, n: usize, fill: f32) -> Self {
        // SAFETY: see the impl.
        unsafe {
            let index = vld1q_u32([0u32, 1, 2, 3].as_ptr());
            for (i, v) in self.0.iter_mut().enumerate() {
                let left = n.saturating_sub(4 * i).min(4) as u32;
                *v = vbslq_f32(vcgtq_u32(vdupq_n_u32(left), index), vdupq_n_f32(fill), *v);
            }
            self
        }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        let a = self.0;
        // SAFETY: see the impl.
        unsafe { Neon([vrndnq_f32(a[0]), vrndnq_f32(a[1]), vrndnq_f32(a[2]), vrndnq_f32(a[3])]) }
    }
    #[inline(always)]
    unsafe fn exp2_int(mut self) -> Self {
        for v in &mut self.0 {
            // SAFETY: see the impl.
            *v = unsafe {
                let biased = vaddq_s32(vcvtnq_s32_f32(*v), vdupq_n_s32(127));
                vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
            };
        }
        self
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        for (i, v) in self.0.into_iter().enumerate() {
            // SAFETY: see the impl.
            unsafe { vst1_u16(p.add(4 * i), narrow(v)) };
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        // SAFETY: see the impl.
        for (i, x) in unsafe { self.to_array() }.into_iter().enumerate() {
            // SAFETY: see the impl.
            unsafe { *p.add(i) = f16::from_f32(x).to_bits() };
        }
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // This is the same tree of additions as in `Lanes::sum`, done in registers.
        let a = self.0;
        // SAFETY: see the impl.
        unsafe {
            let four = vaddq_f32(vaddq_f32(a[0], a[2]), vaddq_f32(a[1], a[3]));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
}
