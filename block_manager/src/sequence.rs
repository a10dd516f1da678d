use std::fmt;

use serde::Serialize;

use crate::Handle;
use crate::hash::HashChain;
use crate::kept_prompt::KeptPrompt;
use crate::table::Tables;
use crate::{BlockHash, BlockSize, GroupId};

/// Names a sequence of a [`BlockManager`](crate::BlockManager). A handle kept after
/// [`free`](crate::BlockManager::free) never names another sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SequenceId(pub(crate) Handle);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One sequence: the hashes of its known tokens, and a table in each KV group.
///
/// The tables lie in front: what every step looks at is then in the cache line of the slab's entry.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Sequence {
    pub(crate) tables: Tables,
    pub(crate) chain: HashChain,
    /// Its prompt, if some groups hold not all of it and may share what they hold.
    pub(crate) kept_prompt: Option<Box<KeptPrompt>>,
}

impl Sequence {
    /// What the prefix cache calls block `index` of the sequence in a group; `None` if its tokens do not fill the block.
    pub(crate) fn block_name(
        &mut self,
        group: GroupId,
        index: u32,
        tokens: &[u32],
        size: BlockSize,
    ) -> Option<BlockHash> {
        match self.kept_prompt.as_deref().filter(|kept| kept.drops(group)) {
            Some(kept) => Some(kept.hash(index)),
            None => self.chain.get(index as usize, tokens, size),
        }
    }
}

/// The two lengths of a sequence in a KV group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lengths {
    /// Slots that hold accepted tokens.
    pub physical: u32,
    /// Positions those stand for. More than `physical` in a pruned group, the same in any other.
    pub logical: u32,
}
