use crate::{BlockHash, BlockPool, BlockSize, GroupId, KvGroup, MAX_GROUPS, PrefixHit, Salt};

/// A prompt of which some groups hold only chosen tokens, as the prefix cache knows it.
///
/// Which tokens were chosen depends on the whole prompt, so that only a sequence with the same prompt can use the blocks of these groups.
/// A block is found by the prompt's name and its place in the table, and the cache keeps with it the positions of its tokens: they live and
/// die together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptPrompt {
    /// Stands for all that the choice, and the KV of the chosen tokens, depend on: the whole prompt, the rule that chooses, the model.
    pub name: Salt,
    /// Tokens of the prompt.
    pub len: u32,
    /// By group, how many of the prompt's tokens it holds. A group that holds all of them, or that is not looked up, has `len`.
    pub counts: [u32; MAX_GROUPS],
    /// At least so many of the prompt's last tokens are held by every group.
    pub tail: u32,
}

impl KeptPrompt {
    /// Whether a group holds not all of the prompt's tokens.
    pub(crate) fn drops(&self, group: GroupId) -> bool {
        self.count(group) < self.len
    }

    fn count(&self, group: GroupId) -> u32 {
        self.counts.get(usize::from(group.0)).copied().unwrap_or(self.len)
    }

    /// The blocks of a group that are full of the prompt's tokens.
    pub(crate) fn full_blocks(&self, group: GroupId, size: BlockSize) -> u32 {
        size.full_blocks(self.count(group))
    }

    /// What the cache calls block `index` of a group that drops tokens.
    pub(crate) fn hash(&self, index: u32) -> BlockHash {
        BlockHash::of(&BlockHash::ROOT, &[index], &self.name)
    }

    /// The positions that the first `slots` slots of a group that drops tokens stand for: the prompt's tokens behind them are its last ones.
    pub(crate) fn logical(&self, group: GroupId, slots: u32) -> u32 {
        self.len - self.count(group).saturating_sub(slots).min(self.len)
    }

    /// Adds to `hit`, which is that of the groups without dropped tokens, the blocks of the other groups. If one of them is missing, or if
    /// some of the tokens behind the hit might be dropped ones, nothing is added, and all tokens are to be computed.
    pub(crate) fn extend(
        &self,
        groups: &[KvGroup],
        pool: &BlockPool,
        size: BlockSize,
        hit: PrefixHit,
    ) -> PrefixHit {
        let computed_all = PrefixHit { tokens: 0, ..hit };
        let mut hit = hit;
        for group in groups.iter().filter(|group| self.drops(group.id)) {
            let full = self.full_blocks(group.id, size);
            for index in 0..full {
                let Some(id) = pool.lookup(&self.hash(index), group.id) else { return computed_all };
                hit.blocks += 1;
                hit.free_blocks += u32::from(pool.holders(group.id, id) == 0);
            }
            let slots = full * size.get();
            hit.lens[usize::from(group.id.0)] = slots;
            hit.tokens = hit.tokens.min(self.logical(group.id, slots));
        }
        let resumes = hit.tokens > 0 && hit.tokens + self.tail >= self.len;
        if resumes { hit } else { computed_all }
    }
}
