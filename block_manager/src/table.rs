use std::collections::VecDeque;
use std::ops::{Index, IndexMut};

use crate::{BlockId, BlockPool, BlockSize, KvGroup, Lease, Sealed, Writable};

/// A sequence's blocks in one KV group: those given back behind the window, the sealed ones, the writable ones.
///
/// The fields lie in this order in memory: those that every step looks at come first, so that they share a cache line.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Table {
    ids: Vec<BlockId>,
    /// Slots that hold accepted tokens.
    physical: u32,
    /// Positions those stand for; more than `physical` where the group is pruned.
    logical: u32,
    /// Slots that the blocks have.
    slots: u32,
    /// To commit up to so many positions, and no fewer than before, changes the lengths and nothing else: no block is
    /// full by it, and none falls behind the window. 0 where the positions are listed.
    quiet: u32,
    /// Whether its group neither lags nor is scratch.
    pub(crate) in_target: bool,
    explicit: bool,
    /// Whether the sequence has no other table.
    alone: bool,
    size: BlockSize,
    window: Option<u32>,
    writable: Vec<Writable>,
    sealed: VecDeque<Sealed>,
    /// The positions of the slots, where they are not counted from 0.
    kept: Vec<u32>,
    /// The clock of the pool when the table was last given a block.
    pub(crate) grown: u64,
}

/// A slab's entry puts 8 bytes in front of the first table.
const _: () = assert!(
    std::mem::offset_of!(Table, window) <= 64 - 8 - size_of::<Option<u32>>(),
    "what every step looks at lies in one cache line"
);

impl Table {
    /// An empty table of a group, or of none.
    fn new(group: Option<&KvGroup>, size: BlockSize) -> Self {
        Self {
            ids: Vec::new(),
            physical: 0,
            logical: 0,
            slots: 0,
            quiet: 0,
            in_target: group.is_some_and(KvGroup::is_looked_up),
            explicit: false,
            alone: false,
            size,
            window: group.and_then(|group| group.window),
            writable: Vec::new(),
            sealed: VecDeque::new(),
            kept: Vec::new(),
            grown: 0,
        }
    }

    /// Notes what follows from the blocks; to be called whenever they, or which of them are sealed, have changed.
    fn note_blocks(&mut self) {
        let size = u64::from(self.size.get());
        let end_of = |block: usize| (block as u64 + 1) * size;
        let slots = self.ids.len() as u64 * size;
        let mut quiet = slots.min(end_of(self.sealed_end()) - 1);
        if let Some(window) = self.window {
            quiet = quiet.min((u64::from(window) + end_of(self.first())).saturating_sub(2));
        }
        let whole = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);
        (self.slots, self.quiet) = (whole(slots), if self.explicit { 0 } else { whole(quiet) });
    }

    /// Whether to commit the first `upto` positions changes the lengths and nothing else.
    #[inline]
    pub(crate) fn commits_quietly(&self, upto: u32) -> bool {
        self.logical <= upto && upto <= self.quiet
    }

    /// Whether its blocks have `slots` slots.
    #[inline]
    pub(crate) fn has(&self, slots: u32) -> bool {
        slots <= self.slots
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
        self.note_blocks();
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
        self.note_blocks();
    }

    /// Appends a block that is sealed; there must be no writable one yet.
    pub(crate) fn push_sealed(&mut self, lease: Sealed) {
        debug_assert!(self.writable.is_empty(), "a sealed block behind a writable one");
        self.ids.push(lease.id());
        self.sealed.push_back(lease);
        self.note_blocks();
    }

    /// Makes the first `blocks` entries of an empty table stand for blocks behind the window.
    pub(crate) fn begin_at(&mut self, blocks: u32) {
        debug_assert!(self.ids.is_empty(), "a table begins once");
        self.ids.resize(blocks as usize, BlockId::FREED);
        self.note_blocks();
    }

    /// Seals writable blocks until the first `upto` are; `seal` does so with the block at an entry.
    pub(crate) fn seal(&mut self, upto: usize, mut seal: impl FnMut(usize, Writable) -> Sealed) {
        let first = self.sealed_end();
        let more = upto.saturating_sub(first).min(self.writable.len());
        for (offset, lease) in self.writable.drain(..more).enumerate() {
            self.sealed.push_back(seal(first + offset, lease));
        }
        self.note_blocks();
    }

    /// Gives back the sealed blocks before entry `first`, first block first.
    pub(crate) fn release_before(&mut self, first: usize, pool: &mut BlockPool) {
        let from = self.first();
        let count = first.saturating_sub(from).min(self.sealed.len());
        if count > 0 {
            pool.release_all(self.sealed.drain(..count).map(Lease::from));
            self.ids[from..from + count].fill(BlockId::FREED);
            self.note_blocks();
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
        self.note_blocks();
    }

    /// Gives back all blocks and forgets what they held.
    pub(crate) fn clear(&mut self, pool: &mut BlockPool) {
        self.explicit = false;
        self.release_behind(0, pool);
        self.set_lengths(0, 0);
        self.kept.clear();
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
        let reopened = match pool.unseal(lease) {
            Ok(lease) => {
                self.writable.push(lease);
                Some(Reopened::InPlace)
            }
            Err(shared) => match with(pool) {
                None => {
                    self.sealed.push_back(shared);
                    None
                }
                Some(fresh) => {
                    let (src, dst) = (shared.id(), fresh.id());
                    pool.release(shared);
                    if let Some(last) = self.ids.last_mut() {
                        *last = dst;
                    }
                    self.writable.push(fresh);
                    Some(Reopened::Copied { src, dst })
                }
            },
        };
        self.note_blocks();
        reopened
    }
}

