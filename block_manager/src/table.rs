use crate::{BlockHash, BlockId, BlockPool, BlockSize, GroupId, Lease, Sealed, Writable};

/// A sequence's blocks in one KV group: the sealed ones, then the writable ones.
#[derive(Debug, Default)]
pub(crate) struct Table {
    ids: Vec<BlockId>,
    sealed: Vec<Sealed>,
    writable: Vec<Writable>,
    /// Slots that hold accepted tokens.
    physical: u32,
    /// Positions those stand for; more than `physical` where the group is pruned.
    logical: u32,
}

impl Table {
    pub(crate) fn ids(&self) -> &[BlockId] {
        &self.ids
    }

    pub(crate) fn num_blocks(&self) -> u32 {
        self.ids.len() as u32
    }

    pub(crate) fn sealed(&self) -> &[Sealed] {
        &self.sealed
    }

    pub(crate) fn physical(&self) -> u32 {
        self.physical
    }

    pub(crate) fn logical(&self) -> u32 {
        self.logical
    }

    pub(crate) fn is_pruned(&self) -> bool {
        self.physical != self.logical
    }

    pub(crate) fn set_lengths(&mut self, physical: u32, logical: u32) {
        self.physical = physical;
        self.logical = logical;
    }

    /// Makes room for the ids and leases of `blocks` blocks, so that growing needs no heap.
    pub(crate) fn prepare(&mut self, blocks: usize) {
        self.ids.reserve(blocks.saturating_sub(self.ids.len()));
        self.sealed.reserve(blocks.saturating_sub(self.sealed.len()));
        self.writable.reserve(blocks.saturating_sub(self.writable.len()));
    }

    pub(crate) fn push_writable(&mut self, lease: Writable) {
        self.ids.push(lease.id());
        self.writable.push(lease);
    }

    /// Appends a block that is sealed; there must be no writable one yet.
    pub(crate) fn push_sealed(&mut self, lease: Sealed) {
        debug_assert!(self.writable.is_empty(), "a sealed block behind a writable one");
        self.ids.push(lease.id());
        self.sealed.push(lease);
    }

    /// Seals writable blocks until the first `upto` are; `name` gives what each is published under.
    pub(crate) fn seal(
        &mut self,
        upto: usize,
        pool: &mut BlockPool,
        mut name: impl FnMut(usize) -> Option<(BlockHash, GroupId)>,
    ) {
        let first = self.sealed.len();
        let more = upto.saturating_sub(first).min(self.writable.len());
        for (offset, lease) in self.writable.drain(..more).enumerate() {
            self.sealed.push(pool.seal(lease, name(first + offset)));
        }
    }

    /// Gives back all blocks behind the first `keep`, last block first.
    pub(crate) fn release_behind(&mut self, keep: usize, pool: &mut BlockPool) {
        let keep = keep.min(self.ids.len());
        let sealed = keep.min(self.sealed.len());
        let writable = self.writable.drain(keep - sealed..).rev();
        let sealed = self.sealed.drain(sealed..).rev();
        pool.release_all(writable.map(Lease::from).chain(sealed.map(Lease::from)));
        self.ids.truncate(keep);
    }

    /// Whether a slot of the first `len` lies in a block that is sealed while slots behind `len` in that
    /// block are to be written.
    pub(crate) fn cut_is_sealed(&self, len: u32, size: BlockSize) -> bool {
        !len.is_multiple_of(size.get()) && (size.full_blocks(len) as usize) < self.sealed.len()
    }

    /// Makes the last block, sealed, writable: as it is when nobody shares it, or else as a fresh block, `with`.
    /// Gives the block to copy from in that case.
    pub(crate) fn reopen_last(
        &mut self,
        pool: &mut BlockPool,
        with: impl FnOnce(&mut BlockPool) -> Option<Writable>,
    ) -> Option<Reopened> {
        let lease = self.sealed.pop()?;
        match pool.unseal(lease) {
            Ok(lease) => {
                self.writable.push(lease);
                Some(Reopened::InPlace)
            }
            Err(shared) => {
                let Some(fresh) = with(pool) else {
                    self.sealed.push(shared);
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
