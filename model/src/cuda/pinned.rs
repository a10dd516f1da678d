//! Page-locked host memory, which the GPU can copy while the CPU does other work.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use super::driver::Gpu;
use super::error::{CudaError, Doing};

/// `len` page-locked 32-bit words, zeroed. Nothing here waits: whoever copies from or to the words has to keep the order.
#[derive(Debug)]
pub(super) struct Pinned {
    at: *mut u32,
    len: usize,
    context: Arc<CudaContext>,
}

// SAFETY: it owns plain numbers, and every thread of the process may use page-locked memory.
unsafe impl Send for Pinned {}

impl Pinned {
    pub fn new(gpu: &Gpu, len: usize) -> Result<Self, CudaError> {
        gpu.bind()?;
        let bytes = len.max(1) * size_of::<u32>();
        // It is not write-combined, because it is read back as well.
        // SAFETY: this is a fresh allocation.
        let at = unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) };
        let at = at.doing("allocating page-locked memory")?.cast::<u32>();
        // SAFETY: these are `bytes` bytes of the allocation above.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
        Ok(Self { at, len, context: Arc::clone(gpu.context()) })
    }

    pub fn words(&self) -> &[u32] {
        // SAFETY: these are `len` initialised words that this value owns.
        unsafe { std::slice::from_raw_parts(self.at, self.len) }
    }

    pub fn words_mut(&mut self) -> &mut [u32] {
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        // SAFETY: the memory was allocated in `new` and is freed once.
        self.context.record_err(unsafe { result::free_host(self.at.cast()) });
    }
}
