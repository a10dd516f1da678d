use serde::Serialize;

use crate::{BlockSize, Error, KvPart, LayerSet, MAX_GROUPS, PartKind, Salt};

/// Which KV group of the model: its index in the list the manager was made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct GroupId(pub u8);

/// A part of a model's KV with a table and a length of its own.
///
/// A dense model has one. Layers with a window, the layers between two prune points, the keys of a
/// sparse-attention indexer and a draft model's KV are others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvGroup {
    /// Its place in the list of groups: 0, 1, 2, ...
    pub id: GroupId,
    /// What it is called in traces.
    pub name: String,
    /// What changes the contents of its KV besides the tokens: the model's identity, its dtype. It names the
    /// contents to the world outside; within a manager a group's blocks are found by that group alone.
    pub salt: Salt,
    /// What a block of the group consists of.
    pub parts: Vec<KvPart>,
    /// With a window W, the query at position i sees the keys at positions j with i - W < j <= i. Without one it
    /// sees all keys up to its own.
    pub window: Option<u32>,
    /// Whether its length may lag behind the others', as a draft model's does while drafts are off. A prefix hit
    /// does not wait for such a group, and its blocks may be taken away at any moment for groups that do not lag.
    pub lags: bool,
}

impl KvGroup {
    /// The one group of a dense model: layers `0..layers`, K and V of a token together `bytes_per_token` bytes in
    /// each layer.
    #[must_use]
    pub fn dense(layers: u16, bytes_per_token: usize) -> Self {
        let layers = LayerSet::range(0..layers);
        let part = KvPart { kind: PartKind::Heads, layers, bytes_per_token, tiered: false };
        Self {
            id: GroupId(0),
            name: "kv".to_owned(),
            salt: Salt::NONE,
            parts: vec![part],
            window: None,
            lags: false,
        }
    }

    /// Bytes that one token takes in all parts and layers that lie in the arena.
    #[must_use]
    pub fn bytes_per_token(&self) -> usize {
        self.parts
            .iter()
            .filter(|part| !part.tiered)
            .map(|part| part.bytes_per_token * part.layers.len())
            .sum()
    }

    /// Bytes that a block of `size` tokens takes in all parts and layers that lie in the arena.
    #[must_use]
    pub fn block_bytes(&self, size: BlockSize) -> usize {
        self.bytes_per_token() * size.get() as usize
    }

    /// Whether the group holds rows of the residual stream only. Such rows are kept between two steps of a
    /// sequence; they are never published and do not count when an arena is sized.
    #[must_use]
    pub fn is_scratch(&self) -> bool {
        !self.parts.is_empty() && self.parts.iter().all(|part| part.kind == PartKind::Residual)
    }

    /// Whether its blocks can be hit by other sequences at admission.
    pub(crate) fn is_looked_up(&self) -> bool {
        !self.lags && !self.is_scratch()
    }
}

/// Checks a list of groups: at most [`MAX_GROUPS`], with ids that count up from 0, each with bytes and a window
/// in which something is seen.
pub(crate) fn check_groups(groups: &[KvGroup]) -> Result<(), Error> {
    if groups.is_empty() {
        return Err(Error::NoGroups);
    }
    if groups.len() > MAX_GROUPS {
        return Err(Error::TooManyGroups { given: groups.len() });
    }
    for (index, group) in groups.iter().enumerate() {
        let name = || group.name.clone();
        if usize::from(group.id.0) != index {
            return Err(Error::GroupOrder { name: name(), id: group.id, index });
        }
        if group.bytes_per_token() == 0 {
            return Err(Error::EmptyGroup { name: name() });
        }
        if group.window == Some(0) {
            return Err(Error::EmptyWindow { name: name() });
        }
    }
    Ok(())
}
