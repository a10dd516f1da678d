//! The fewest misses that a cache can have.

use std::collections::BTreeSet;

/// The misses of a cache of `size` entries over `uses`, which drops what is used again last (Belady 1966), and which starts empty. What is
/// used is always taken in. No other rule of what to drop has fewer misses.
pub(super) fn misses(uses: &[u32], size: usize) -> u64 {
    let ids = uses.iter().max().map_or(0, |&most| most as usize + 1);
    // For each use, when the same is used next.
    let mut next = vec![usize::MAX; uses.len()];
    let mut seen = vec![usize::MAX; ids];
    for (at, &id) in uses.iter().enumerate().rev() {
        next[at] = std::mem::replace(&mut seen[id as usize], at);
    }
    // Entries by their next use; `held` says which one an id has.
    let mut entries: BTreeSet<(usize, u32)> = BTreeSet::new();
    let mut held: Vec<Option<usize>> = vec![None; ids];
    let mut misses = 0;
    for (at, &id) in uses.iter().enumerate() {
        match held[id as usize].take() {
            Some(entry) => {
                entries.remove(&(entry, id));
            }
            None => {
                misses += 1;
                if entries.len() >= size
                    && let Some((_, dropped)) = entries.pop_last()
                {
                    held[dropped as usize] = None;
                }
            }
        }
        entries.insert((next[at], id));
        held[id as usize] = Some(next[at]);
    }
    misses
}
