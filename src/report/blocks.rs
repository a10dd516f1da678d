//! The state of every block of the pool, step by step.
//!
//! The page's script does the same sums on the same changes; this is the reference that both are held against, and what
//! the picture of a step begins with where a page starts in the midst of a trace.

use std::collections::{BTreeMap, BTreeSet};

use pagedraft_workloads::trace::RowKind;

use super::step_delta::{FREED, NamedLater, StepDelta, first_block};

/// What a block is to the pool, after a step was applied. All others are free: nobody's, and nothing in them can be hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum BlockState {
    /// Of one sequence, which has not filled it yet.
    Writable,
    /// Of one sequence, and full of committed tokens.
    Sealed,
    /// Of several sequences.
    Shared,
    /// Nobody's, with contents that a prefix can still hit.
    Cached,
}

/// Who holds what, and what can be hit.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    block_size: u32,
    live: BTreeMap<u32, Held>,
    published: BTreeSet<u32>,
}

/// What a request holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Its blocks, [`FREED`] for those that were given back behind the window.
    pub(super) table: Vec<u32>,
    /// Tokens with KV.
    pub(super) computed: u64,
}

impl Pool {
    /// All blocks free.
    pub(super) fn new(block_size: u32) -> Self {
        Self { block_size: block_size.max(1), live: BTreeMap::new(), published: BTreeSet::new() }
    }

    /// Takes a step in: afterwards the pool is as the step left it.
    pub(super) fn apply(&mut self, delta: &StepDelta) {
        if delta.anew {
            self.live.clear();
            self.published.clear();
        }
        for request in delta.preempted.iter().chain(&delta.aborted) {
            self.live.remove(request);
        }
        for block in &delta.removed {
            self.published.remove(block);
        }
        for (request, place, block) in &delta.replaced {
            let entry = self.live.get_mut(request).and_then(|held| held.table.get_mut(*place as usize));
            if let Some(entry) = entry {
                *entry = *block;
            }
        }
        for (request, blocks) in &delta.appended {
            self.live.entry(*request).or_default().table.extend_from_slice(blocks);
        }
        for row in &delta.rows {
            let held = self.live.entry(row.request).or_default();
            held.computed = match row.kind {
                RowKind::Denoise => held.computed.max(row.next()),
                _ => row.next(),
            };
            let behind = first_block(held.computed, delta.window, self.block_size);
            held.table.iter_mut().take(behind).for_each(|block| *block = FREED);
        }
        for (request, block) in &delta.reserved {
            self.live.entry(*request).or_default().table.push(*block);
        }
        self.published.extend(&delta.published);
        for (request, _) in &delta.ended {
            self.live.remove(request);
        }
    }

    /// Takes in a block that a step before was found to have reserved.
    pub(super) fn name(&mut self, named: &NamedLater) {
        if let Some(held) = self.live.get_mut(&named.request) {
            held.table.push(named.block);
        }
    }

    /// Who holds blocks.
    pub(super) fn live(&self) -> &BTreeMap<u32, Held> {
        &self.live
    }

    /// Blocks that a prefix can hit, held or not.
    pub(super) fn published(&self) -> &BTreeSet<u32> {
        &self.published
    }

    /// Every block that is not free.
    pub(super) fn states(&self) -> BTreeMap<u32, BlockState> {
        let mut states: BTreeMap<u32, BlockState> =
            self.published.iter().map(|&block| (block, BlockState::Cached)).collect();
        let mut held_once = BTreeSet::new();
        for held in self.live.values() {
            for (i, &block) in (1u64..).zip(&held.table).filter(|(_, block)| **block != FREED) {
                let full = i.saturating_mul(u64::from(self.block_size)) <= held.computed;
                let state = match (held_once.insert(block), full) {
                    (false, _) => BlockState::Shared,
                    (true, true) => BlockState::Sealed,
                    (true, false) => BlockState::Writable,
                };
                states.insert(block, state);
            }
        }
        states
    }
}
