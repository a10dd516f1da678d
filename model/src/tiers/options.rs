//! What tiers are made from.

use std::path::PathBuf;

use super::memory_pool::MemoryPool;
use super::policy::Policy;
use super::pool::{Pool, TierId};
use crate::error::ModelError;

/// A local pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPool {
    /// Its size in bytes.
    pub bytes: u64,
    /// The file that is mapped; host memory without one.
    pub file: Option<PathBuf>,
}

/// How the latents of a model with sparse attention are kept.
#[derive(Default)]
pub struct TierOptions {
    /// Blocks that tier 0 holds in each layer; at least 1. `None`: as many as there are.
    pub frames: Option<u32>,
    /// The pools below, the nearest first.
    pub pools: Vec<(TierId, Box<dyn Pool>)>,
    /// Which cells go down first.
    pub policy: Policy,
}

impl TierOptions {
    /// With a local pool, for cells of `cell_bytes` bytes.
    ///
    /// # Errors
    ///
    /// There is no memory, or the file cannot be used.
    pub fn with_local(mut self, local: &LocalPool, cell_bytes: usize) -> Result<Self, ModelError> {
        let pool = MemoryPool::open(local, cell_bytes)?;
        self.pools.push((TierId::LocalPool, Box::new(pool)));
        Ok(self)
    }
}
