//! The instruction sets a kernel can be compiled for, and how a kernel is entered.
//!
//! A kernel is a plain struct of arguments that implements [`Kernel`]: one body, generic over
//! [`Lanes`], marked `#[inline(always)]`. [`Isa::run`] enters it through a wrapper that carries the
//! `#[target_feature]` of the instruction set, so that the body is compiled once for each.
//!
//! ```
//! use pagedraft_attention::isa::{Isa, Kernel};
//! use pagedraft_attention::lanes::{LANES, Lanes};
//!
//! /// y += a * x over whole groups of 16.
//! struct Axpy<'a> { a: f32, x: &'a [f32], y: &'a mut [f32] }
//!
//! impl Kernel for Axpy<'_> {
//!     type Output = ();
//!     #[inline(always)]
//!     unsafe fn run<L: Lanes>(self) {
//!         let a = unsafe { L::splat(self.a) };
//!         for (x, y) in self.x.chunks_exact(LANES).zip(self.y.chunks_exact_mut(LANES)) {
//!             unsafe { L::load(x.as_ptr()).mul_add(a, L::load(y.as_ptr())).store(y.as_mut_ptr()) };
//!         }
//!     }
//! }
//!
//! let (x, mut y) = ([1.0; 32], [2.0; 32]);
//! Isa::detect().run(Axpy { a: 3.0, x: &x, y: &mut y });
//! assert_eq!(y, [5.0; 32]);
//! ```
//!
//! Everything the body calls in its inner loops must be `#[inline(always)]` too (closures
//! included: write loops, or closures the optimiser cannot fail to inline). A function that is not
//! inlined is still correct, but is compiled without the features and passes lanes through memory.

use crate::lanes::{Lanes, Portable};
use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that the CPU kernels are written for. The tokens that a model generates depend on it
/// (promise 1): `Avx512`, `Avx2` and `Neon` give the same bits as each other; `Amx`, `Avx512Bf16` and
/// `Portable` each give bits of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// AVX-512, and AMX tiles for the products of bf16 matrices.
    Amx,
    /// AVX-512, and its `vdpbf16ps` for the products of bf16 matrices.
    Avx512Bf16,
    /// The AVX-512 extensions F, BW, VL and DQ.
    Avx512,
    /// AVX2 with the extensions FMA and F16C.
    Avx2,
    /// Advanced SIMD of AArch64.
    Neon,
    /// Plain Rust, which runs on every machine. A multiply-add rounds twice here, after the product and
    /// after the sum.
    Portable,
}

/// Why an instruction set cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// The name is not one of the instruction sets.
    #[error("unknown instruction set {0:?}; it is one of amx, avx512bf16, avx512, avx2, neon, portable")]
    Unknown(String),
    /// The processor or the operating system does not offer the instruction set.
    #[error("this machine lacks the instruction set {lacks} (it has: {has})")]
    Unavailable {
        /// The instruction set that was asked for.
        lacks: Isa,
        /// The names of the available instruction sets, best first.
        has: String,
    },
}

/// A kernel: a struct of arguments with one body that is compiled for every instruction set.
pub trait Kernel {
    /// What the kernel returns.
    type Output;
    /// Runs the kernel. Implementations mark it `#[inline(always)]`.
    ///
    /// # Safety
    ///
    /// The caller has enabled the target features of `L` ([`Isa::run`] does so).
    unsafe fn run<L: Lanes>(self) -> Self::Output;
}

impl Isa {
    /// All instruction sets, best first.
    pub const ALL: [Isa; 6] = [Isa::Amx, Isa::Avx512Bf16, Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Portable];

    /// The best instruction set of this machine. `Avx512Bf16` is the best one on AMD's processors alone (Zen 4 and later), where
    /// `vdpbf16ps` does twice what a multiply-add does; on Intel's it does half of that. The first call looks it up and asks the operating system
    /// for permission to use AMX tiles, which then holds for the whole process. A later call costs one
    /// atomic load.
    #[must_use]
    pub fn detect() -> Isa {
        let worth_it = |isa: &Isa| *isa != Isa::Avx512Bf16 || is_amd();
        Isa::ALL.into_iter().find(|isa| isa.available() && worth_it(isa)).unwrap_or(Isa::Portable)
    }

    /// Whether this machine can run the instruction set.
    #[must_use]
    pub fn available(self) -> bool {
        machine() & self.bit() != 0
    }

    /// Returns `self` if this machine can run it.
    ///
    /// # Errors
    ///
    /// [`IsaError::Unavailable`] otherwise; it names the instruction set and those that are available.
    pub fn require(self) -> Result<Isa, IsaError> {
        if self.available() {
            return Ok(self);
        }
        let has: Vec<_> = Isa::ALL.into_iter().filter(|i| i.available()).map(Isa::name).collect();
        Err(IsaError::Unavailable { lacks: self, has: has.join(", ") })
    }

