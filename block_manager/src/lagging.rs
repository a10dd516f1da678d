use crate::{BlockManager, Error, GroupId, SequenceId};

impl BlockManager {
    /// Sees to it that so many pages are empty, at the cost of lagging groups: first of what they have cached, then
    /// of what they hold.
    pub(crate) fn make_empty(&mut self, pages: u32) {
        while !self.pool.make_empty(pages) && self.drop_lagging() {}
    }

    /// Gives back the lagging groups' blocks of the sequence whose lagging tables have not grown for the longest
    /// time; whether there was one. It looks at every sequence, which is rarely needed: only when lagging
    /// groups have filled pages that primary groups have a right to.
    fn drop_lagging(&mut self) -> bool {
        let Self { groups, pool, sequences, dropped, .. } = self;
        let lagging = |index: usize| groups[index].lags;
        let last_grown = sequences.iter().filter_map(|(handle, seq)| {
            let tables = seq.tables.iter().enumerate();
            let held = tables.filter(|(index, table)| lagging(*index) && table.num_blocks() > 0);
            Some((held.map(|(_, table)| table.grown).max()?, handle))
        });
        let Some((_, handle)) = last_grown.min() else {
            return false;
        };
        let Some(seq) = sequences.get_mut(handle) else {
            return false;
        };
        for (index, table) in seq.tables.iter_mut().enumerate() {
            if lagging(index) {
                table.clear(pool);
            }
        }
        *dropped += 1;
        true
    }

    /// How often the lagging groups of a sequence were emptied, because a group that does not lag needed the
    /// memory. Who reserved blocks of a lagging group looks at them again when this has changed.
    #[must_use]
    pub fn num_dropped(&self) -> u64 {
        self.dropped
    }

    /// Gives back all blocks of one group of the sequence: of a scratch group when its rows went on, of a lagging
    /// group that is not needed for now.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::UnknownGroup`].
    pub fn clear_group(&mut self, sequence: SequenceId, group: GroupId) -> Result<(), Error> {
        let (seq, pool) = self.parts(sequence, group)?;
        seq.tables[usize::from(group.0)].clear(pool);
        Ok(())
    }
}
