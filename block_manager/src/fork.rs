use crate::manager::require_dense;
use crate::table::{Reopened, Table};
use crate::{BlockCopy, BlockManager, BlockPool, Error, GroupId, KvGroup, SequenceId};

impl BlockManager {
    /// Makes the empty sequence `child` a copy of the first `len` tokens of `parent`: full blocks are shared, a
    /// block that `len` cuts is copied into a fresh one, and noted in `copies`. A lagging or pruned group of the
    /// parent that has less is taken over as far as it goes.
    ///
    /// `None`, and nothing taken, when there is no room for the fresh blocks.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::NotEmpty`], [`Error::ForkOfItself`], [`Error::SaltDiffers`],
    /// [`Error::ForkBeyondCommitted`], [`Error::Pruned`] for a pruned group that stands for more than `len` positions.
    pub fn fork(
        &mut self,
        parent: SequenceId,
        child: SequenceId,
        len: u32,
        copies: &mut Vec<BlockCopy>,
    ) -> Result<Option<()>, Error> {
        self.require_empty(child)?;
        if parent == child {
            return Err(Error::ForkOfItself { sequence: child });
        }
        if self.salt(parent)? != self.salt(child)? {
            return Err(Error::SaltDiffers { parent, child });
        }
        let block_size = self.block_size;
        let mut fresh = 0;
        for (table, group) in self.sequence(parent)?.tables.iter().zip(self.groups()) {
            let slots = fork_slots(table, group, parent, len)?;
            fresh += u32::from(!slots.is_multiple_of(block_size.get()));
        }
        if fresh > self.pool.num_free() {
            return Ok(None);
        }
        // Both are in the slab: taking the child out for a moment lets the two be borrowed together.
        let taken = std::mem::take(&mut self.sequence_mut(child)?.tables);
        let mut tables = taken;
        let Self { groups, pool, sequences, .. } = self;
        let from = sequences.get(parent.0).ok_or(Error::StaleSequence { sequence: parent })?;
        for ((table, source), group) in tables.iter_mut().zip(&from.tables).zip(groups.as_slice()) {
            let slots = fork_slots(source, group, parent, len)?;
            let full = block_size.full_blocks(slots) as usize;
            for lease in &source.sealed()[..full] {
                table.push_sealed(pool.share(lease));
            }
            if !slots.is_multiple_of(block_size.get())
                && let (Some(lease), Some(&src)) = (pool.allocate(), source.ids().get(full))
            {
                copies.push(BlockCopy { src, dst: lease.id() });
                table.push_writable(lease);
            }
            let logical = if source.is_pruned() { source.logical() } else { slots };
            table.set_lengths(slots, logical);
        }
        self.sequence_mut(child)?.tables = tables;
        self.copy_chain(parent, child, block_size.full_blocks(len) as usize)?;
        Ok(Some(()))
    }

    /// Goes back: of a dense group only the first `slots` slots stay, and no block behind them. A block that
    /// `slots` cuts is writable again: taken out of the cache when nobody shares it, else copied (see `copies`).
    ///
    /// `None`, and nothing changed, when there is no room for the copy.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::UnknownGroup`], [`Error::Pruned`].
    pub fn truncate(
        &mut self,
        sequence: SequenceId,
        group: GroupId,
        slots: u32,
        copies: &mut Vec<BlockCopy>,
    ) -> Result<Option<()>, Error> {
        let block_size = self.block_size;
        let (seq, pool) = self.parts(sequence, group)?;
        let table = &mut seq.tables[usize::from(group.0)];
        require_dense(table, sequence, group)?;
        let keep = block_size.blocks_for(slots) as usize;
        if table.cut_is_sealed(slots, block_size) {
            let shared = pool.holders(table.ids()[keep - 1]) > 1;
            let behind = &table.ids()[keep..];
            let frees = behind.iter().filter(|&&id| pool.holders(id) == 1).count();
            if shared && pool.num_free() as usize + frees == 0 {
                return Ok(None);
            }
            table.release_behind(keep, pool);
            if let Some(Reopened::Copied { src, dst }) = table.reopen_last(pool, BlockPool::allocate) {
                copies.push(BlockCopy { src, dst });
            }
        } else {
            table.release_behind(keep, pool);
        }
        if slots < table.physical() {
            table.set_lengths(slots, slots);
        }
        seq.chain.truncate(block_size.full_blocks(slots) as usize);
        Ok(Some(()))
    }

    fn copy_chain(&mut self, parent: SequenceId, child: SequenceId, blocks: usize) -> Result<(), Error> {
        let seq = self.sequence_mut(child)?;
        let mut chain = std::mem::take(&mut seq.chain);
        chain.copy_from(&self.sequence(parent)?.chain, blocks);
        self.sequence_mut(child)?.chain = chain;
        Ok(())
    }
}

/// Slots of a parent's group that a fork at `len` positions takes over.
fn fork_slots(table: &Table, group: &KvGroup, parent: SequenceId, len: u32) -> Result<u32, Error> {
    if table.is_pruned() {
        if table.logical() > len {
            require_dense(table, parent, group.id)?;
        }
        return Ok(table.physical());
    }
    if len > table.physical() && !group.lags {
        return Err(Error::ForkBeyondCommitted { parent, group: group.id, len, committed: table.physical() });
    }
    Ok(len.min(table.physical()))
}
