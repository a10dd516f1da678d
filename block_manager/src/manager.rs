use std::ops::Range;

use crate::group::Groups;
use crate::hash::HashChain;
use crate::sequence::Sequence;
use crate::table::Table;
use crate::{
    BlockHash, BlockId, BlockPool, BlockSize, Error, GroupId, KvGroup, Lengths, PoolStats, Salt, SequenceId,
    Slab,
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
    pub(crate) groups: Groups,
    pub(crate) pool: BlockPool,
    pub(crate) sequences: Slab<Sequence>,
}

impl BlockManager {
    /// `num_blocks` blocks of `block_size` tokens for `groups`; `caching` says whether committed blocks are
    /// published.
    ///
    /// # Errors
    ///
    /// No blocks, no groups, group ids out of order, or groups of different bytes a token.
    pub fn new(
        block_size: BlockSize,
        num_blocks: u32,
        groups: Vec<KvGroup>,
        caching: bool,
    ) -> Result<Self, Error> {
        Ok(Self {
            block_size,
            caching,
            groups: Groups::new(groups, block_size)?,
            pool: BlockPool::new(num_blocks)?,
            sequences: Slab::default(),
        })
    }

    /// Tokens a block.
    #[must_use]
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The KV groups.
    #[must_use]
    pub fn groups(&self) -> &[KvGroup] {
        self.groups.as_slice()
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

    /// Bytes a block takes. Blocks of all groups are of one size, so that bytes are conserved exactly when
    /// blocks are.
    #[must_use]
    pub fn bytes_per_block(&self) -> usize {
        self.groups.bytes_per_block()
    }

    /// The longest a sequence can get when it has the pool for itself, in slots of every group.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        let blocks = self.pool.num_blocks() / self.groups.len() as u32;
        blocks.saturating_mul(self.block_size.get())
    }

