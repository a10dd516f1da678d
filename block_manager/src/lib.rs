//! Who owns which KV block, and for how long.
//!
//! The KV of a model is kept in *groups* of layers ([`KvGroup`]): all layers of a dense model, layers with a window, layers
//! behind a prune point, a draft model. Each group of a sequence has a block table of its own, in blocks of 16, 32 or 64
//! tokens. All groups share one [`Arena`], although their blocks differ in bytes: the arena is cut into *pages* of
//! one size, a page belongs to one group at a time, and the group cuts it into blocks of its own size.
//!
//! A [`BlockPool`] hands out blocks as *leases* with a life, a [`BlockManager`] keeps the tables of sequences over a pool:
//!
//! ```text
//! free ──allocate──> Writable ──seal──> Sealed ──share, hit──> Sealed, Sealed, ..
//!  ^                 one owner          full, accepted         read by several
//!  └── release: next to be handed out, or (published) the last, evicted least recently used first ──┘
//! ```
//!
//! # What it promises
//!
//! - Block `b` of a group lies at byte `b * stride` of the arena. No two held blocks overlap, of whatever groups.
//!   `bytes_used + bytes_free` is the size of the arena after every operation.
//! - With one group a page is a block: ids are `0 .. num_blocks`, handed out in order. There is no null block. Which
//!   block comes next is a function of the operations alone.
//! - A writable block has one owner. A lease is not `Clone` and ends by being given back; one that is dropped
//!   otherwise is reported in debug builds.
//! - A block is published (can be hit by others) only by a commit of its last token, never by being filled: drafts
//!   cannot get into the cache. Sealing happens in [`BlockManager::commit`] and [`BlockManager::commit_kept`], and nowhere
//!   else. Scratch groups publish nothing, pruned ones only the prompt's tokens of a sequence with a [`KeptPrompt`].
//! - Equal contents are found by a chained SHA-256 over (parent, tokens, salt), all 256 bits. Of equal blocks the one
//!   published first is found. A published block is forgotten only when it, or its page, is handed out anew. A
//!   [`KvJournal`] tells what was published and forgotten.
//! - `Option` is "no room", and then nothing was taken; `Err` is a fault of the caller, and then nothing has changed.
//!   [`BlockManager::has_room`] and [`BlockManager::fits`] say beforehand which it will be.
//! - What groups that do not lag get never depends on lagging groups: these take what is left, and lose it when
//!   another group needs it. (Where a lagging group's block is larger than the others' page, it changes the page.)
//! - Handles are (place, generation): one of a freed sequence is an error for ever and never names another sequence.
//!
//! # What it does not
//!
//! - It holds no KV and copies none: a [`BlockCopy`] is a request to somebody who can.
//! - It does not move blocks. Free bytes of a page with a held block can only be used by the group that owns the page;
//!   [`PoolStats::bytes_fragmented`] counts them, and [`Arena::worst_waste`] says how much padding can waste besides.
//! - It does not check that tokens handed over twice are the same.
//!
//! # What it costs
//!
//! Allocation, release, sealing and look-up are O(1) a block (a page that is taken from another group costs its
//! blocks), without heap allocation once [`BlockManager::prepare`] made room for the book-keeping. A block of 16
//! tokens is hashed by two SHA-256 compressions (0.1 to 0.2 µs with SHA instructions), once in a sequence's life.
//!
//! # Example
//!
//! ```
//! use pagedraft_block_manager::{BlockId, BlockManager, BlockSize, GroupId, KvGroup, Salt, slot};
//!
//! # fn main() -> Result<(), pagedraft_block_manager::Error> {
//! // Two layers see everything, six see 16 tokens: blocks of 32 and 96 KiB share one arena.
//! let full = KvGroup::dense(2, 1024);
//! let near = KvGroup { id: GroupId(1), name: "window".to_owned(), window: Some(16), ..KvGroup::dense(6, 1024) };
//! let (full_id, near_id) = (full.id, near.id);
//! let mut blocks = BlockManager::new(BlockSize::new(16)?, 8, vec![full, near], true)?;
//!
//! // 40 tokens take three blocks of each group. Once they are committed, the window has passed the first block.
//! let tokens: Vec<u32> = (0..40).collect();
//! let first = blocks.open(Salt::NONE);
//! assert!(blocks.reserve(first, &[40, 40])?.is_some());
//! for group in [full_id, near_id] {
//!     blocks.commit(first, group, &tokens, 40)?;
//! }
//! assert_eq!(blocks.block_table(first, full_id).len(), 3);
//! assert_eq!(blocks.block_table(first, near_id)[0], BlockId::FREED);
//! assert_eq!(slot(blocks.block_table(first, near_id), 0, 16), None);
//!
//! // Another sequence hits 32 tokens: two blocks of the one group, and of the other the block that is still seen.
//! let second = blocks.open(Salt::NONE);
//! let hit = blocks.lookup(second, &tokens, 39)?;
//! assert_eq!((hit.tokens, hit.blocks), (32, 3));
//! blocks.take_hit(second, &tokens, &hit)?;
//!
//! blocks.free(first)?;
//! blocks.free(second)?;
//! assert_eq!(blocks.stats().bytes_used, 0);
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
mod kept_prompt;
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
mod restore;
mod room;
mod sequence;
mod side_table;
mod slab;
mod stats;
mod supply;
mod table;
mod upto;
mod window;

pub use arena::{Arena, GroupArena, MAX_GROUPS};
pub use block::{BlockCopy, BlockId, BlockSize, slot};
pub use error::Error;
pub use group::{GroupId, KvGroup};
pub use hash::{BlockHash, Salt};
pub use hit::PrefixHit;
pub use journal::{Contents, KvEvent, KvEventKind, KvJournal};
pub use kept::KvIndex;
pub use kept_prompt::KeptPrompt;
pub use layer_set::LayerSet;
pub use lease::{Lease, Sealed, Writable};
pub use manager::BlockManager;
pub use part::{KvPart, PartKind};
pub use pool::BlockPool;
pub use restore::Restore;
pub use sequence::{Lengths, SequenceId};
pub use side_table::{Claimed, SideTable};
pub use slab::{Handle, Slab};
pub use stats::{GroupStats, PoolStats};
