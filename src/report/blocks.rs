//! Keeps the state of every block of the pool, step by step.
//!
//! The page's script does the same computation on the same changes. This code is the reference that both
//! are tested against. It also gives the state with which a page begins that starts in the middle of a
//! trace.

use std::collections::{BTreeMap, BTreeSet};

use pagedraft_workloads::trace::RowKind;

use super::step_delta::{FREED, NamedLater, StepDelta, first_block};

/// The state of a block after a step was applied. All other blocks are free: nobody holds them, and nothing
/// in them can be hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum BlockState {
    /// One sequence holds it and has not filled it yet.
    Writable,
    /// One sequence holds it, and it is full of committed tokens.
    Sealed,
    /// Several sequences hold it.
    Shared,
    /// Nobody holds it, but its contents can still be hit by a prefix.
    Cached,
}

/// Which request holds which blocks, and which blocks can be hit.
#[derive(Clone, Debug)]
pub(super) struct Pool {
    block_size: u32,
    live: BTreeMap<u32, Held>,
    published: BTreeSet<u32>,
}

/// The blocks that a request holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Its blocks. [`FREED`] stands for those that were given back behind the window.
    pub(super) table: Vec<u32>,
    /// The number of its tokens that have KV.
    pub(super) computed: u64,
}

impl Pool {
    /// A pool in which all blocks are free.
    pub(super) fn new(block_size: u32) -> Self {
        Self { block_size: block_size.max(1), live: BTreeMap::new(), published: BTreeSet::new() }
    }

    /// Applies a step. Afterwards the pool is as the step left it.
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

    /// Adds a block that an earlier step is now known to have reserved.
    pub(super) fn name(&mut self, named: &NamedLater) {
        if let Some(held) = self.live.get_mut(&named.request) {
            held.table.push(named.block);
        }
    }

    /// The requests that hold blocks.
    pub(super) fn live(&self) -> &BTreeMap<u32, Held> {
        &self.live
    }

    /// The blocks that a prefix can hit, whether held or not.
    pub(super) fn published(&self) -> &BTreeSet<u32> {
        &self.published
    }

    /// The state of every block that is not free.
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
