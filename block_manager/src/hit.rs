use serde::Serialize;

use crate::hash::HashChain;
use crate::reserve::hit_blocks;
use crate::sequence::Sequence;
use crate::window::first_seen;
use crate::{BlockManager, BlockPool, BlockSize, Error, GroupId, KvGroup, MAX_GROUPS, SequenceId};

/// What the prefix cache has of a sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PrefixHit {
    /// Tokens that need not be computed: whole blocks, the least over the groups that do not lag and are not scratch.
    pub tokens: u32,
    /// Blocks of the hit, over all groups.
    pub blocks: u32,
    /// Blocks of the hit that nobody holds, over all groups: taking the hit takes them from the free ones.
    pub free_blocks: u32,
    /// Tokens hit by group. A group without a window may have more than `tokens`: when those tokens are computed, their
    /// KV is there already. Lagging and scratch groups have 0.
    pub lens: [u32; MAX_GROUPS],
}

impl BlockManager {
    /// What the cache has of `tokens`, of which the first `limit` at most may be hit. Takes nothing.
    ///
    /// A hit of h tokens needs, of every group that neither lags nor is scratch, the blocks that the query at
    /// position h can see: with a window only the last ones. The greatest h in whole blocks is taken, and none where no
    /// block would be taken (every window is 1). Costs a hash
    /// a block that was not hashed before, and a look-up a block and group.
    ///
    /// For a sequence with a [kept prompt](Self::keep_prompt), the groups that hold all of it may hit something even where the hit is of 0
    /// tokens: their blocks are shared, and the tokens are computed again for the other groups.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`].
    pub fn lookup(&mut self, sequence: SequenceId, tokens: &[u32], limit: u32) -> Result<PrefixHit, Error> {
        let Self { block_size, groups, pool, sequences, caching, .. } = self;
        let Sequence { chain, kept_prompt, .. } =
            sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })?;
        if !*caching {
            return Ok(PrefixHit::default());
        }
        let kept = kept_prompt.as_deref();
        let looked_up =
            |group: &&KvGroup| group.is_looked_up() && kept.is_none_or(|kept| !kept.drops(group.id));
        let mut search = Search { size: *block_size, tokens, limit, chain, pool };
        let hit = search.hit(groups.iter().filter(looked_up));
        Ok(kept.map_or(hit, |kept| kept.extend(groups, pool, *block_size, hit)))
    }

    /// Takes `hit`, which [`lookup`](Self::lookup) gave for the same `tokens` just now.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::NotEmpty`], and [`Error::HitLost`] when something was allocated since;
    /// the sequence is then empty as before.
    pub fn take_hit(&mut self, sequence: SequenceId, tokens: &[u32], hit: &PrefixHit) -> Result<(), Error> {
        self.require_empty(sequence)?;
        for (index, &len) in hit.lens.iter().enumerate().take(self.groups.len()) {
            if let Err(error) = self.take_blocks(sequence, index, tokens, (len, hit.tokens > 0)) {
                self.clear(sequence)?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes from the cache what a group has of `tokens[..limit]`, and gives the tokens hit: for a lagging group of
    /// a sequence, which has no blocks in it yet.
    ///
    /// # Errors
    ///
    /// [`Error::StaleSequence`], [`Error::UnknownGroup`], [`Error::NotEmpty`] when the sequence has blocks in the
    /// group.
    pub fn take_group_hit(
        &mut self,
        sequence: SequenceId,
        group: GroupId,
        tokens: &[u32],
        limit: u32,
    ) -> Result<u32, Error> {
        let blocks = self.table(sequence, group)?.ids().len();
        if blocks > 0 {
            return Err(Error::NotEmpty { sequence, blocks });
        }
        if !self.caching {
            return Ok(0);
        }
        let Self { block_size, groups, pool, sequences, .. } = self;
        let chain = &mut sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })?.chain;
        let index = usize::from(group.0);
        let mut search = Search { size: *block_size, tokens, limit, chain, pool };
        let len = search.hit(groups[index..=index].iter()).lens[index];
        self.take_blocks(sequence, index, tokens, (len, false))?;
        Ok(len)
    }

    /// Takes the blocks of a hit of `len` tokens in a group in which the sequence has none. With `resumes` a group that drops tokens of the
    /// prompt goes on from there: its further tokens are the prompt's last ones.
    fn take_blocks(
        &mut self,
        sequence: SequenceId,
        index: usize,
        tokens: &[u32],
        (len, resumes): (u32, bool),
    ) -> Result<(), Error> {
        let Self { block_size, groups, pool, sequences, .. } = self;
        let seq = sequences.get_mut(sequence.0).ok_or(Error::StaleSequence { sequence })?;
        let group = &groups[index];
        let blocks = hit_blocks(len, group.window, *block_size);
        let table = &mut seq.tables[index];
        table.clear(pool);
        table.grown = pool.clock;
        table.begin_at(blocks.start);
        let mut kept = Vec::new();
        for block in blocks {
            let hash = seq.block_name(group.id, block, tokens, *block_size);
            let table = &mut seq.tables[index];
            let Some(lease) = hash.and_then(|hash| pool.hit(&hash, group.id)) else {
                table.clear(pool);
                return Err(Error::HitLost { sequence, block });
            };
            kept.extend_from_slice(pool.kept_positions(&lease));
            table.push_sealed(lease);
        }
        let table = &mut seq.tables[index];
        match seq.kept_prompt.as_deref().filter(|prompt| resumes && prompt.drops(group.id)) {
            Some(prompt) => {
                table.set_kept(&kept, 0);
                table.set_lengths(len, prompt.logical(group.id, len));
            }
            None => table.set_lengths(len, len),
        }
        Ok(())
    }
}

