//! The sixteen lanes as an array, for every machine.

use super::{LANES, Lanes};
use half::{bf16, f16};

/// Sixteen f32 in an array. [`Lanes::mul_add`] rounds twice here.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Portable([f32; LANES]);

/// The value of an e4m3's bits.
#[inline(always)]
pub(crate) fn e4m3(bits: u8) -> f32 {
    let (sign, rest) = (u32::from(bits & 0x80) << 24, u32::from(bits & 0x7f) << 20);
    f32::from_bits(sign | rest) * super::E4M3_UNIT
}

impl Portable {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Portable(std::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for Portable {
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Portable([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller gives 16 readable f32.
        Portable(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller gives 16 writable f32.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller gives 16 readable bf16.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        Portable(bits.map(|b| f32::from_bits(u32::from(b) << 16)))
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller gives 16 readable f16.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        Portable(bits.map(|b| f16::from_bits(b).to_f32()))
    }
    #[inline(always)]
    unsafe fn load_e4m3(p: *const u8) -> Self {
        // SAFETY: the caller gives 16 readable bytes.
        Portable(unsafe { p.cast::<[u8; LANES]>().read_unaligned() }.map(e4m3))
    }
    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self, Self) {
        // SAFETY: the caller gives 32 readable bf16.
        let pairs = unsafe { p.cast::<[[u16; 2]; LANES]>().read_unaligned() };
        let half = |i: usize| Portable(pairs.map(|b| f32::from_bits(u32::from(b[i]) << 16)));
        (half(0), half(1))
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn mul_add(self, b: Self, c: Self) -> Self {
        Portable(std::array::from_fn(|i| self.0[i] * b.0[i] + c.0[i]))
    }
    #[inline(always)]
    unsafe fn max(self, other: Self) -> Self {
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, other: Self) -> Self {
        self.zip(other, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn above(self, other: Self) -> u32 {
        let pairs = self.0.iter().zip(&other.0);
        pairs.rev().fold(0, |bits, (a, b)| bits << 1 | u32::from(a > b))
    }
    #[inline(always)]
    unsafe fn keep_first(self, n: usize, fill: f32) -> Self {
        Portable(std::array::from_fn(|i| if i < n { self.0[i] } else { fill }))
    }
    #[inline(always)]
    unsafe fn drop_first(self, n: usize, fill: f32) -> Self {
        Portable(std::array::from_fn(|i| if i < n { fill } else { self.0[i] }))
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Portable(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    unsafe fn exp2_int(self) -> Self {
        // Adding 1.5 * 2^23 leaves the integer in the low bits of the f32's significand.
        const SHIFT: f32 = 12_582_912.0;
        Portable(self.0.map(|n| {
            let exponent = (n + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits());
            f32::from_bits(exponent.wrapping_add(127) << 23)
        }))
    }
    #[inline(always)]
    unsafe fn store_bf16(self, p: *mut u16) {
        let bits = self.0.map(|x| bf16::from_f32(x).to_bits());
        // SAFETY: the caller gives room for 16 bf16.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(bits) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        let bits = self.0.map(|x| f16::from_f32(x).to_bits());
        // SAFETY: the caller gives room for 16 f16.
        unsafe { p.cast::<[u16; LANES]>().write_unaligned(bits) }
    }
}
