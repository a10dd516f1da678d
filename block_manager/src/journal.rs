use std::ops::Range;

use serde::Serialize;

use crate::{BlockHash, BlockId, GroupId};

/// What happened to the contents of the prefix cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum KvEventKind {
    /// A block was published: from here on it can be hit.
    Stored,
    /// A block was published that holds kept tokens of a prompt whose other tokens were dropped. The event's tokens are their positions.
    Kept,
    /// A block was published whose contents the cache had before, and which came back from elsewhere.
    Restored,
    /// A published block was forgotten, because it was handed out anew or is written again.
    Removed,
    /// A published block was forgotten, because its contents turned out to be lost.
    Lost,
    /// Everything published was forgotten.
    Cleared,
}

/// One change of what the prefix cache holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvEvent {
    /// What happened. After `Cleared` the other fields say nothing.
    pub kind: KvEventKind,
    /// The group of the block.
    pub group: GroupId,
    /// The block.
    pub block: BlockId,
    /// The name of its contents.
    pub hash: BlockHash,
    /// The name of the block before it; `None` for a first block, and unless the event is `Stored` or `Restored`.
    pub parent: Option<BlockHash>,
    /// Where its tokens are in [`KvJournal::tokens`]; empty unless the event is `Stored`, `Kept` or `Restored`.
    pub tokens: Range<u32>,
}

/// Changes of the prefix cache in the order in which they happened. A sequence's blocks are stored parents first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct KvJournal {
    /// The changes.
    pub events: Vec<KvEvent>,
    /// The tokens of all blocks that were stored, one block behind the other.
    pub tokens: Vec<u32>,
}

impl KvJournal {
    /// Forgets all changes and keeps the memory for new ones.
    pub fn clear(&mut self) {
        self.events.clear();
        self.tokens.clear();
    }

    /// Notes that a block was stored, or `restored` from elsewhere.
    pub(crate) fn stored(&mut self, group: GroupId, block: BlockId, contents: &Contents<'_>, restored: bool) {
        let start = self.tokens.len() as u32;
        self.tokens.extend_from_slice(contents.tokens);
        let tokens = start..self.tokens.len() as u32;
        let Contents { hash, parent, .. } = *contents;
        let kind = if restored { KvEventKind::Restored } else { KvEventKind::Stored };
        self.events.push(KvEvent { kind, group, block, hash, parent, tokens });
    }

    /// Notes that a block was stored of a prompt of which it holds the tokens at `positions`.
    pub(crate) fn kept(&mut self, group: GroupId, block: BlockId, hash: BlockHash, positions: &[u32]) {
        let start = self.tokens.len() as u32;
        self.tokens.extend_from_slice(positions);
        let tokens = start..self.tokens.len() as u32;
        self.events.push(KvEvent { kind: KvEventKind::Kept, group, block, hash, parent: None, tokens });
    }

    /// Notes that a block was forgotten, as `kind` says.
    pub(crate) fn forgotten(&mut self, kind: KvEventKind, group: GroupId, block: BlockId, hash: BlockHash) {
        self.events.push(KvEvent { kind, group, block, hash, parent: None, tokens: 0..0 });
    }

    pub(crate) fn cleared(&mut self) {
        let (kind, hash) = (KvEventKind::Cleared, BlockHash::ROOT);
        let (group, block) = (GroupId(0), BlockId::FREED);
        self.events.push(KvEvent { kind, group, block, hash, parent: None, tokens: 0..0 });
    }
}

/// What a full block holds, by name: see [`BlockPool::seal`](crate::BlockPool::seal).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contents<'a> {
    /// The name of the contents.
    pub hash: BlockHash,
    /// The name of the block before it; `None` for a first block.
    pub parent: Option<BlockHash>,
    /// The block's tokens.
    pub tokens: &'a [u32],
}
