use std::ops::Range;

use crate::hash::HashChain;
use crate::sequence::Sequence;
use crate::table::{Table, Tables};
use crate::upto::Upto;
use crate::{
    Arena, BlockHash, BlockId, BlockPool, BlockSize, Error, GroupId, GroupStats, KeptPrompt, KvGroup,
    KvJournal, Lengths, PoolStats, Salt, SequenceId, Slab,
};

/// The KV blocks of all sequences: who holds which, what of it is accepted, and what can be hit.
///
/// A sequence lives from [`open`](Self::open) to [`free`](Self::free). In between it takes a prefix from the cache
/// or from a parent, reserves blocks, commits what was accepted, and may give everything back and begin again
/// ([`clear`](Self::clear)). Lengths are in slots of a group; in a dense group a slot is a position.
#[derive(Debug)]
pub struct BlockManager {
    pub(crate) block_size: BlockSize,
    pub(crate) caching: bool,
    pub(crate) groups: Vec<KvGroup>,
    pub(crate) pool: BlockPool,
    pub(crate) sequences: Slab<Sequence>,
    /// How often a sequence's lagging groups were emptied for others.
    pub(crate) dropped: u64,
}

impl BlockManager {
    /// An arena with the bytes of `num_blocks` blocks of `block_size` tokens of each of `groups`; `caching` says
    /// whether committed blocks are published.
    ///
    /// # Errors
    ///
    /// Those of [`Arena::plan`].
    pub fn new(
        block_size: BlockSize,
        num_blocks: u32,
        groups: Vec<KvGroup>,
        caching: bool,
    ) -> Result<Self, Error> {
        let arena = Arena::plan(block_size, num_blocks, &groups)?;
        let pool = BlockPool::over(arena, &groups);
        Ok(Self { block_size, caching, groups, pool, sequences: Slab::default(), dropped: 0 })
    }

    /// Tokens a block.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The KV groups.
    #[must_use]
    pub fn groups(&self) -> &[KvGroup] {
        &self.groups
    }