/// A look-up of one sequence's blocks.
struct Search<'a> {
    size: BlockSize,
    tokens: &'a [u32],
    limit: u32,
    chain: &'a mut HashChain,
    pool: &'a BlockPool,
}

impl Search<'_> {
    /// The hit in all of `groups`.
    ///
    /// Groups without a window are hit block by block from the first on, each as far as it goes. In the same
    /// pass, groups with a window count how many blocks in a row they have up to each place.
    fn hit<'g>(&mut self, groups: impl Iterator<Item = &'g KvGroup> + Clone) -> PrefixHit {
        let mut hit = PrefixHit::default();
        let blocks = self.size.full_blocks(self.limit.min(self.tokens.len() as u32));
        let mut runs = [0; MAX_GROUPS];
        let windowed = groups.clone().filter(|group| group.window.is_some());
        let (num_windowed, num_groups) = (windowed.clone().count(), groups.clone().count());
        let num_whole = num_groups - num_windowed;
        let (mut best, mut all_whole) = (0, true);
        for index in 0..blocks {
            let Some(hash) = self.chain.get(index as usize, self.tokens, self.size) else {
                break;
            };
            let mut found = 0;
            for group in groups.clone().filter(|group| group.window.is_none()) {
                let len = &mut hit.lens[usize::from(group.id.0)];
                if *len < index * self.size.get() {
                    continue;
                }
                if let Some(id) = self.pool.lookup(&hash, group.id) {
                    *len += self.size.get();
                    hit.blocks += 1;
                    hit.free_blocks += u32::from(self.pool.holders(group.id, id) == 0);
                    found += 1;
                }
            }
            all_whole &= found == num_whole;
            if !all_whole && found == 0 {
                break;
            }
            if all_whole && num_groups > 0 {
                let at = (index + 1) * self.size.get();
                let mut whole = true;
                for group in windowed.clone() {
                    let run = &mut runs[usize::from(group.id.0)];
                    *run = if self.pool.lookup(&hash, group.id).is_some() { *run + 1 } else { 0 };
                    whole &= *run >= index + 1 - first_seen(at, group.window, self.size).min(index + 1);
                }
                if whole {
                    best = at;
                }
            }
        }
        hit.tokens = best;
        for group in windowed {
            hit.lens[usize::from(group.id.0)] = best;
            for index in hit_blocks(best, group.window, self.size) {
                let hash = self.chain.get(index as usize, self.tokens, self.size);
                if let Some(id) = hash.and_then(|hash| self.pool.lookup(&hash, group.id)) {
                    hit.blocks += 1;
                    hit.free_blocks += u32::from(self.pool.holders(group.id, id) == 0);
                }
            }
        }
        // With a window of 1 a query sees nothing before it. Such a group agrees to any hit, and finds nothing.
        if hit.blocks == 0 { PrefixHit::default() } else { hit }
    }
}
