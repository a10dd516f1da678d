//! The sliding window of a row, in tokens.

/// The window of a row that has none. It is greater than the length of any sequence.
pub(crate) const NO_WINDOW: u32 = u32::MAX;

/// The first key that the query of index `index` sees.
#[inline(always)]
pub(crate) fn first_key(index: u32, window: u32) -> u32 {
    // The query itself is one of the `window` keys.
    index.saturating_sub(window - 1)
}
