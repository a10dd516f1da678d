use std::ops::Range;

use serde::Serialize;

use crate::{BlockSize, Error, Salt};

/// Which KV group of the model: its index in the list the manager was made with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct GroupId(pub u8);

/// A part of a model's KV with a table and a length of its own.
///
/// A dense model has one. The layers between two prune points, the keys of a sparse-attention indexer and
/// a draft model's KV are others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvGroup {
    /// Its place in the list of groups: 0, 1, 2, ...
    pub id: GroupId,
    /// What it is called in traces.
    pub name: String,
    /// The layers it covers.
    pub layers: Range<u16>,
    /// Bytes a token takes in it, K and V of all its layers together.
    pub bytes_per_token: usize,
    /// What changes the contents of its KV besides the tokens: the model's identity, its dtype. It names the
    /// contents to the world outside; within a manager a group's blocks are found by that group alone.
    pub salt: Salt,
    /// Whether its length may lag behind the others', as a draft model's does while drafts are off. A
    /// prefix hit does not wait for such a group.
    pub lags: bool,
}

impl KvGroup {
    /// The one group of a dense model: `layers` layers, `bytes_per_token` bytes a token in all of them.
    #[must_use]
    pub fn dense(layers: u16, bytes_per_token: usize) -> Self {
        Self {
            id: GroupId(0),
            name: "kv".to_owned(),
            layers: 0..layers,
            bytes_per_token,
            salt: Salt::NONE,
            lags: false,
        }
    }
}

/// Groups that may share one arena: their ids count up from 0, their blocks are of one size.
#[derive(Debug)]
pub(crate) struct Groups {
    list: Vec<KvGroup>,
    bytes_per_block: usize,
}

impl Groups {
    pub(crate) fn new(list: Vec<KvGroup>, block_size: BlockSize) -> Result<Self, Error> {
        let Some(first) = list.first() else {
            return Err(Error::NoGroups);
        };
        let bytes_per_block = first.bytes_per_token * block_size.get() as usize;
        for (index, group) in list.iter().enumerate() {
            if usize::from(group.id.0) != index {
                return Err(Error::GroupOrder { name: group.name.clone(), id: group.id, index });
            }
            if group.bytes_per_token != first.bytes_per_token {
                return Err(Error::UnequalGroups {
                    first: first.name.clone(),
                    first_bytes: first.bytes_per_token,
                    other: group.name.clone(),
                    other_bytes: group.bytes_per_token,
                });
            }
        }
        Ok(Self { list, bytes_per_block })
    }

    pub(crate) fn as_slice(&self) -> &[KvGroup] {
        &self.list
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn bytes_per_block(&self) -> usize {
        self.bytes_per_block
    }
}
