//! The memory of the KV arena.

use std::sync::Arc;

use pagedraft_block_manager::{Arena, BlockCopy};

use crate::cpu::memory::Memory;
use crate::error::ModelError;
use crate::kv::copied;

/// The memory in which the KV blocks of all models of an engine lie. It is shared by the devices of the target and of its
/// draft model, which run in turns. Which block belongs to whom is the block manager's business: a device writes the blocks
/// that a step's slots name, and reads those that its tables name.
#[derive(Debug)]
pub struct KvArena {
    plan: Arena,
    memory: Memory<u8>,
}

impl KvArena {
    /// Zeroed memory for this plan.
    ///
    /// # Errors
    ///
    /// The system does not grant the memory.
    pub fn new(plan: &Arena) -> Result<Arc<Self>, ModelError> {
        let memory = Memory::zeroed(plan.bytes()).map_err(|_| ModelError::NoDevice {
            what: format!(
                "there is no memory for a KV cache of {} bytes; ask for fewer blocks with --num-blocks",
                plan.bytes()
            ),
        })?;
        Ok(Arc::new(Self { plan: plan.clone(), memory }))
    }

    /// How it is cut into blocks.
    #[must_use]
    pub fn plan(&self) -> &Arena {
        &self.plan
    }

    /// The first byte, at a multiple of 64. Whoever reads or writes through it keeps to the blocks that are its own.
    #[must_use]
    pub fn base(&self) -> *mut u8 {
        self.memory.as_ptr()
    }

    /// Has the system back all of it with memory now. Contents stay.
    ///
    /// # Safety
    ///
    /// Nobody reads or writes a block meanwhile.
    pub unsafe fn touch(&self) {
        // SAFETY: as the caller promises.
        unsafe { self.memory.touch_shared() };
    }

    /// Copies a block of a group onto another one of it, in all parts and layers.
    ///
    /// # Errors
    ///
    /// A group that the arena does not have, or a block that the group does not have.
    ///
    /// # Safety
    ///
    /// Nobody writes the source or uses the target meanwhile.
    pub unsafe fn copy_block(&self, copy: BlockCopy) -> Result<(), ModelError> {
        let (from, to, bytes) = copied(&self.plan, copy)?;
        // SAFETY: both blocks lie within the arena, and are whole blocks of one size.
        unsafe { std::ptr::copy(self.base().add(from), self.base().add(to), bytes) };
        Ok(())
    }
}
