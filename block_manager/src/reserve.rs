use crate::room::{Pinned, Room};
use crate::table::Table;
use crate::window::most_held;
use crate::{BlockManager, BlockPool, BlockSize, Error, GroupId, KvGroup, MAX_GROUPS, PrefixHit, SequenceId};

impl BlockManager {
    /// The longest a sequence can get when it has the arena for itself, in positions, when rows of at most `piece`
    /// tokens are computed at once and run through all layers. A group with a window then holds the window and the piece,
    /// a scratch group nothing, every other group all positions.
    #[must_use]
    pub fn capacity(&self, piece: u32) -> u32 {
        let pages = |positions: u32| -> u64 {
            let groups = self.groups.iter().zip(self.pool.arena().groups());
            let primary = groups.filter(|(group, _)| self.groups.len() == 1 || group.is_looked_up());
            let blocks = primary.map(|(group, cut)| {
                let blocks = most_held(positions, piece, group.window, self.block_size);
                u64::from(blocks.div_ceil(cut.per_page))
            });
            blocks.sum()
        };
        let room = u64::from(self.pool.arena().primary_pages());
        // The number of pages grows with that of positions: the greatest that fits is found by halving.
        let (mut fits, mut too_many) = (0, u32::MAX);
        if pages(too_many) <= room {
            return too_many;
        }
        while too_many - fits > 1 {
            let middle = fits + (too_many - fits) / 2;
            if pages(middle) <= room { fits = middle } else { too_many = middle }
        }
        fits
    }

    /// Blocks of a group that could be had at once, if nothing else were asked for.
    #[must_use]
    pub fn room(&self, group: GroupId) -> u32 {
        self.pool.room_for(group)
    }

    /// Whether the sequence has `slots` slots in every group that neither lags nor is scratch. A sequence that does not
    /// exist has none.
    #[inline]
    #[must_use]
    pub fn has_slots(&self, sequence: SequenceId, slots: u32) -> bool {
        self.sequences.get(sequence.0).is_some_and(|seq| seq.tables.have(slots))
    }

    /// Adds to `blocks[g]` the blocks that the sequence lacks to have `need[g]` slots in group g. Both have an entry
    /// for every group.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`].
    pub fn missing(&self, sequence: SequenceId, need: &[u32], blocks: &mut [u32]) -> Result<(), Error> {
        let seq = self.sequence(sequence)?;
        for ((table, &need), blocks) in seq.tables.iter().zip(need).zip(blocks) {
            *blocks += lacks(table, need, self.block_size);
        }
        Ok(())
    }

    /// Whether `blocks[g]` more blocks of every group g can be had at once. Of lagging groups that is what is left
    /// when the others have theirs.
    #[must_use]
    pub fn has_room(&self, blocks: &[u32]) -> bool {
        self.pool.room(blocks).is_some()
    }

    /// Whether the empty sequence could take `hit`, which a look-up for the same `tokens` gave just now, and then have
    /// `need[g]` slots in every group g. Takes nothing.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::NotEmpty`], [`Error::HitLost`].
    pub fn fits(
        &mut self,
        sequence: SequenceId,
        tokens: &[u32],
        hit: &PrefixHit,
        need: &[u32],
    ) -> Result<bool, Error> {
        self.require_empty(sequence)?;
        let mut lack = [0; MAX_GROUPS];
        for ((lack, &need), &len) in lack.iter_mut().zip(need).zip(&hit.lens) {
            let have = self.block_size.full_blocks(len);
            *lack = self.block_size.blocks_for(need).saturating_sub(have);
        }
        if hit.free_blocks == 0 {
            return Ok(self.has_room(&lack));
        }
        let mut pinned = Pinned::default();
        self.pin(sequence, tokens, hit, &mut pinned)?;
        Ok(self.pool.room_after(&lack, Some(&pinned)).is_some())
    }

