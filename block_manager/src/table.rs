use std::collections::VecDeque;

use crate::{BlockId, BlockPool, BlockSize, KvGroup, Lease, Sealed, Writable};

/// A sequence's blocks in one KV group: those given back behind the window, the sealed ones, the writable ones.
///
/// The fields lie in this order in memory: those that every step looks at come first, so that they share cache lines.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Table {
    ids: Vec<BlockId>,
    /// Slots that hold accepted tokens.
    physical: u32,
    /// Positions those stand for; more than `physical` where the group is pruned.
    logical: u32,
    window: Option<u32>,
    /// Whether its group neither lags nor is scratch.
    pub(crate) in_target: bool,
    explicit: bool,
    writable: Vec<Writable>,
    sealed: VecDeque<Sealed>,
    /// The positions of the slots, where they are not counted from 0.
    kept: Vec<u32>,
    /// The clock of the pool when the table was last given a block.
    pub(crate) grown: u64,
}

impl Table {
    /// An empty table of a group.
    pub(crate) fn new(group: &KvGroup) -> Self {
        Self { in_target: group.is_looked_up(), window: group.window, ..Self::default() }
    }

    /// Whether to commit the first `upto` positions changes the lengths and nothing else: no block is full by it, none
    /// falls behind the window, and all is in order. Products stand here for divisions, which cost more.
    #[inline]
    pub(crate) fn commits_quietly(&self, upto: u32, size: BlockSize) -> bool {
        let (upto, size) = (u64::from(upto), u64::from(size.get()));
        let end_of = |block: usize| (block as u64 + 1) * size;
        !self.explicit
            && upto >= u64::from(self.logical)
            && upto <= self.ids.len() as u64 * size
            && upto < end_of(self.sealed_end())
            && self.window.is_none_or(|window| upto + 1 < u64::from(window) + end_of(self.first()))
    }

    #[inline]
    pub(crate) fn ids(&self) -> &[BlockId] {
        &self.ids
    }

    /// Entries of the table, those of blocks that were given back behind the window included.
    #[inline]
    pub(crate) fn num_blocks(&self) -> u32 {
        self.ids.len() as u32
    }

    /// The first entry that was not given back behind the window.
    #[inline]
    pub(crate) fn first(&self) -> usize {
        self.ids.len() - self.sealed.len() - self.writable.len()
    }

    /// Entries before the first writable block.
    #[inline]
    pub(crate) fn sealed_end(&self) -> usize {
        self.ids.len() - self.writable.len()
    }

    /// The sealed block at entry `index`.
    pub(crate) fn sealed(&self, index: usize) -> Option<&Sealed> {
        self.sealed.get(index.checked_sub(self.first())?)
    }

    #[inline]
    pub(crate) fn physical(&self) -> u32 {
        self.physical
    }

    #[inline]
    pub(crate) fn logical(&self) -> u32 {
        self.logical
    }

    /// The positions of the slots, where they are not counted from 0.
    #[inline]
    pub(crate) fn kept(&self) -> Option<&[u32]> {
        self.explicit.then_some(&self.kept)
    }

    #[inline]
    pub(crate) fn set_lengths(&mut self, physical: u32, logical: u32) {
        self.physical = physical;
        self.logical = logical;
    }

    /// From here on the slots hold `kept`; the first `same` entries are so already.
    pub(crate) fn set_kept(&mut self, kept: &[u32], same: usize) {
        let same = if self.explicit { same } else { 0 };
        self.kept.truncate(same);
        self.kept.extend_from_slice(&kept[same..]);
        self.explicit = true;
    }

    /// Appends the positions `logical..upto` to the kept ones.
    pub(crate) fn keep_all(&mut self, upto: u32) {
        self.kept.extend(self.logical..upto);
    }

    /// Makes room for the ids and leases of `blocks` blocks, so that growing needs no heap.
    pub(crate) fn prepare(&mut self, blocks: usize) {
        self.ids.reserve(blocks.saturating_sub(self.ids.len()));
        self.sealed.reserve(blocks.saturating_sub(self.sealed.len()));
        self.writable.reserve(blocks.saturating_sub(self.writable.len()));
    }

