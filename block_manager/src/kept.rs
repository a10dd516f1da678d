use crate::{BlockManager, Error, GroupId, SequenceId};

/// How the tokens of a sequence find their slots in a KV group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvIndex<'a> {
    /// The token at position p has slot p.
    Position,
    /// Slot s holds the token at the s-th of these positions, which ascend. Other tokens have no slot.
    Explicit(&'a [u32]),
}

impl BlockManager {
    /// Says that a group holds exactly the positions `kept`, in slots 0, 1, .., of the first `positions` positions.
    /// From here on the group has an explicit index, even if all were kept. Blocks behind the kept ones are given
    /// back at once.
    ///
    /// Full blocks are sealed. They are published only for a sequence with a [kept prompt](Self::keep_prompt), and only those of the prompt's
    /// tokens: which tokens were kept depends on more than a prefix. What a full block holds does not change any more, so that a later list
    /// must begin with the same positions.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::UnknownGroup`]; [`Error::CommitBeyondReserved`] and
    /// [`Error::CommitBackwards`] as with [`commit`](Self::commit); [`Error::KeptOrder`], [`Error::KeptDiffers`].
    /// Then nothing is changed.
    pub fn commit_kept(
        &mut self,
        sequence: SequenceId,
        group: GroupId,
        kept: &[u32],
        positions: u32,
    ) -> Result<(), Error> {
        let (block_size, caching) = (self.block_size, self.caching);
        let (seq, pool) = self.parts(sequence, group)?;
        let table = &mut seq.tables[usize::from(group.0)];
        let (slots, reserved) = (kept.len(), table.num_blocks() as usize * block_size.get() as usize);
        if slots > reserved {
            let (upto, reserved) = (slots as u32, reserved as u32);
            return Err(Error::CommitBeyondReserved { sequence, group, upto, reserved });
        }
        if positions < table.logical() {
            let committed = table.logical();
            return Err(Error::CommitBackwards { sequence, group, upto: positions, committed });
        }
        let above = |index: usize| kept.get(index).copied().unwrap_or(positions);
        if let Some(index) = (0..slots).find(|&index| above(index) >= above(index + 1)) {
            return Err(Error::KeptOrder { sequence, group, index, positions });
        }
        let sealed = table.sealed_end() * block_size.get() as usize;
        let same = |slot: &usize| {
            let position = kept.get(*slot).copied();
            position == table.kept().map_or(Some(*slot as u32), |kept| kept.get(*slot).copied())
        };
        if let Some(slot) = (0..sealed).find(|slot| !same(slot)) {
            return Err(Error::KeptDiffers { sequence, group, slot });
        }
        table.set_kept(kept, sealed);
        let prompt = seq.kept_prompt.as_deref().filter(|prompt| caching && prompt.drops(group));
        let size = block_size.get() as usize;
        table.seal(slots / size, |index, lease| {
            match prompt.filter(|prompt| (index as u32) < prompt.full_blocks(group, block_size)) {
                Some(prompt) => {
                    let positions = kept.get(index * size..(index + 1) * size).unwrap_or_default();
                    pool.seal_kept(lease, prompt.hash(index as u32), positions)
                }
                None => pool.seal(lease, None),
            }
        });
        table.release_behind(slots.div_ceil(block_size.get() as usize), pool);
        table.set_lengths(slots as u32, positions);
        Ok(())
    }

    /// How the tokens of a sequence find their slots in a group: by position, unless the group was pruned.
    #[must_use]
    pub fn index(&self, sequence: SequenceId, group: GroupId) -> KvIndex<'_> {
        let table = self.sequences.get(sequence.0).and_then(|seq| seq.tables.get(usize::from(group.0)));
        table.and_then(|table| table.kept()).map_or(KvIndex::Position, KvIndex::Explicit)
    }

    /// Slots that a group needs so that the sequence has `positions` positions. In a pruned group the positions
    /// behind the committed ones come behind the kept ones.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::UnknownGroup`].
    pub fn slots(&self, sequence: SequenceId, group: GroupId, positions: u32) -> Result<u32, Error> {
        let table = self.table(sequence, group)?;
        Ok(match table.kept() {
            None => positions,
            Some(_) => table.physical() + positions.saturating_sub(table.logical()),
        })
    }
}
