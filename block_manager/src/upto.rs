use std::ops::Range;

use crate::journal::Contents;
use crate::sequence::Sequence;
use crate::table::Table;
use crate::window::first_seen;
use crate::{BlockPool, BlockSize, Error, GroupId, KvGroup, SequenceId};

/// What is committed: the KV of `tokens[..upto]` of a sequence.
pub(crate) struct Upto<'a> {
    pub(crate) sequence: SequenceId,
    pub(crate) tokens: &'a [u32],
    pub(crate) upto: u32,
    pub(crate) block_size: BlockSize,
    pub(crate) caching: bool,
}

impl Upto<'_> {
    /// Commits it in one group; see [`BlockManager::commit`](crate::BlockManager::commit).
    #[inline]
    pub(crate) fn commit(
        &self,
        kv: &KvGroup,
        seq: &mut Sequence,
        pool: &mut BlockPool,
    ) -> Result<Range<u32>, Error> {
        let Self { upto, block_size, .. } = *self;
        let Sequence { chain, tables, .. } = seq;
        let table = &mut tables[usize::from(kv.id.0)];
        let pruned = table.kept().is_some();
        let slots =
            if pruned { table.physical().saturating_add(upto.saturating_sub(table.logical())) } else { upto };
        let reserved = table.num_blocks() * block_size.get();
        if slots > reserved || upto < table.logical() || self.tokens.len() < upto as usize {
            return Err(self.refused(kv.id, slots, table));
        }
        let before = table.sealed_end();
        // A product, because a division costs more, and most commits fill no block.
        let fills_one = u64::from(slots) >= (before as u64 + 1) * u64::from(block_size.get());
        if fills_one {
            let tokens = self.tokens;
            let full = block_size.full_blocks(slots) as usize;
            let publish = self.caching && !pruned && !kv.is_scratch();
            table.seal(full, |index, lease| {
                let hash = if publish { chain.get(index, tokens, block_size) } else { None };
                let Some(hash) = hash else {
                    return pool.seal(lease, None);
                };
                pool.seal_as(lease, hash, || {
                    let size = block_size.get() as usize;
                    let tokens = tokens.get(index * size..(index + 1) * size).unwrap_or_default();
                    Contents { hash, parent: chain.parent(index), tokens }
                })
            });
        }
        if pruned {
            table.keep_all(upto);
        }
        table.set_lengths(slots, upto);
        let sealed = before as u32..table.sealed_end() as u32;
        if kv.window.is_some() {
            table.release_before(first_seen(slots, kv.window, block_size) as usize, pool);
        }
        Ok(sealed)
    }

    /// Why it cannot be committed in a group in which `slots` slots would then be in use.
    #[cold]
    fn refused(&self, group: GroupId, slots: u32, table: &Table) -> Error {
        let Self { sequence, tokens, upto, block_size, .. } = *self;
        let reserved = table.num_blocks() * block_size.get();
        if slots > reserved {
            Error::CommitBeyondReserved { sequence, group, upto: slots, reserved }
        } else if upto < table.logical() {
            Error::CommitBackwards { sequence, group, upto, committed: table.logical() }
        } else {
            Error::MissingTokens { sequence, upto, given: tokens.len() }
        }
    }
}