/// The tables of one sequence, one for each KV group. The first lies in place, because most models have one group.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Tables {
    first: Table,
    others: Vec<Table>,
}

impl Tables {
    /// An empty table for each of `groups`. Without any there is one all the same, which stays empty.
    pub(crate) fn new(groups: &[KvGroup], size: BlockSize) -> Self {
        let others = groups.iter().skip(1).map(|group| Table::new(Some(group), size)).collect();
        let alone = groups.len() <= 1;
        Self { first: Table { alone, ..Table::new(groups.first(), size) }, others }
    }

    /// The table of the only group, where there is one.
    #[inline]
    pub(crate) fn only_mut(&mut self) -> Option<&mut Table> {
        self.first.alone.then_some(&mut self.first)
    }

    /// Whether every table of a group that neither lags nor is scratch has `slots` slots.
    #[inline]
    pub(crate) fn have(&self, slots: u32) -> bool {
        let has = |table: &Table| !table.in_target || table.has(slots);
        has(&self.first) && (self.first.alone || self.others.iter().all(has))
    }

    /// Commits the first `upto` positions in every group that neither lags nor is scratch, if that changes nothing but
    /// lengths in any of them. `false`, and nothing is changed, if it does.
    #[inline]
    pub(crate) fn commit_quietly(&mut self, upto: u32) -> bool {
        let quiet = |table: &Table| !table.in_target || table.commits_quietly(upto);
        if !quiet(&self.first) || !(self.first.alone || self.others.iter().all(quiet)) {
            return false;
        }
        if self.first.in_target {
            self.first.set_lengths(upto, upto);
        }
        if !self.first.alone {
            self.others
                .iter_mut()
                .filter(|table| table.in_target)
                .for_each(|table| table.set_lengths(upto, upto));
        }
        true
    }

    #[inline]
    pub(crate) fn get(&self, group: usize) -> Option<&Table> {
        if group == 0 { Some(&self.first) } else { self.others.get(group - 1) }
    }

    /// In the order of the groups.
    #[inline]
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Table> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// In the order of the groups.
    #[inline]
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Table> {
        std::iter::once(&mut self.first).chain(&mut self.others)
    }
}

impl Index<usize> for Tables {
    type Output = Table;

    #[inline]
    fn index(&self, group: usize) -> &Table {
        if group == 0 { &self.first } else { &self.others[group - 1] }
    }
}

impl IndexMut<usize> for Tables {
    #[inline]
    fn index_mut(&mut self, group: usize) -> &mut Table {
        if group == 0 { &mut self.first } else { &mut self.others[group - 1] }
    }
}

/// How a sealed block became writable.
#[derive(Debug)]
pub(crate) enum Reopened {
    InPlace,
    Copied { src: BlockId, dst: BlockId },
}
