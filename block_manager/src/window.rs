use crate::BlockSize;

/// The first block that a query at position `at`, or a later one, can see. Blocks before it lie wholly behind the
/// window. Without a window that is block 0.
pub(crate) fn first_seen(at: u32, window: Option<u32>, size: BlockSize) -> u32 {
    window.map_or(0, |window| size.full_blocks((at.saturating_add(1)).saturating_sub(window)))
}

/// The most blocks that a sequence of `positions` positions holds at once, when rows of at most `piece` tokens are
/// computed together.
///
/// The rows see `window - 1` keys before them. So many tokens in a row, wherever they begin, touch one block more
/// than they would if they began with a block.
pub(crate) fn most_held(positions: u32, piece: u32, window: Option<u32>, size: BlockSize) -> u32 {
    let all = size.blocks_for(positions);
    let Some(window) = window else {
        return all;
    };
    let span = u64::from(window - 1) + u64::from(piece.max(1));
    let block = u64::from(size.get());
    let touched = (span + block - 2) / block + 1;
    all.min(u32::try_from(touched).unwrap_or(u32::MAX))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_seen_as_long_as_one_of_its_keys_is() {
        let size = BlockSize::new(16).unwrap();
        for (at, window) in (0..200).flat_map(|at| (1..70).map(move |window| (at, window))) {
            let seen = (0..=at).filter(|key| i64::from(at) - i64::from(window) < i64::from(*key));
            let blocks: Vec<u32> = seen.map(|key| key / 16).collect();
            assert_eq!(first_seen(at, Some(window), size), blocks[0], "query {at}, window {window}");
        }
        assert_eq!(first_seen(1_000_000, None, size), 0);
    }

    #[test]
    fn the_most_blocks_held_are_held_at_the_worst_place_and_no_more() {
        let size = BlockSize::new(16).unwrap();
        for (window, piece) in (1..60).flat_map(|window| (1..60).map(move |piece| (window, piece))) {
            let held = |at: u32| size.blocks_for(at + piece) - first_seen(at, Some(window), size);
            let worst = (0..300).map(held).max().unwrap();
            assert_eq!(most_held(400, piece, Some(window), size), worst, "window {window}, piece {piece}");
        }
    }
}
