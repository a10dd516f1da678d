use crate::table::Tables;
use crate::table::{Reopened, Table};
use crate::window::first_seen;
use crate::{BlockCopy, BlockManager, BlockSize, Error, GroupId, KvGroup, MAX_GROUPS, SequenceId};

impl BlockManager {
    /// Makes the empty sequence `child` a copy of the first `len` tokens of `parent`: full blocks are shared, a
    /// block that `len` cuts is copied into a fresh one, and noted in `copies`. A pruned group is taken over whole; of
    /// a lagging group the full blocks, as far as it goes; of a scratch group nothing.
    ///
    /// `None`, and nothing taken, when there is no room for the fresh blocks.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::NotEmpty`], [`Error::ForkOfItself`], [`Error::SaltDiffers`],
    /// [`Error::ForkBeyondCommitted`], [`Error::Pruned`] for a pruned group that stands for more than `len` positions,
    /// [`Error::BehindWindow`] when the parent gave back blocks that the fork would see.
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
        let size = self.block_size;
        let mut fresh = [0; MAX_GROUPS];
        for ((table, group), fresh) in self.sequence(parent)?.tables.iter().zip(self.groups()).zip(&mut fresh)
        {
            let slots = fork_slots(table, group, parent, len, size)?;
            *fresh = u32::from(!slots.is_multiple_of(size.get()));
        }
        let Some(mut room) = self.pool.room(&fresh) else {
            return Ok(None);
        };
        self.make_empty(room.empty);
        // Both are in the slab: taking the child out for a moment lets the two be borrowed together.
        let mut tables = std::mem::replace(&mut self.sequence_mut(child)?.tables, Tables::new(&[], size));
        let Self { groups, pool, sequences, .. } = self;
        let from = sequences.get(parent.0).ok_or(Error::StaleSequence { sequence: parent })?;
        let mut lost = None;
        for ((table, source), group) in tables.iter_mut().zip(from.tables.iter()).zip(groups.as_slice()) {
            let slots = fork_slots(source, group, parent, len, size)?;
            let full = size.full_blocks(slots) as usize;
            table.clear(pool);
            table.grown = pool.clock;
            table.begin_at(source.first().min(full) as u32);
            for lease in (source.first()..full).filter_map(|index| source.sealed(index)) {
                table.push_sealed(pool.share(lease));
            }
            if !slots.is_multiple_of(size.get())
                && let Some(&src) = source.ids().get(full)
            {
                let Some(lease) = pool.take(group.id, 1, &mut room) else {
                    lost = Some(group.id);
                    break;
                };
                copies.push(BlockCopy { group: group.id, src, dst: lease.id() });
                table.push_writable(lease);
            }
            if let Some(kept) = source.kept().filter(|_| slots > 0) {
                table.set_kept(kept, 0);
                table.set_lengths(slots, source.logical());
            } else {
                table.set_lengths(slots, slots);
            }
        }
        self.sequence_mut(child)?.tables = tables;
        if let Some(group) = lost {
            self.clear(child)?;
            return Err(Error::Room { sequence: child, group });
        }
        self.copy_chain(parent, child, size.full_blocks(len) as usize)?;
        Ok(Some(()))
    }

    /// Goes back: of a dense group only the first `slots` slots stay, and no block behind them. A block that
    /// `slots` cuts is writable again: taken out of the cache when nobody shares it, else copied (see `copies`).
    ///
    /// `None`, and nothing changed, when there is no room for the copy.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::UnknownGroup`], [`Error::Pruned`], [`Error::BehindWindow`] when blocks that
    /// are seen from there were given back.
    pub fn truncate(
        &mut self,
        sequence: SequenceId,
        group: GroupId,
        slots: u32,
        copies: &mut Vec<BlockCopy>,
    ) -> Result<Option<()>, Error> {
        let size = self.block_size;
        let table = self.table(sequence, group)?;
        require_dense(table, sequence, group)?;
        let kv = &self.groups[usize::from(group.0)];
        require_seen(table, kv, sequence, slots, size)?;
        let lags = kv.lags && self.groups.len() > 1;
        let keep = size.blocks_for(slots) as usize;
        let cut = table.cut_is_sealed(slots, size);
        let shared = cut && self.pool.holders(group, table.ids()[keep - 1]) > 1;
        if shared {
            let behind = &table.ids()[keep..];
            let frees = behind.iter().any(|&id| self.pool.holders(group, id) == 1);
            if !frees && self.pool.room_for(group) == 0 {
                return Ok(None);
            }
        }
        let (seq, pool) = self.parts(sequence, group)?;
        seq.tables[usize::from(group.0)].release_behind(keep, pool);
        if shared {
            let mut one = [0; MAX_GROUPS];
            one[usize::from(group.0)] = 1;
            let room = self.pool.room(&one).ok_or(Error::Room { sequence, group })?;
            self.make_empty(room.empty);
        }
        let (seq, pool) = self.parts(sequence, group)?;
        let table = &mut seq.tables[usize::from(group.0)];
        if cut {
            match table.reopen_last(pool, |pool| pool.allocate(group)) {
                Some(Reopened::Copied { src, dst }) => copies.push(BlockCopy { group, src, dst }),
                Some(Reopened::InPlace) => {}
                None => return Err(Error::Room { sequence, group }),
            }
        }
        if slots < table.physical() {
            table.set_lengths(slots, slots);
        }
        // The tokens are those of the groups that do not lag: a lagging one that goes back changes none of them.
        if !lags {
            seq.chain.truncate(size.full_blocks(slots) as usize);
        }
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
fn fork_slots(
    table: &Table,
    group: &KvGroup,
    parent: SequenceId,
    len: u32,
    size: BlockSize,
) -> Result<u32, Error> {
    if group.is_scratch() {
        return Ok(0);
    }
    if table.kept().is_some() {
        if table.logical() > len {
            require_dense(table, parent, group.id)?;
        }
        return Ok(table.physical());
    }
    if group.lags {
        // What a copy would save is less than a block, and lagging groups may not take memory for it.
        let slots = size.full_blocks(len.min(table.physical())) * size.get();
        let seen = require_seen(table, group, parent, slots, size).is_ok();
        return Ok(if seen { slots } else { 0 });
    }
    if len > table.physical() {
        return Err(Error::ForkBeyondCommitted { parent, group: group.id, len, committed: table.physical() });
    }
    require_seen(table, group, parent, len, size)?;
    Ok(len)
}

/// Whether a sequence that goes on from `slots` still has every block that is seen from there.
fn require_seen(
    table: &Table,
    group: &KvGroup,
    sequence: SequenceId,
    slots: u32,
    size: BlockSize,
) -> Result<(), Error> {
    let needed = first_seen(slots, group.window, size);
    let first = table.first() as u32;
    if needed < first && needed < size.blocks_for(slots) {
        return Err(Error::BehindWindow { sequence, group: group.id, slots, needed, first });
    }
    Ok(())
}

fn require_dense(table: &Table, sequence: SequenceId, group: GroupId) -> Result<(), Error> {
    if table.kept().is_some() {
        return Err(Error::Pruned { sequence, group, physical: table.physical(), logical: table.logical() });
    }
    Ok(())
}
