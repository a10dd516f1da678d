//! How many rows and vectors the inner loops hold in registers on each instruction set.
//!
//! Each instruction set compiles the loops for its own block sizes only, because compiling all sizes for
//! all sets takes minutes.

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
