//! The memory of the KV arena on a GPU.

use pagedraft_block_manager::Arena;

use super::backend::Backend;
use super::driver::Gpu;
use super::error::CudaError;
use super::gpu_backend::{GpuBackend, GpuMemory};
use super::purpose::Purpose;

/// The memory in which the KV blocks of all models of an engine lie. The devices of the target and of its draft model share
/// it, and run in turns.
pub struct CudaArena<B: Backend = GpuBackend> {
    plan: Arena,
    memory: B::Shared,
}

impl CudaArena {
    /// Allocates zeroed memory on a GPU for this plan.
    ///
    /// # Errors
    ///
    /// There is not enough memory.
    pub fn open(gpu: &Gpu, plan: &Arena) -> Result<Self, CudaError> {
        Ok(Self::over(plan, GpuMemory::zeroed(gpu, plan.bytes(), Purpose::KvCache)?))
    }
}

impl<B: Backend> CudaArena<B> {
    /// An arena in memory that has the plan's number of bytes, zeroed.
    #[must_use]
    pub fn over(plan: &Arena, memory: B::Shared) -> Self {
        Self { plan: plan.clone(), memory }
    }

    /// How the arena is cut into blocks.
    #[must_use]
    pub fn plan(&self) -> &Arena {
        &self.plan
    }

    /// The memory.
    #[must_use]
    pub fn memory(&self) -> &B::Shared {
        &self.memory
    }
}
