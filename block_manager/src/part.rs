use serde::Serialize;

use crate::{BlockSize, LayerSet};

/// What the rows of a part of the KV are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PartKind {
    /// Keys and values by head.
    Heads,
    /// One compressed vector a token that all heads share.
    Latent,
    /// Keys of the indexer of sparse attention.
    IndexKeys,
    /// Rows of the residual stream that wait between two steps.
    Residual,
}

/// Rows of one kind in a group: so many bytes a token in each of some layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KvPart {
    /// What the rows are.
    pub kind: PartKind,
    /// The layers that have them.
    pub layers: LayerSet,
    /// Bytes that one token takes in one layer.
    pub bytes_per_token: usize,
    /// Whether the device keeps the rows in memory tiers of its own. They then take no bytes of the arena.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub tiered: bool,
}

impl KvPart {
    /// Bytes that a block of `size` tokens takes in all layers of the part.
    #[must_use]
    pub fn block_bytes(&self, size: BlockSize) -> usize {
        self.bytes_per_token * self.layers.len() * size.get() as usize
    }
}
