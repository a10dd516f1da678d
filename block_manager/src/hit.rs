use crate::{BlockManager, Error, PrefixHit, SequenceId};

impl BlockManager {
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
}
