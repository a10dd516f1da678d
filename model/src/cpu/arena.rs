//! The memory of the KV arena.

use std::sync::Arc;

use pagedraft_block_manager::{Arena, BlockCopy};

use crate::cpu::memory::Memory;
use crate::error::ModelError;
use crate::kv::copied;

/// The memory in which the KV blocks of all models of an engine lie. The devices of the target and of its
/// draft model share it; they run in turns. The block manager decides which block belongs to whom. A device
/// writes the blocks that a step's slots name, and reads those that its block tables name.
#[derive(Debug)]
pub struct KvArena {
    plan: Arena,
    memory: Memory<u8>,
}

impl KvArena {
    /// Allocates zeroed memory for this plan.
    ///
    /// # Errors
    ///
    /// [`ModelError::NoDevice`] if the system does not grant the memory.
    pub fn new(plan: &Arena) -> Result<Arc<Self>, ModelError> {
        let memory = Memory::zeroed(plan.bytes()).map_err(|_| ModelError::NoDevice {
            what: format!(
                "there is no memory for a KV cache of {} bytes; ask for fewer blocks with --num-blocks",
                plan.bytes()
            ),
        })?;
        Ok(Arc::new(Self { plan: plan.clone(), memory }))
    }

    /// The plan by which the memory is cut into blocks.
    #[must_use]
    pub fn plan(&self) -> &Arena {
        &self.plan
    }

    /// The first byte, at an address that is a multiple of 64. Whoever reads or writes through it must keep
    /// to their own blocks.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// Makes the system back all of it with physical memory now. The contents stay.
    ///
    /// # Safety
    ///
    /// Nobody reads or writes a block during the call.
    pub unsafe fn touch(&self) {
        // SAFETY: as the caller promises.
        unsafe { self.memory.touch_shared() };
    }

    /// Copies a block onto another one of the same group, in all parts and layers.
    ///
    /// # Errors
    ///
    /// The arena does not have the group, or the group does not have a block.
    ///
    /// # Safety
    ///
    /// Nobody writes the source or uses the target during the call.
    pub unsafe fn copy_block(&self, copy: BlockCopy) -> Result<(), ModelError> {
        let (from, to, bytes) = copied(&self.plan, copy)?;
        // SAFETY: both blocks lie within the arena, and are whole blocks of one size.
        unsafe { std::ptr::copy(self.base().add(from), self.base().add(to), bytes) };
        Ok(())
    }
}