    /// A new sequence without blocks, whose prefix is shared only under the same `salt`.
    pub fn open(&mut self, salt: Salt) -> SequenceId {
        let tables = self.groups().iter().map(|_| Table::default()).collect();
        SequenceId(self.sequences.insert(Sequence { chain: HashChain::new(salt), tables }))
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

    /// Blocks that the sequence lacks to have `slots` slots in every group.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`].
    pub fn missing(&self, sequence: SequenceId, slots: u32) -> Result<u32, Error> {
        let blocks = self.block_size.blocks_for(slots);
        let seq = self.sequence(sequence)?;
        let lacks = |table: &Table| blocks.saturating_sub(table.num_blocks());
        Ok(seq.tables.iter().map(lacks).sum())
    }

    /// Sees to it that the sequence has `slots` slots in every group. `None`, and nothing taken, when there is
    /// no room.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`].
    pub fn reserve(&mut self, sequence: SequenceId, slots: u32) -> Result<Option<()>, Error> {
        let blocks = self.block_size.blocks_for(slots);
        let Self { pool, sequences, .. } = self;
        let seq = sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })?;
        let lacks = |table: &Table| blocks.saturating_sub(table.num_blocks());
        let missing: u32 = seq.tables.iter().map(lacks).sum();
        if missing > pool.num_free() {
            return Ok(None);
        }
        if missing > 0 {
            for table in &mut seq.tables {
                grow(table, blocks, pool);
            }
        }
        Ok(Some(()))
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
        let blocks = self.block_size.blocks_for(slots);
        let (seq, pool) = self.parts(sequence, group)?;
        let table = &mut seq.tables[usize::from(group.0)];
        if blocks.saturating_sub(table.num_blocks()) > pool.num_free() {
            return Ok(None);
        }
        grow(table, blocks, pool);
        Ok(Some(()))
    }

    /// Says that the first `upto` slots of a group hold the KV of `tokens[..upto]`, all of them accepted. Blocks
    /// that are full by it are sealed and published.
    ///
    /// `tokens` are the sequence's, from its beginning. What was once handed over, here or to a look-up, must not
    /// change unless the sequence was cut before it ([`truncate`](Self::truncate), in every group).
    ///
    /// Gives the places in the sequence's table of the blocks that this call sealed.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::UnknownGroup`]; [`Error::CommitBeyondReserved`],
    /// [`Error::CommitBackwards`], [`Error::MissingTokens`], [`Error::Pruned`], and nothing is changed.
    pub fn commit(
        &mut self,
        sequence: SequenceId,
        group: GroupId,
        tokens: &[u32],
        upto: u32,
    ) -> Result<Range<u32>, Error> {
        let (block_size, caching) = (self.block_size, self.caching);
        self.check_commit(sequence, group, upto)?;
        if tokens.len() < upto as usize {
            return Err(Error::MissingTokens { sequence, upto, given: tokens.len() });
        }
        let (Sequence { chain, tables }, pool) = self.parts(sequence, group)?;
        let table = &mut tables[usize::from(group.0)];
        require_dense(table, sequence, group)?;
        let full = block_size.full_blocks(upto) as usize;
        let before = table.sealed().len();
        if full > before {
            table.seal(full, pool, |index| {
                let hash = caching.then(|| chain.get(index, tokens, block_size));
                hash.flatten().map(|hash| (hash, group))
            });
        }
        table.set_lengths(upto, upto);
        Ok(before as u32..table.sealed().len() as u32)
    }

    /// Says that the first `slots` slots of a pruned group hold what is kept of the first `positions` positions.
    /// Full blocks are sealed but not published: which tokens were kept depends on more than a prefix.
    ///
    /// # Errors
    ///
    /// As [`commit`](Self::commit).
    pub fn commit_pruned(
        &mut self,
        sequence: SequenceId,
        group: GroupId,
        slots: u32,
        positions: u32,
    ) -> Result<(), Error> {
        let block_size = self.block_size;
        self.check_commit(sequence, group, slots)?;
        let (seq, pool) = self.parts(sequence, group)?;
        let table = &mut seq.tables[usize::from(group.0)];
        table.seal(block_size.full_blocks(slots) as usize, pool, |_| None);
        table.set_lengths(slots, positions.max(slots));
        Ok(())
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
        let table = self.sequence(sequence)?.tables.get(usize::from(group.0));
        let table = table.ok_or_else(|| self.unknown(group))?;
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

    fn check_commit(&self, sequence: SequenceId, group: GroupId, upto: u32) -> Result<(), Error> {
        let table = self.sequence(sequence)?.tables.get(usize::from(group.0));
        let table = table.ok_or_else(|| self.unknown(group))?;
        let reserved = table.num_blocks() * self.block_size.get();
        if upto > reserved {
            return Err(Error::CommitBeyondReserved { sequence, group, upto, reserved });
        }
        if upto < table.physical() {
            return Err(Error::CommitBackwards { sequence, group, upto, committed: table.physical() });
        }
        Ok(())
    }
}

impl Drop for BlockManager {
    fn drop(&mut self) {
        for mut seq in self.sequences.drain() {
            release_all(&mut seq, &mut self.pool);
        }
    }
}

fn grow(table: &mut Table, blocks: u32, pool: &mut BlockPool) {
    while table.num_blocks() < blocks {
        let Some(lease) = pool.allocate() else {
            debug_assert!(false, "the room was counted before");
            return;
        };
        table.push_writable(lease);
    }
}

fn release_all(seq: &mut Sequence, pool: &mut BlockPool) {
    for table in &mut seq.tables {
        table.release_behind(0, pool);
        table.set_lengths(0, 0);
    }
}

pub(crate) fn require_dense(table: &Table, sequence: SequenceId, group: GroupId) -> Result<(), Error> {
    if table.is_pruned() {
        return Err(Error::Pruned { sequence, group, physical: table.physical(), logical: table.logical() });
    }
    Ok(())
}
