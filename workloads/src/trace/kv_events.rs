//! Writes what entered and left the prefix cache.

use pagedraft_block_manager::{BlockHash, KvEvent, KvEventKind, KvGroup, KvJournal};
use schemars::JsonSchema;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

/// The journal of the block pool for one step, with the groups that it names.
#[derive(Clone, Copy, Debug)]
pub struct KvEvents<'a> {
    /// The changes since the line before.
    pub journal: &'a KvJournal,
    /// The KV groups of the pool, by their ids.
    pub groups: &'a [KvGroup],
}

impl KvEvents<'_> {
    /// Whether nothing entered or left the cache.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.journal.events.is_empty()
    }
}

impl Serialize for KvEvents<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.journal.events.iter().map(|event| Line { event, groups: self.groups }))
    }
}

struct Line<'a> {
    event: &'a KvEvent,
    groups: &'a [KvGroup],
}

impl Serialize for Line<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let KvEvent { kind, group, block, hash, parent, tokens } = self.event;
        // This event means that everything was forgotten, so it names no block.
        let one = (*kind != KvEventKind::Cleared).then_some(());
        let name = self.groups.get(usize::from(group.0)).map(|group| group.name.as_str());
        let mut line = serializer.serialize_struct("KvEvent", 6)?;
        line.serialize_field("kind", kind)?;
        line.serialize_field("group", &one.and(name))?;
        line.serialize_field("block", &one.map(|()| block))?;
        line.serialize_field("hash", &one.map(|()| hash.as_u64()))?;
        line.serialize_field("parent", &parent.as_ref().map(BlockHash::as_u64))?;
        line.serialize_field("num_tokens", &tokens.len())?;
        line.end()
    }
}

/// What happened to the contents of the prefix cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KvChange {
    /// A block was published: from here on it can be hit.
    Stored,
    /// A block was published that holds kept tokens of a prompt whose other tokens were dropped: requests of the same prompt, pruned in the
    /// same way, can hit it.
    Kept,
    /// A block was published whose contents the cache had before, and which came back from a pool of another tier.
    Restored,
    /// A published block was forgotten, because it was handed out anew or is written again.
    Removed,
    /// A published block was forgotten, because a pool of another tier lost its contents, which the step found out when it read them.
    Lost,
    /// Everything published was forgotten, in all groups; the other fields are null.
    Cleared,
}

/// One change of what the prefix cache holds.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub struct KvEventRecord {
    /// What happened.
    pub kind: KvChange,
    /// The KV group of the block.
    #[serde(default)]
    pub group: Option<String>,
    /// The block's id.
    #[serde(default)]
    pub block: Option<u32>,
    /// The last 8 bytes of the hash of its contents and of all that lies before them, as a number.
    #[serde(default)]
    pub hash: Option<u64>,
    /// The hash of the block before it; null for a first block, and unless the event is `stored` or `restored`.
    #[serde(default)]
    pub parent: Option<u64>,
    /// How many tokens the block has; 0 unless the event is `stored`, `kept` or `restored`.
    #[serde(default)]
    pub num_tokens: u32,
}

/// A KV group as `config.json` names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KvGroupRecord {
    /// What the group is called in the steps.
    pub name: String,
    /// The window of its layers: query i sees keys j with i - window < j <= i.
    #[serde(default)]
    pub window: Option<u32>,
    /// Whether it is a draft model's, whose KV may lag behind and may be dropped at any moment.
    #[serde(default)]
    pub lags: bool,
}

impl From<&KvGroup> for KvGroupRecord {
    fn from(group: &KvGroup) -> Self {
        Self { name: group.name.clone(), window: group.window, lags: group.lags }
    }
}
