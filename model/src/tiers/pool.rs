//! A tier below tier 0.

use std::fmt;

use pagedraft_block_manager::BlockHash;
use serde::Serialize;

/// What is kept in a pool is found by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// What one layer holds of a block that the block manager has given out.
    Cell {
        /// The layer.
        layer: u16,
        /// The block's id.
        block: u32,
    },
    /// A whole block that the prefix cache has forgotten, by the hash of its contents.
    Prefix(BlockHash),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cell { layer, block } => write!(f, "cell-{layer}-{block}"),
            Self::Prefix(hash) => write!(f, "prefix-{hash}"),
        }
    }
}

/// Which tier something lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TierId {
    /// Host memory or a mapped file.
    LocalPool,
    /// A store that is reached through a connection.
    RemotePool,
    /// Host memory of last resort, for what no pool takes.
    Refuge,
}

/// Why a pool did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// There is no room.
    #[error("it is full")]
    Full,
    /// It has nothing under this key.
    #[error("it has lost the block")]
    Missing,
    /// What it has is of another length.
    #[error("it gave {found} bytes back, and {expected} were stored")]
    Length {
        /// Bytes that it has.
        found: usize,
        /// Bytes that were stored.
        expected: usize,
    },
    /// What it gave back is not what was stored.
    #[error("it gave other bytes back than were stored")]
    Checksum,
    /// It did not answer in time.
    #[error("it did not answer in time")]
    Timeout,
    /// Something else.
    #[error("{0}")]
    Failed(String),
}

/// A place that bytes can be put, and got back from.
pub trait Pool: Send {
    /// Keeps `bytes`, in place of what there was under `key`.
    ///
    /// # Errors
    ///
    /// They are not kept, and what there was under `key` may be gone.
    fn put(&mut self, key: Key, bytes: &[u8]) -> Result<(), PoolError>;

    /// Reads into `into`, which is as long as what was put.
    ///
    /// # Errors
    ///
    /// What `into` then holds is unspecified.
    fn get(&mut self, key: Key, into: &mut [u8]) -> Result<(), PoolError>;

    /// Drops what there is under `key`, if anything.
    fn forget(&mut self, key: Key);

    /// Says that [`get`](Self::get) may be called for these keys soon. A pool that answers at once need not do anything.
    fn prefetch(&mut self, keys: &[Key]) {
        let _ = keys;
    }
}
