//! Enters the inner loops as they are compiled for an instruction set.

use super::item::RunItem;
use crate::isa::Isa;
use crate::lanes::Portable;

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
            Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => enter_avx512(item),
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