    /// The name: `amx`, `avx512bf16`, `avx512`, `avx2`, `neon` or `portable`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Isa::Amx => "amx",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Avx512 => "avx512",
            Isa::Avx2 => "avx2",
            Isa::Neon => "neon",
            Isa::Portable => "portable",
        }
    }

    /// Runs `kernel` as compiled for this instruction set. `Amx` and `Avx512Bf16` run the AVX-512 body.
    ///
    /// # Panics
    ///
    /// Panics if this machine lacks the instruction set (see [`Isa::require`]).
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        assert!(self.available(), "this machine lacks the instruction set {self}");
        match self {
            // SAFETY: `available` has just said that the CPU has the features.
            #[cfg(target_arch = "x86_64")]
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => unsafe { enter_avx512(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { enter_avx2(kernel) },
            // SAFETY: as above.
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => unsafe { enter_neon(kernel) },
            // SAFETY: the portable lanes need no feature.
            _ => unsafe { kernel.run::<Portable>() },
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = IsaError;
    fn from_str(s: &str) -> Result<Isa, IsaError> {
        let found = Isa::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(s));
        found.ok_or_else(|| IsaError::Unknown(s.to_owned()))
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi1,bmi2")]
unsafe fn enter_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function has the features of `Avx512`.
    unsafe { kernel.run::<crate::lanes::Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
unsafe fn enter_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function has the features of `Avx2`.
    unsafe { kernel.run::<crate::lanes::Avx2>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn enter_neon<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function has the features of `Neon`.
    unsafe { kernel.run::<crate::lanes::Neon>() }
}

/// The available instruction sets, one bit each. They are looked up once per process.
fn machine() -> u8 {
    const LOOKED: u8 = 1 << 7;
    static MACHINE: AtomicU8 = AtomicU8::new(0);
    let known = MACHINE.load(Ordering::Relaxed);
    if known != 0 {
        return known;
    }
    // If two threads look at the same time, both find the same bits, and asking twice for permission does
    // no harm.
    let found = LOOKED | Isa::Portable.bit() | vector_units();
    MACHINE.store(found, Ordering::Relaxed);
    found
}

/// Whether the processor is AMD's.
#[must_use]
pub fn is_amd() -> bool {
    static FOUND: std::sync::LazyLock<bool> = std::sync::LazyLock::new(vendor_is_amd);
    *FOUND
}

#[cfg(target_arch = "x86_64")]
fn vendor_is_amd() -> bool {
    // Newer compilers declare this intrinsic safe and warn about `unsafe`; older ones require it.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 has CPUID.
    let vendor = unsafe { std::arch::x86_64::__cpuid(0) };
    // "AuthenticAMD", four letters in each register.
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes) == [*b"Auth", *b"enti", *b"cAMD"]
}

#[cfg(not(target_arch = "x86_64"))]
fn vendor_is_amd() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn vector_units() -> u8 {
    use std::arch::is_x86_feature_detected as has;
    let mut found = 0;
    if has!("avx2") && has!("fma") && has!("f16c") && has!("bmi1") && has!("bmi2") {
        found |= Isa::Avx2.bit();
        if has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq") {
            found |= Isa::Avx512.bit();
            if has!("avx512bf16") {
                found |= Isa::Avx512Bf16.bit();
            }
            if amx_permitted() {
                found |= Isa::Amx.bit();
            }
        }
    }
    found
}

#[cfg(target_arch = "aarch64")]
fn vector_units() -> u8 {
    if std::arch::is_aarch64_feature_detected!("neon") { Isa::Neon.bit() } else { 0 }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn vector_units() -> u8 {
    0
}

/// Whether processor and operating system offer bf16 tiles. On Linux this asks for the permission to use
/// them.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn amx_permitted() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    /// The request `ARCH_REQ_XCOMP_PERM` from Linux's `asm/prctl.h`.
    const REQUEST_PERMISSION: libc::c_long = 0x1023;
    /// The number of the processor's state component that holds the tile data.
    const TILE_DATA: libc::c_long = 18;
    const TILE_STATE: u64 = 0b11 << 17;
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;

    // Newer compilers declare these intrinsics safe and warn about `unsafe`; older ones require it.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 has CPUID.
    let (features, os_saves_state) = unsafe {
        let features = if __cpuid(0).eax >= 7 { __cpuid_count(7, 0).edx } else { 0 };
        (features, __cpuid(1).ecx & (1 << 27) != 0)
    };
    if features & (AMX_BF16 | AMX_TILE) != (AMX_BF16 | AMX_TILE) || !os_saves_state {
        return false;
    }
    // SAFETY: OSXSAVE is set, so XGETBV exists and XCR0 can be read.
    let state = unsafe { extended_control_register() };
    if state & TILE_STATE != TILE_STATE {
        return false;
    }
    // SAFETY: this request takes two integers and touches none of our memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0 }
}

#[cfg(all(target_arch = "x86_64", not(target_os = "linux")))]
fn amx_permitted() -> bool {
    false
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
#[target_feature(enable = "xsave")]
unsafe fn extended_control_register() -> u64 {
    // SAFETY: the caller has checked that OSXSAVE is set.
    unsafe { std::arch::x86_64::_xgetbv(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_the_set_they_name() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        assert!(matches!("sse9".parse::<Isa>(), Err(IsaError::Unknown(name)) if name == "sse9"));
    }

    #[test]
    fn the_detected_set_is_available_and_a_missing_one_is_named() {
        assert!(Isa::detect().available() && Isa::Portable.available());
        for isa in Isa::ALL.into_iter().filter(|i| !i.available()) {
            let message = isa.require().unwrap_err().to_string();
            assert!(message.contains(isa.name()), "{message}");
        }
    }
}
