use crate::{BlockHash, BlockId, BlockManager, Error, GroupId, KvGroup, MAX_GROUPS, Salt, SequenceId};

/// Blocks that are to be filled from elsewhere with contents that the prefix cache does not have: see
/// [`BlockManager::begin_restore`].
#[derive(Debug)]
pub struct Restore {
    sequence: SequenceId,
    group: GroupId,
    /// Tokens before the first block.
    from: u32,
    /// Each block, with the hash of the contents that it is to have.
    pub blocks: Vec<(BlockId, BlockHash)>,
}

impl BlockManager {
    /// Takes blocks for a prefix of `tokens[..limit]` that goes on behind what the cache has of it, as far as `has` says that its
    /// contents are kept elsewhere. What the cache has of the prefix is held meanwhile. `None`, and nothing taken, if there is nothing
    /// to restore, no room, or more than one group that is looked up. It is to be given to [`end_restore`](Self::end_restore).
    ///
    /// Nothing is published yet: the caller fills the blocks, after it has seen in the journal whose contents they had.
    ///
    /// # Errors
    ///
    /// Faults of the book-keeping.
    pub fn begin_restore(
        &mut self,
        salt: Salt,
        tokens: &[u32],
        limit: u32,
        has: &mut dyn FnMut(&BlockHash) -> bool,
    ) -> Result<Option<Restore>, Error> {
        let mut primary = self.groups.iter().filter(|group| group.is_looked_up());
        let group = match (primary.next(), primary.next()) {
            (Some(KvGroup { id, window: None, .. }), None) if self.caching => *id,
            _ => return Ok(None),
        };
        let sequence = self.open(salt);
        let restore = self.take_for_restore(sequence, group, tokens, limit, has);
        if !matches!(restore, Ok(Some(_))) {
            self.free(sequence)?;
        }
        restore
    }

    fn take_for_restore(
        &mut self,
        sequence: SequenceId,
        group: GroupId,
        tokens: &[u32],
        limit: u32,
        has: &mut dyn FnMut(&BlockHash) -> bool,
    ) -> Result<Option<Restore>, Error> {
        let size = self.block_size;
        let hit = self.lookup(sequence, tokens, limit)?;
        let first = size.full_blocks(hit.tokens);
        let last = size.full_blocks(limit.min(tokens.len() as u32));
        let chain = &mut self.sequence_mut(sequence)?.chain;
        let hashes = (first..last).map_while(|index| chain.get(index as usize, tokens, size));
        let hashes: Vec<BlockHash> = hashes.take_while(|hash| has(hash)).collect();
        let mut need = [0; MAX_GROUPS];
        need[usize::from(group.0)] = (first + hashes.len() as u32) * size.get();
        if hashes.is_empty() {
            return Ok(None);
        }
        self.take_hit(sequence, tokens, &hit)?;
        if self.reserve(sequence, &need[..self.groups.len()])?.is_none() {
            return Ok(None);
        }
        let table = self.block_table(sequence, group).get(first as usize..).unwrap_or_default();
        let blocks = table.iter().copied().zip(hashes).collect();
        Ok(Some(Restore { sequence, group, from: hit.tokens, blocks }))
    }

    /// Says that the first `filled` blocks of a [restore](Self::begin_restore) have their contents: they are published, and can be hit
    /// like any that were computed. The others are given back.
    ///
    /// # Errors
    ///
    /// Faults of the book-keeping; nothing is held any more then.
    pub fn end_restore(&mut self, restore: Restore, tokens: &[u32], filled: u32) -> Result<(), Error> {
        let upto = restore.from + filled.min(restore.blocks.len() as u32) * self.block_size.get();
        self.pool.restoring = true;
        let committed = self.commit(restore.sequence, restore.group, tokens, upto);
        self.pool.restoring = false;
        self.free(restore.sequence)?;
        committed.map(drop)
    }
}
