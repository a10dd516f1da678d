//! How weights are prefetched while a product computes with them.

use pagedraft_attention::isa::is_amd;

/// How the processor wants the weights of a product on vector units prefetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cpu) enum Prefetching {
    /// Half of the cache lines, 16 KB ahead, into L2: the processor's own prefetcher recognises the stream and fetches the rest. On Intel
    /// processors prefetching all lines was slower, and for a single row any prefetching was.
    HalfOfTheLines,
    /// All lines, 4 KB ahead, into L1, for a single row too. Reading and computing then overlap: on a Zen 4, 8 rows of weights in 8 bits
    /// cost 1.05 of a plain read, and 1.68 with half of the lines.
    AllLines,
}

impl Prefetching {
    /// What this machine's processor wants.
    pub fn of_machine() -> Prefetching {
        if is_amd() { Prefetching::AllLines } else { Prefetching::HalfOfTheLines }
    }
}

/// What is prefetched in a step of the inner loop. Addresses need not be valid.
#[derive(Clone, Copy)]
pub(in crate::cpu) enum Fetch {
    Nothing,
    /// A line from here on, into L2; it moves on with the weights, half as fast.
    Half(*const u8),
    /// The lines of the first and of the second panel, into L1; they move on as the weights do.
    All([*const u8; 2]),
}

/// How many bytes ahead of their first use weights are prefetched.
const FAR: usize = 16 << 10;
/// The same if all lines are.
const NEAR: usize = 4 << 10;

impl Fetch {
    /// For the pass of row block `i` of `row_blocks`, of `rows` rows, over `bytes` bytes of weights from `here` on. With
    /// several row blocks the first two passes each fetch half of the lines of the next part, so that both overlap with reading.
    #[inline(always)]
    pub fn of(
        how: Prefetching,
        (i, row_blocks): (usize, usize),
        rows: usize,
        here: *const u8,
        bytes: usize,
    ) -> Fetch {
        match how {
            Prefetching::HalfOfTheLines if i == 0 && rows > 1 => Fetch::Half(here.wrapping_add(FAR)),
            Prefetching::HalfOfTheLines => Fetch::Nothing,
            Prefetching::AllLines => {
                let next = here.wrapping_add(bytes);
                match (row_blocks, i) {
                    (1, _) => Fetch::All([here.wrapping_add(NEAR); 2]),
                    (_, 0) => Fetch::All([next, here]),
                    (_, 1) => Fetch::All([here, next]),
                    _ => Fetch::Nothing,
                }
            }
        }
    }

    /// The same `bytes` bytes further on in the weights.
    #[inline(always)]
    pub fn further(self, bytes: usize) -> Fetch {
        match self {
            Fetch::Nothing => Fetch::Nothing,
            Fetch::Half(from) => Fetch::Half(from.wrapping_add(bytes)),
            Fetch::All(lines) => Fetch::All(lines.map(|at| at.wrapping_add(bytes))),
        }
    }
}

/// Prefetches a cache line into L2.
#[inline(always)]
pub(in crate::cpu) fn into_l2(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch may point anywhere, and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Prefetches a cache line into L1.
#[inline(always)]
pub(in crate::cpu) fn into_l1(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch may point anywhere, and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
