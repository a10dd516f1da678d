//! 8-bit products in plain Rust.

use half::f16;

use super::product::Share;
use super::unit::Bytes;
use pagedraft_attention::lanes::{LANES, Portable};

/// Does one share of a product.
///
/// # Safety
///
/// Those of [`Share::run`].
pub(super) unsafe fn enter(share: Share<'_>) {
    // SAFETY: as the caller's; no feature is needed.
    unsafe { share.run::<PlainBytes, Portable>() };
}

struct PlainBytes;

impl Bytes for PlainBytes {
    type Weights = [u8; 64];
    type Inputs = [i8; 4];
    type Sums = [i32; LANES];
    type Scales = [f32; LANES];
    const PANELS: usize = 1;

    #[inline(always)]
    unsafe fn start(offset: i32) -> [i32; LANES] {
        [offset; LANES]
    }

    #[inline(always)]
    unsafe fn scales(at: *const u16) -> [f32; LANES] {
        // SAFETY: the caller passes 16 values.
        unsafe { at.cast::<[u16; LANES]>().read_unaligned() }.map(|bits| f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    unsafe fn weights(at: *const u8) -> [u8; 64] {
        // SAFETY: the caller passes 64 bytes.
        unsafe { at.cast::<[u8; 64]>().read() }
    }

    #[inline(always)]
    unsafe fn nibbles(at: *const u8) -> [[u8; 64]; 2] {
        // SAFETY: the caller passes 64 bytes.
        let both = unsafe { Self::weights(at) };
        [both.map(|byte| byte & 15), both.map(|byte| byte >> 4)]
    }

    #[inline(always)]
    unsafe fn inputs(at: *const u32) -> [i8; 4] {
        // SAFETY: the caller passes 4 bytes.
        unsafe { at.read() }.to_le_bytes().map(|byte| byte as i8)
    }

    #[inline(always)]
    unsafe fn add(mut sums: [i32; LANES], w: [u8; 64], x: [i8; 4]) -> [i32; LANES] {
        for (sum, w) in sums.iter_mut().zip(w.as_chunks::<4>().0) {
            for (&w, &x) in w.iter().zip(&x) {
                *sum += i32::from(w) * i32::from(x);
            }
        }
        sums
    }

    #[inline(always)]
    unsafe fn join(sums: [i32; LANES], scales: [f32; LANES], scale: f32, acc: *mut f32) {
        // SAFETY: the caller passes 16 sums.
        let acc = unsafe { std::slice::from_raw_parts_mut(acc, LANES) };
        for ((sum, of_weights), acc) in sums.into_iter().zip(scales).zip(acc) {
            *acc = (sum as f32 * of_weights).mul_add(scale, *acc);
        }
    }

    #[inline(always)]
    unsafe fn raise(minima: [f32; LANES], amount: f32, acc: *mut f32) {
        // SAFETY: the caller passes 16 sums.
        let acc = unsafe { std::slice::from_raw_parts_mut(acc, LANES) };
        for (minimum, acc) in minima.into_iter().zip(acc) {
            *acc = minimum.mul_add(amount, *acc);
        }
    }
}
