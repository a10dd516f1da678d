//! Where the latents of a model with sparse attention lie: in frames of tier 0, or in a tier below.
//!
//! A KV block has one name, its id, in block tables, in the scheduler and in the block manager; none of them knows where it lies.
//! Each layer has a table from names to *frames*: tier 0 has `--kv-hbm-blocks` of them in each layer, whatever the number of names.
//! A *cell* is what one layer holds of one block, and it is what moves; indexer keys are read for every query and stay in the arena.
//! Before a layer stores or attends, the cells that the step touches there are held in frames, and absent ones are fetched.
//! Where a layer touches more cells than there are frames, token rows go in passes; a row that needs more than all frames has its
//! latents gathered into a list first, so that the order of every sum, and with it every bit, stays the same.
//! Whoever was selected least, by the [policy](Policy), goes down: to the local pool, to the remote pool behind it, and where no pool
//! takes it to host memory of last resort, so that no cell is ever dropped for want of room.
//! Every cell that goes down is remembered with its length and a checksum, and one that does not come back as it was is *lost*.
//! A token row that selects a lost cell is reported, and its request is preempted and computed again: a fault costs time and never
//! a token.
//! Blocks that the prefix cache forgets go down whole, with their indexer keys, under the hash of their contents, and come back when
//! a request hits them.
//! A pool that fails is left alone for twice as many cells after each fault, so that a broken one cannot hold the engine up for ever.

mod attend;
mod below;
mod checksum;
mod counts;
mod directory_pool;
mod frames;
mod memory_pool;
#[cfg(feature = "s3-pool")]
mod object_http;
#[cfg(feature = "s3-pool")]
mod object_pool;
mod options;
mod policy;
mod pool;
mod prefixes;
#[cfg(feature = "redis-pool")]
mod redis_pool;
mod remote;
mod watched;

pub(crate) use attend::{Attended, GatherRoom};
pub use below::{Below, BelowCounts};
pub use counts::{Fetch, TierCounts, Waited};
pub use directory_pool::DirectoryPool;
pub use frames::Tiers;
pub use memory_pool::MemoryPool;
#[cfg(feature = "s3-pool")]
pub use object_pool::ObjectPool;
pub use options::{LocalPool, TierOptions};
pub use policy::{Policy, Uses};
pub use pool::{Key, Pool, PoolError, TierId};
#[cfg(feature = "redis-pool")]
pub use redis_pool::RedisPool;
pub use remote::open_remote;
pub use watched::Watched;
