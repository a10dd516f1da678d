//! Computes which blocks of a sequence lie wholly behind a sliding window.

use super::rule::Rule;

/// Stands in a table for a block that was given back.
pub(super) const FREED: u32 = u32::MAX;

/// Stands for a token that the trace does not show, because it lies behind the window of a request that
/// began with a prefix hit.
pub(super) const UNKNOWN: u32 = u32::MAX;

/// The first position that the query at position `at`, or a later one, can see.
pub(super) fn first_position(at: u64, window: Option<u32>) -> u64 {
    window.map_or(0, |window| at.saturating_add(1).saturating_sub(u64::from(window)))
}

/// The first block that such a query can see. Blocks before it are given back.
pub(super) fn first_block(at: u64, window: Option<u32>, block_size: u32) -> usize {
    usize::try_from(first_position(at, window) / u64::from(block_size)).unwrap_or(usize::MAX)
}

/// Checks a table entry: a block of the pool, or -1 if it lies wholly behind the window.
pub(super) fn check_entry(index: usize, entry: i64, first: usize, at: u64) -> Result<(), (Rule, String)> {
    match (entry == -1, index < first) {
        (true, false) if first == 0 => Err((
            Rule::BlockTable,
            format!("entry {index} of its table is -1, and no block is behind a window"),
        )),
        (true, false) => {
            let what = format!(
                "entry {index} of its table was given back, and the query at position {at} sees blocks from {first} on"
            );
            Err((Rule::Window, what))
        }
        (false, true) => {
            let what = format!(
                "it holds block {entry} at entry {index}, wholly behind the window of the query at position {at}"
            );
            Err((Rule::Window, what))
        }
        _ => Ok(()),
    }
}
