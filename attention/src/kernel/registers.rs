//! How many rows and vectors the inner loops hold in registers on each instruction set.
//!
//! Each instruction set compiles the loops for its own block sizes only, because compiling all sizes for
//! all sets takes minutes.

use super::item::RunItem;
use crate::isa::Isa;
use crate::lanes::{Lanes, Portable};

/// Lanes together with the block sizes of the inner loops. The sizes do not change a bit of a result.
pub(super) trait Registers: Lanes {
    /// The most rows of a block: 8, 4 or 1.
    const ROWS: usize;
    /// How many vectors the loops hold in registers beside blocks of 8, 4, 2 and 1 rows.
    const VECTORS: [usize; 4];
}

impl Registers for Portable {
    const ROWS: usize = 1;
    const VECTORS: [usize; 4] = [1, 1, 1, 1];
}
#[cfg(target_arch = "x86_64")]
impl Registers for crate::lanes::Avx512 {
    const ROWS: usize = 8;
    const VECTORS: [usize; 4] = [2, 4, 4, 4];
}
#[cfg(target_arch = "x86_64")]
impl Registers for crate::lanes::Avx2 {
    const ROWS: usize = 4;
    const VECTORS: [usize; 4] = [1, 1, 1, 4];
}
#[cfg(target_arch = "aarch64")]
impl Registers for crate::lanes::Neon {
    const ROWS: usize = 4;
    const VECTORS: [usize; 4] = [1, 1, 1, 4];
}

/// Runs an item compiled for `isa`.
///
/// # Safety
///
/// The machine has `isa`. The other demands are those of [`RunItem::attend`].
pub(super) unsafe fn enter(isa: Isa, item: RunItem<'_>) {
    // SAFETY: as the caller promises.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx | Isa::Avx512 => enter_avx512(item),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => enter_avx2(item),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => enter_neon(item),
            _ => item.attend::<Portable>(),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c,bmi1,bmi2")]
unsafe fn enter_avx512(item: RunItem<'_>) {
    // SAFETY: this function has the features.
    unsafe { item.attend::<crate::lanes::Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
unsafe fn enter_avx2(item: RunItem<'_>) {
    // SAFETY: this function has the features.
    unsafe { item.attend::<crate::lanes::Avx2>() }
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn enter_neon(item: RunItem<'_>) {
    // SAFETY: this function has the features.
    unsafe { item.attend::<crate::lanes::Neon>() }
}