    #[inline]
    pub(crate) fn push_writable(&mut self, lease: Writable) {
        self.ids.push(lease.id());
        self.writable.push(lease);
    }

    /// Appends a block that is sealed; there must be no writable one yet.
    pub(crate) fn push_sealed(&mut self, lease: Sealed) {
        debug_assert!(self.writable.is_empty(), "a sealed block behind a writable one");
        self.ids.push(lease.id());
        self.sealed.push_back(lease);
    }

    /// Makes the first `blocks` entries of an empty table stand for blocks behind the window.
    pub(crate) fn begin_at(&mut self, blocks: u32) {
        debug_assert!(self.ids.is_empty(), "a table begins once");
        self.ids.resize(blocks as usize, BlockId::FREED);
    }

    /// Seals writable blocks until the first `upto` are; `seal` does so with the block at an entry.
    pub(crate) fn seal(&mut self, upto: usize, mut seal: impl FnMut(usize, Writable) -> Sealed) {
        let first = self.sealed_end();
        let more = upto.saturating_sub(first).min(self.writable.len());
        for (offset, lease) in self.writable.drain(..more).enumerate() {
            self.sealed.push_back(seal(first + offset, lease));
        }
    }

    /// Gives back the sealed blocks before entry `first`, first block first.
    pub(crate) fn release_before(&mut self, first: usize, pool: &mut BlockPool) {
        let from = self.first();
        let count = first.saturating_sub(from).min(self.sealed.len());
        if count > 0 {
            pool.release_all(self.sealed.drain(..count).map(Lease::from));
            self.ids[from..from + count].fill(BlockId::FREED);
        }
    }

    /// Gives back all blocks behind the first `keep` entries, last block first.
    pub(crate) fn release_behind(&mut self, keep: usize, pool: &mut BlockPool) {
        let keep = keep.min(self.ids.len());
        let held = keep.saturating_sub(self.first());
        let sealed = held.min(self.sealed.len());
        let writable = self.writable.drain(held - sealed..).rev();
        let sealed = self.sealed.drain(sealed..).rev();
        pool.release_all(writable.map(Lease::from).chain(sealed.map(Lease::from)));
        self.ids.truncate(keep);
    }

    /// Gives back all blocks and forgets what they held.
    pub(crate) fn clear(&mut self, pool: &mut BlockPool) {
        self.release_behind(0, pool);
        self.set_lengths(0, 0);
        self.kept.clear();
        self.explicit = false;
    }

    /// Whether a slot of the first `len` lies in a block that is sealed while slots behind `len` in that
    /// block are to be written.
    pub(crate) fn cut_is_sealed(&self, len: u32, size: BlockSize) -> bool {
        !len.is_multiple_of(size.get()) && (size.full_blocks(len) as usize) < self.sealed_end()
    }

    /// Makes the last block, sealed, writable: as it is when nobody shares it, or else as a fresh block, `with`.
    /// Gives the block to copy from in that case.
    pub(crate) fn reopen_last(
        &mut self,
        pool: &mut BlockPool,
        with: impl FnOnce(&mut BlockPool) -> Option<Writable>,
    ) -> Option<Reopened> {
        let lease = self.sealed.pop_back()?;
        match pool.unseal(lease) {
            Ok(lease) => {
                self.writable.push(lease);
                Some(Reopened::InPlace)
            }
            Err(shared) => {
                let Some(fresh) = with(pool) else {
                    self.sealed.push_back(shared);
                    return None;
                };
                let (src, dst) = (shared.id(), fresh.id());
                pool.release(shared);
                if let Some(last) = self.ids.last_mut() {
                    *last = dst;
                }
                self.writable.push(fresh);
                Some(Reopened::Copied { src, dst })
            }
        }
    }
}

/// How a sealed block became writable.
#[derive(Debug)]
pub(crate) enum Reopened {
    InPlace,
    Copied { src: BlockId, dst: BlockId },
}
