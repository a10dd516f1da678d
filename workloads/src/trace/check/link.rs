//! The hash of a block.

use pagedraft_block_manager::{BlockHash, Salt};

/// The hash of the contents of a block, and the salt that it was made under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// The hash as the trace writes it.
    pub(super) hash: u64,
    /// The whole hash, if it could be recomputed.
    pub(super) full: Option<BlockHash>,
    pub(super) salt: Option<Salt>,
}