    /// The pool, to look at.
    #[must_use]
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// How full the pool is, in blocks.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.pool.stats()
    }

    /// What one group has of the arena; nothing for a group that does not exist.
    #[must_use]
    pub fn group_stats(&self, group: GroupId) -> GroupStats {
        self.pool.group_stats(group)
    }

    /// The plan of the memory that the blocks of all groups lie in.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        self.pool.arena()
    }

    /// How many KV groups there are.
    #[must_use]
    pub fn num_groups(&self) -> usize {
        self.groups.len()
    }

    /// Whether changes of the prefix cache are noted from here on, to be had by
    /// [`drain_journal`](Self::drain_journal).
    pub fn keep_journal(&mut self, yes: bool) {
        self.pool.keep_journal(yes);
    }

    /// Puts the changes of the prefix cache since the last call in place of what `into` holds. Nothing is
    /// allocated: the memory of `into` is used for the changes to come.
    pub fn drain_journal(&mut self, into: &mut KvJournal) {
        self.pool.drain_journal(into);
    }

    /// A new sequence without blocks, whose prefix is shared only under the same `salt`.
    pub fn open(&mut self, salt: Salt) -> SequenceId {
        let tables = Tables::new(&self.groups, self.block_size);
        SequenceId(self.sequences.insert(Sequence { chain: HashChain::new(salt), tables, kept_prompt: None }))
    }

    /// Says that some groups of a sequence will hold only chosen tokens of its prompt, so that it shares their blocks with sequences of the
    /// same [`KeptPrompt`]. To be said before anything is looked up or committed for it.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::NotEmpty`].
    pub fn keep_prompt(&mut self, sequence: SequenceId, prompt: KeptPrompt) -> Result<(), Error> {
        self.require_empty(sequence)?;
        self.sequence_mut(sequence)?.kept_prompt = Some(Box::new(prompt));
        Ok(())
    }

    /// Lets the sequence grow to `slots` slots a group without asking the heap for book-keeping. Takes no
    /// blocks.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`].
    pub fn prepare(&mut self, sequence: SequenceId, slots: u32) -> Result<(), Error> {
        let blocks = self.block_size.blocks_for(slots) as usize;
        let caching = self.caching;
        let seq = self.sequence_mut(sequence)?;
        if caching {
            seq.chain.reserve(blocks);
        }
        seq.tables.iter_mut().for_each(|table| table.prepare(blocks));
        Ok(())
    }

    /// Says that a group holds the KV of `tokens[..upto]`, all of them accepted. Blocks that are full by it are sealed
    /// and published.
    ///
    /// `tokens` are the sequence's, from its beginning. What was once handed over, here or to a look-up, must not
    /// change unless the sequence was cut before it ([`truncate`](Self::truncate), in every group).
    ///
    /// In a pruned group the positions behind the committed ones get the slots behind the kept ones, and nothing is
    /// published; nor is it in a scratch group. A group with a window then gives back the blocks that neither the query
    /// at position `upto` nor a later one sees; their table entries become [`BlockId::FREED`].
    ///
    /// Gives the places in the sequence's table of the blocks that this call sealed.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::UnknownGroup`]; [`Error::CommitBeyondReserved`],
    /// [`Error::CommitBackwards`], [`Error::MissingTokens`], and nothing is changed.
    pub fn commit(
        &mut self,
        sequence: SequenceId,
        group: GroupId,
        tokens: &[u32],
        upto: u32,
    ) -> Result<Range<u32>, Error> {
        let Self { groups, pool, sequences, block_size, caching, .. } = self;
        let Some(kv) = groups.get(usize::from(group.0)) else {
            return Err(Error::UnknownGroup { group, num_groups: groups.len() });
        };
        let seq = sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })?;
        let to = Upto { sequence, tokens, upto, block_size: *block_size, caching: *caching };
        to.commit(kv, seq, pool)
    }

    /// The same in every group that neither lags nor is scratch, with one look at the sequence. A group that has more
    /// already, because a prefix hit was longer in it than in the others, is left as it is. Gives the places of the
    /// blocks that were sealed in group 0, none where that is another kind of group.
    ///
    /// # Errors
    ///
    /// Those of [`commit`](Self::commit); the groups before the one that is named have been committed then.
    #[inline]
    pub fn commit_all(
        &mut self,
        sequence: SequenceId,
        tokens: &[u32],
        upto: u32,
    ) -> Result<Range<u32>, Error> {
        if tokens.len() >= upto as usize
            && let Some(seq) = self.sequences.get_mut(sequence.0)
            && seq.tables.commit_quietly(upto)
        {
            let first = &seq.tables[0];
            let sealed = if first.in_target { first.sealed_end() as u32 } else { 0 };
            return Ok(sealed..sealed);
        }
        self.commit_each(sequence, tokens, upto)
    }

    fn commit_each(&mut self, sequence: SequenceId, tokens: &[u32], upto: u32) -> Result<Range<u32>, Error> {
        let Self { groups, pool, sequences, block_size, caching, .. } = self;
        let seq = sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })?;
        let to = Upto { sequence, tokens, upto, block_size: *block_size, caching: *caching };
        let mut first = 0..0;
        for (index, kv) in groups.iter().enumerate() {
            if seq.tables[index].in_target {
                let sealed = match to.commit(kv, seq, pool) {
                    // A prefix hit may be longer in one group than in another: its tokens are computed again.
                    Err(Error::CommitBackwards { .. }) => continue,
                    sealed => sealed?,
                };
                if index == 0 {
                    first = sealed;
                }
            }
        }
        Ok(first)
    }

    /// Gives back every block of the sequence, which stays open and remembers its hashes: preemption.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`].
    pub fn clear(&mut self, sequence: SequenceId) -> Result<(), Error> {
        let Self { pool, sequences, .. } = self;
        let seq = sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })?;
        release_all(seq, pool);
        Ok(())
    }

    /// Ends the sequence and gives back its blocks. Its handle names nothing from here on.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], so that freeing twice is found.
    pub fn free(&mut self, sequence: SequenceId) -> Result<(), Error> {
        let mut seq = self.sequences.remove(sequence.0).ok_or(Error::StaleSequence { sequence })?;
        release_all(&mut seq, &mut self.pool);
        Ok(())
    }

    /// Forgets everything published; nobody's blocks change.
    pub fn clear_cache(&mut self) {
        self.pool.clear_cache();
    }

    /// Takes one block out of the prefix cache, whose contents turned out to be lost; whether it was in it. Nobody's blocks change.
    pub fn unpublish(&mut self, group: GroupId, block: BlockId) -> bool {
        self.pool.unpublish(group, block)
    }

    /// The block table of a sequence in a group; empty for a sequence or group that does not exist.
    #[must_use]
    pub fn block_table(&self, sequence: SequenceId, group: GroupId) -> &[BlockId] {
        self.sequences
            .get(sequence.0)
            .and_then(|seq| seq.tables.get(usize::from(group.0)))
            .map_or(&[], Table::ids)
    }

    /// How much of a group is committed.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::UnknownGroup`].
    pub fn lengths(&self, sequence: SequenceId, group: GroupId) -> Result<Lengths, Error> {
        let table = self.table(sequence, group)?;
        Ok(Lengths { physical: table.physical(), logical: table.logical() })
    }

    /// The hash of block `index` of the sequence, as far as it was computed (by a look-up or a commit).
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`].
    pub fn block_hash(&mut self, sequence: SequenceId, index: u32) -> Result<Option<BlockHash>, Error> {
        let block_size = self.block_size;
        let seq = self.sequence_mut(sequence)?;
        Ok(seq.chain.get(index as usize, &[], block_size))
    }

    /// The salt the sequence was opened with.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`].
    pub fn salt(&self, sequence: SequenceId) -> Result<Salt, Error> {
        Ok(self.sequence(sequence)?.chain.salt())
    }

    pub(crate) fn sequence(&self, sequence: SequenceId) -> Result<&Sequence, Error> {
        self.sequences.get(sequence.0).ok_or(Error::StaleSequence { sequence })
    }

    pub(crate) fn sequence_mut(&mut self, sequence: SequenceId) -> Result<&mut Sequence, Error> {
        self.sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })
    }

    pub(crate) fn table(&self, sequence: SequenceId, group: GroupId) -> Result<&Table, Error> {
        let table = self.sequence(sequence)?.tables.get(usize::from(group.0));
        table.ok_or_else(|| self.unknown(group))
    }

    fn unknown(&self, group: GroupId) -> Error {
        Error::UnknownGroup { group, num_groups: self.groups.len() }
    }

    pub(crate) fn parts(
        &mut self,
        sequence: SequenceId,
        group: GroupId,
    ) -> Result<(&mut Sequence, &mut BlockPool), Error> {
        if usize::from(group.0) >= self.groups.len() {
            return Err(self.unknown(group));
        }
        let seq = self.sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })?;
        Ok((seq, &mut self.pool))
    }

    pub(crate) fn require_empty(&self, sequence: SequenceId) -> Result<(), Error> {
        let tables = &self.sequence(sequence)?.tables;
        let blocks: usize = tables.iter().map(|table| table.ids().len()).sum();
        if blocks == 0 { Ok(()) } else { Err(Error::NotEmpty { sequence, blocks }) }
    }
}

impl Drop for BlockManager {
    fn drop(&mut self) {
        for mut seq in self.sequences.drain() {
            release_all(&mut seq, &mut self.pool);
        }
    }
}

fn release_all(seq: &mut Sequence, pool: &mut BlockPool) {
    seq.tables.iter_mut().for_each(|table| table.clear(pool));
}
