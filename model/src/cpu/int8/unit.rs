//! The instructions that multiply bytes, and what a product needs of them.

use pagedraft_attention::isa::Isa;

use super::product::Share;

/// The instructions with which 8-bit products are computed. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IntegerUnit {
    /// AVX-512 with VNNI: `vpdpbusd` on 64 bytes.
    Avx512Vnni,
    /// AVX2 with AVX-VNNI: `vpdpbusd` on 32 bytes.
    AvxVnni,
    /// AVX2: bytes are widened to 16 bits for `vpmaddwd`.
    Avx2,
    /// Plain Rust.
    Portable,
}

impl IntegerUnit {
    /// All, best first.
    pub const ALL: [IntegerUnit; 4] =
        [IntegerUnit::Avx512Vnni, IntegerUnit::AvxVnni, IntegerUnit::Avx2, IntegerUnit::Portable];

    /// The best one of this machine among those that belong to an instruction set. AMX's integer tiles are not among them: such a
    /// processor has AVX-512 VNNI.
    pub fn of(isa: Isa) -> IntegerUnit {
        let belongs = |unit: &IntegerUnit| match unit {
            IntegerUnit::Avx512Vnni => matches!(isa, Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512),
            IntegerUnit::AvxVnni | IntegerUnit::Avx2 => !matches!(isa, Isa::Neon | Isa::Portable),
            IntegerUnit::Portable => true,
        };
        Self::ALL.into_iter().find(|unit| belongs(unit) && unit.available()).unwrap_or(IntegerUnit::Portable)
    }

    /// Whether this machine has it.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            IntegerUnit::Avx512Vnni => {
                Isa::Avx512.available() && std::arch::is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            IntegerUnit::AvxVnni => Isa::Avx2.available() && std::arch::is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            IntegerUnit::Avx2 => Isa::Avx2.available(),
            #[cfg(not(target_arch = "x86_64"))]
            IntegerUnit::Avx512Vnni | IntegerUnit::AvxVnni | IntegerUnit::Avx2 => false,
            IntegerUnit::Portable => true,
        }
    }

    /// The most rows that are multiplied side by side: as many as have room in the registers.
    pub fn most_rows(self) -> usize {
        match self {
            IntegerUnit::Avx512Vnni => 12,
            IntegerUnit::AvxVnni => 6,
            IntegerUnit::Avx2 => 2,
            IntegerUnit::Portable => 4,
        }
    }

    /// Does one share of a product.
    pub(super) fn run(self, share: Share<'_>) {
        match self {
            // SAFETY: rows are packed for a unit that is available.
            #[cfg(target_arch = "x86_64")]
            IntegerUnit::Avx512Vnni => unsafe { super::x86::enter_avx512_vnni(share) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            IntegerUnit::AvxVnni => unsafe { super::x86::enter_avx_vnni(share) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            IntegerUnit::Avx2 => unsafe { super::x86::enter_avx2(share) },
            // SAFETY: plain Rust needs no feature.
            _ => unsafe { super::portable::enter(share) },
        }
    }
}

/// The integer arithmetic of 16 outputs.
///
/// # Safety
///
/// The methods may only be called inside a function that has the target features of the unit enabled.
#[allow(clippy::missing_safety_doc)] // The caller's duties are the same for all methods, so the trait states them once.
pub(super) trait Bytes {
    /// 16 outputs x 4 inputs of weights.
    type Weights: Copy;
    /// 4 inputs of one row, for each output.
    type Inputs: Copy;
    /// Sums of 16 outputs.
    type Sums: Copy;
    /// How many panels of 16 outputs are computed at a time: 2 or 1.
    const PANELS: usize;
    /// The scales, or the least values, of 16 outputs in f32.
    type Scales: Copy;
    /// Sums of nothing but `offset`.
    unsafe fn start(offset: i32) -> Self::Sums;
    /// Loads 16 scales or least values from their bits in f16.
    unsafe fn scales(at: *const u16) -> Self::Scales;
    /// Loads 64 bytes of weights, 4 for each output.
    unsafe fn weights(at: *const u8) -> Self::Weights;
    /// Loads 64 bytes of two weights each, which are 4 bits and not negative: those in the low halves, and those in the high ones.
    unsafe fn nibbles(at: *const u8) -> [Self::Weights; 2];
    /// Loads 4 inputs.
    unsafe fn inputs(at: *const u32) -> Self::Inputs;
    /// Adds the products of 4 inputs with 16 outputs.
    unsafe fn add(sums: Self::Sums, w: Self::Weights, x: Self::Inputs) -> Self::Sums;
    /// `acc[o] = fma(f32(sums[o]) * scales[o], scale, acc[o])` for 16 outputs.
    unsafe fn join(sums: Self::Sums, scales: Self::Scales, scale: f32, acc: *mut f32);
    /// `acc[o] = fma(minima[o], amount, acc[o])` for 16 outputs.
    unsafe fn raise(minima: Self::Scales, amount: f32, acc: *mut f32);
}