    /// Sees to it that the sequence has `need[g]` slots in every group g; groups of which it has so many, or of
    /// which 0 are needed, are left alone. `None`, and nothing taken, when there is no room, or when there is only at
    /// the cost of the blocks that a lagging group is to keep.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`].
    pub fn reserve(&mut self, sequence: SequenceId, need: &[u32]) -> Result<Option<()>, Error> {
        let size = self.block_size;
        let Self { pool, sequences, .. } = self;
        let seq = sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })?;
        // One group has nobody to share pages with: there is room as long as pages are free.
        if let (Some(table), [need]) = (seq.tables.only_mut(), need) {
            let lack = lacks(table, *need, size);
            if lack > pool.free_pages() {
                return Ok(None);
            }
            table.grown = pool.clock;
            for _ in 0..lack {
                let lease = pool.take_page().ok_or(Error::Room { sequence, group: GroupId(0) })?;
                table.push_writable(lease);
            }
            return Ok(Some(()));
        }
        let seq = self.sequence(sequence)?;
        // Most steps of most sequences find their slots there already.
        if seq.tables.iter().zip(need).all(|(table, &need)| table.has(need)) {
            return Ok(Some(()));
        }
        let mut lack = [0; MAX_GROUPS];
        for ((table, &need), lack) in seq.tables.iter().zip(need).zip(&mut lack) {
            *lack = lacks(table, need, size);
        }
        let Some(room) = self.pool.room(&lack) else {
            return Ok(None);
        };
        let keeps = |(group, need): (&KvGroup, &u32)| group.lags && *need > 0;
        if room.empty > self.pool.pages.num_empty()
            && self.groups.iter().zip(need).any(keeps)
            && !self.pool.make_empty(room.empty)
        {
            return Ok(None);
        }
        self.take(sequence, &lack, room)
    }

    /// The same for one group alone.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::UnknownGroup`].
    pub fn reserve_group(
        &mut self,
        sequence: SequenceId,
        group: GroupId,
        slots: u32,
    ) -> Result<Option<()>, Error> {
        let mut lack = [0; MAX_GROUPS];
        let missing = lacks(self.table(sequence, group)?, slots, self.block_size);
        lack[usize::from(group.0)] = missing;
        match self.pool.room(&lack) {
            Some(room) => self.take(sequence, &lack, room),
            None => Ok(None),
        }
    }

    /// Takes `lack[g]` blocks of every group g, for which there is `room`: first those of groups that do not lag.
    fn take(&mut self, sequence: SequenceId, lack: &[u32], mut room: Room) -> Result<Option<()>, Error> {
        self.make_empty(room.empty);
        let Self { pool, sequences, groups, .. } = self;
        let seq = sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })?;
        for lagging in [false, true] {
            for (group, table) in groups.iter().zip(seq.tables.iter_mut()) {
                let lack = lack[usize::from(group.id.0)];
                if group.lags == lagging && lack > 0 {
                    grow(table, lack, group.id, pool, &mut room)
                        .ok_or(Error::Room { sequence, group: group.id })?;
                }
            }
        }
        Ok(Some(()))
    }

    /// Notes in `pinned` what taking `hit` changes.
    fn pin(
        &mut self,
        sequence: SequenceId,
        tokens: &[u32],
        hit: &PrefixHit,
        pinned: &mut Pinned,
    ) -> Result<(), Error> {
        let Self { block_size, groups, pool, sequences, .. } = self;
        let seq = sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })?;
        pool.begin_pins();
        for (group, &len) in groups.iter().zip(&hit.lens) {
            for index in hit_blocks(len, group.window, *block_size) {
                let hash = seq.block_name(group.id, index, tokens, *block_size);
                let id = hash.and_then(|hash| pool.lookup(&hash, group.id));
                let id = id.ok_or(Error::HitLost { sequence, block: index })?;
                pool.pin(group.id, id, pinned);
            }
        }
        Ok(())
    }
}

/// The entries of a table that a hit of `len` tokens fills: with a window those that a query behind the hit sees.
pub(crate) fn hit_blocks(len: u32, window: Option<u32>, size: BlockSize) -> std::ops::Range<u32> {
    let end = size.full_blocks(len);
    crate::window::first_seen(len, window, size).min(end)..end
}

#[inline]
fn lacks(table: &Table, need: u32, size: BlockSize) -> u32 {
    if table.has(need) { 0 } else { size.blocks_for(need) - table.num_blocks() }
}

fn grow(table: &mut Table, lack: u32, group: GroupId, pool: &mut BlockPool, room: &mut Room) -> Option<()> {
    table.grown = pool.clock;
    for left in (1..=lack).rev() {
        table.push_writable(pool.take(group, left, room)?);
    }
    Some(())
}
