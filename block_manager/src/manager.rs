use crate::group::Groups;
use crate::hash::HashChain;
use crate::sequence::Sequence;
use crate::table::{Reopened, Table};
use crate::{
    BlockCopy, BlockHash, BlockId, BlockPool, BlockSize, Error, GroupId, KvGroup, Lengths, PoolStats,
    PrefixHit, Salt, SequenceId, Slab,
};

/// The KV blocks of all sequences: who holds which, what of it is accepted, and what can be hit.
///
/// A sequence lives from [`open`](Self::open) to [`free`](Self::free). In between it takes a prefix from the cache
/// or from a parent, reserves blocks, commits what was accepted, and may give everything back and begin again
/// ([`clear`](Self::clear)). Lengths are in slots of a group; in a dense group a slot is a position.
#[derive(Debug)]
pub struct BlockManager {
    block_size: BlockSize,
    caching: bool,
    groups: Groups,
    pool: BlockPool,
    sequences: Slab<Sequence>,
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

    /// What the cache has of `tokens`, of which the first `limit` at most may be hit. Takes nothing.
    ///
    /// Hits need every group that does not lag. Costs a hash a block that was not hashed before, and a look-up
    /// a block and group.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`].
    pub fn lookup(&mut self, sequence: SequenceId, tokens: &[u32], limit: u32) -> Result<PrefixHit, Error> {
        let Self { block_size, groups, pool, sequences, caching } = self;
        let seq = sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })?;
        let mut hit = PrefixHit::default();
        if !*caching {
            return Ok(hit);
        }
        let blocks = block_size.full_blocks(limit.min(tokens.len() as u32));
        let all_groups = groups.as_slice().iter().filter(|group| !group.lags).count() as u32;
        for index in 0..blocks {
            let Some(hash) = seq.chain.get(index as usize, tokens, *block_size) else {
                break;
            };
            let mut free = 0;
            let all = groups.as_slice().iter().filter(|group| !group.lags);
            let found = all.map(|group| pool.lookup(&hash, group.id)).all(|id| {
                free += u32::from(id.is_some_and(|id| pool.holders(id) == 0));
                id.is_some()
            });
            if !found {
                break;
            }
            hit.tokens += block_size.get();
            hit.blocks += all_groups;
            hit.free_blocks += free;
        }
        for group in groups.as_slice().iter().filter(|group| group.lags) {
            for index in 0..block_size.full_blocks(hit.tokens) {
                let hash = seq.chain.get(index as usize, tokens, *block_size);
                let Some(id) = hash.and_then(|hash| pool.lookup(&hash, group.id)) else {
                    break;
                };
                hit.blocks += 1;
                hit.free_blocks += u32::from(pool.holders(id) == 0);
            }
        }
        Ok(hit)
    }

    /// Takes `hit`, which [`lookup`](Self::lookup) gave for the same `tokens` just now.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::NotEmpty`], and [`Error::HitLost`] when something was allocated since;
    /// the sequence is then empty as before.
    pub fn take_hit(&mut self, sequence: SequenceId, tokens: &[u32], hit: PrefixHit) -> Result<(), Error> {
        self.require_empty(sequence)?;
        let Self { block_size, groups, pool, sequences, .. } = self;
        let seq = sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })?;
        let mut lost = None;
        for (table, group) in seq.tables.iter_mut().zip(groups.as_slice()) {
            for index in 0..block_size.full_blocks(hit.tokens) {
                let hash = seq.chain.get(index as usize, tokens, *block_size);
                match hash.and_then(|hash| pool.hit(&hash, group.id)) {
                    Some(lease) => table.push_sealed(lease),
                    None if group.lags => break,
                    None => {
                        lost = Some(index);
                        break;
                    }
                }
            }
            let len = table.num_blocks() * block_size.get();
            table.set_lengths(len, len);
        }
        match lost {
            None => Ok(()),
            Some(block) => {
                self.clear(sequence)?;
                Err(Error::HitLost { sequence, block })
            }
        }
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
    ) -> Result<(), Error> {
        let (block_size, caching) = (self.block_size, self.caching);
        self.check_commit(sequence, group, upto)?;
        if tokens.len() < upto as usize {
            return Err(Error::MissingTokens { sequence, upto, given: tokens.len() });
        }
        let (Sequence { chain, tables }, pool) = self.parts(sequence, group)?;
        let table = &mut tables[usize::from(group.0)];
        require_dense(table, sequence, group)?;
        let full = block_size.full_blocks(upto) as usize;
        if full > table.sealed().len() {
            table.seal(full, pool, |index| {
                let hash = caching.then(|| chain.get(index, tokens, block_size));
                hash.flatten().map(|hash| (hash, group))
            });
        }
        table.set_lengths(upto, upto);
        Ok(())
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

    fn sequence(&self, sequence: SequenceId) -> Result<&Sequence, Error> {
        self.sequences.get(sequence.0).ok_or(Error::StaleSequence { sequence })
    }

    fn sequence_mut(&mut self, sequence: SequenceId) -> Result<&mut Sequence, Error> {
        self.sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })
    }

    fn unknown(&self, group: GroupId) -> Error {
        Error::UnknownGroup { group, num_groups: self.groups.len() }
    }

    fn parts(
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

    fn require_empty(&self, sequence: SequenceId) -> Result<(), Error> {
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

    fn copy_chain(&mut self, parent: SequenceId, child: SequenceId, blocks: usize) -> Result<(), Error> {
        let seq = self.sequence_mut(child)?;
        let mut chain = std::mem::take(&mut seq.chain);
        chain.copy_from(&self.sequence(parent)?.chain, blocks);
        self.sequence_mut(child)?.chain = chain;
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

fn require_dense(table: &Table, sequence: SequenceId, group: GroupId) -> Result<(), Error> {
    if table.is_pruned() {
        return Err(Error::Pruned { sequence, group, physical: table.physical(), logical: table.logical() });
    }
    Ok(())
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
