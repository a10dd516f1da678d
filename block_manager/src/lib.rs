//! Who owns which KV block, and for how long.
//!
//! The KV cache of a model is cut into blocks of 16, 32 or 64 tokens. A [`BlockPool`] hands them out as *leases*
//! with a life, a [`BlockManager`] keeps the tables of sequences over a pool:
//!
//! ```text
//! free ──allocate──> Writable ──seal──> Sealed ──share, hit──> Sealed, Sealed, ..
//!  ^                 one owner          full, accepted         read by several
//!  └── release: next to be handed out, or (published) the last, evicted least recently used first ──┘
//! ```
//!
//! # What it promises
//!
//! - Ids are `0 .. num_blocks`, handed out in order; there is no null block. The order of the free blocks is a
//!   function of the operations alone.
//! - A writable block has one owner. A lease is not `Clone` and ends by being given back; one that is dropped
//!   otherwise is reported in debug builds. `used + free == num_blocks` after every operation.
//! - A block is published (can be hit by others) only by a commit of its last token, never by being filled: drafts
//!   cannot get into the cache. Sealing happens in [`BlockManager::commit`] and nowhere else.
//! - Equal contents are found by a chained SHA-256 over (parent, tokens, salt), all 256 bits. Of equal blocks the one
//!   published first is found. A published block is forgotten only when it is handed out anew.
//! - `Option` is "no room", and then nothing was taken; `Err` is a fault of the caller, and then nothing has changed.
//! - Handles are (place, generation): one of a freed sequence is an error for ever and never names another sequence.
//!
//! # What it does not
//!
//! - It holds no KV and copies none: a [`BlockCopy`] is a request to somebody who can.
//! - All groups of one manager have blocks of one size in bytes. [`BlockManager::new`] refuses others
//!   ([`Error::UnequalGroups`]): make a manager for each size.
//! - It does not check that tokens handed over twice are the same.
//!
//! # What it costs
//!
//! Allocation, release, sealing and look-up are O(1) a block, without heap allocation once
//! [`BlockManager::prepare`] made room for the book-keeping. A block of 16 tokens is hashed by two SHA-256
//! compressions (0.1 to 0.2 µs with SHA instructions), once in a sequence's life. Book-keeping takes some 75 bytes a
//! block of the pool, and 44 a block of a sequence.
//!
//! # Example
//!
//! ```
//! use pagedraft_block_manager::{BlockManager, BlockSize, GroupId, KvGroup, Salt, slot};
//!
//! # fn main() -> Result<(), pagedraft_block_manager::Error> {
//! let kv = GroupId(0);
//! let mut blocks = BlockManager::new(BlockSize::new(16)?, 8, vec![KvGroup::dense(2, 1024)], true)?;
//!
//! // 20 tokens take two blocks; committed, the first of them can be hit.
//! let tokens: Vec<u32> = (0..20).collect();
//! let first = blocks.open(Salt::NONE);
//! assert!(blocks.reserve(first, &[20])?.is_some());
//! blocks.commit(first, kv, &tokens, 20)?;
//! assert_eq!(slot(blocks.block_table(first, kv), 17, 16), Some(17));
//!
//! let second = blocks.open(Salt::NONE);
//! let hit = blocks.lookup(second, &tokens, 19)?;
//! assert_eq!(hit.tokens, 16);
//! blocks.take_hit(second, &tokens, &hit)?;
//! assert_eq!(blocks.stats().used, 2);
//!
//! blocks.free(first)?;
//! blocks.free(second)?;
//! assert_eq!((blocks.stats().used, blocks.stats().cached), (0, 1));
//! # Ok(())
//! # }
//! ```

mod arena;
mod block;
mod error;
mod fork;
mod group;
mod hash;
mod hit;
mod journal;
mod kept;
mod lagging;
mod layer_set;
mod lease;
mod list;
mod manager;
mod page;
mod part;
mod pool;
mod prefix_cache;
mod reserve;
mod room;
mod sequence;
mod slab;
mod stats;
mod supply;
mod table;
mod window;

pub use arena::{Arena, GroupArena, MAX_GROUPS};
pub use block::{BlockCopy, BlockId, BlockSize, slot};
pub use error::Error;
pub use group::{GroupId, KvGroup};
pub use hash::{BlockHash, Salt};
pub use hit::PrefixHit;
pub use journal::{Contents, KvEvent, KvEventKind, KvJournal};
pub use kept::KvIndex;
pub use layer_set::LayerSet;
pub use lease::{Lease, Sealed, Writable};
pub use manager::BlockManager;
pub use part::{KvPart, PartKind};
pub use pool::BlockPool;
pub use sequence::{Lengths, SequenceId};
pub use slab::{Handle, Slab};
pub use stats::{GroupStats, PoolStats};
