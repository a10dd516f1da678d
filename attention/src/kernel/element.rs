//! The element types of the KV cache, and how the kernels load and store them.

use crate::lanes::Lanes;

/// An element type of the KV cache: how 16 elements become f32 lanes, and how lanes are stored as elements.
///
/// # Safety
///
/// The caller has enabled the features of `L`, and pointers are valid for 16 elements.
pub(crate) trait Element {
    /// The integer or float type that holds one element's bits.
    type Raw: Copy + Default;
    unsafe fn load<L: Lanes>(p: *const Self::Raw) -> L;
    unsafe fn store<L: Lanes>(lanes: L, p: *mut Self::Raw);
}

/// Numbers of 8 bits; the values of a vector have a common scale, which is not part of them.
pub(crate) struct E4m3;
pub(crate) struct F32;
pub(crate) struct F16;
pub(crate) struct Bf16;

impl Element for F32 {
    type Raw = f32;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const f32) -> L {
        // SAFETY: as the trait demands.
        unsafe { L::load(p) }
    }
    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, p: *mut f32) {
        // SAFETY: as the trait demands.
        unsafe { lanes.store(p) }
    }
}

impl Element for F16 {
    type Raw = u16;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u16) -> L {
        // SAFETY: as the trait demands.
        unsafe { L::load_f16(p) }
    }
    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, p: *mut u16) {
        // SAFETY: as the trait demands.
        unsafe { lanes.store_f16(p) }
    }
}

impl Element for Bf16 {
    type Raw = u16;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u16) -> L {
        // SAFETY: as the trait demands.
        unsafe { L::load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, p: *mut u16) {
        // SAFETY: as the trait demands.
        unsafe { lanes.store_bf16(p) }
    }
}

impl Element for E4m3 {
    type Raw = u8;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u8) -> L {
        // SAFETY: as the trait demands.
        unsafe { L::load_e4m3(p) }
    }
    #[inline(always)]
    unsafe fn store<L: Lanes>(lanes: L, p: *mut u8) {
        // SAFETY: as the trait demands.
        for (i, value) in unsafe { lanes.to_array() }.into_iter().enumerate() {
            // SAFETY: as above.
            unsafe { *p.add(i) = crate::sparse::fp8::to_e4m3(value) };
        }
    }
}
