//! Page-locked host memory, from which copies run beside the CPU.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result, sys};

use super::driver::Gpu;
use super::error::{CudaError, Doing};

/// `len` page-locked 32-bit words, zeroed. Whoever copies from or to it sees to the order: nothing here waits.
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
        // Not write-combined: it is read back as well.
        // SAFETY: a fresh allocation.
        let at = unsafe { result::malloc_host(bytes, sys::CU_MEMHOSTALLOC_PORTABLE) };
        let at = at.doing("allocating page-locked memory")?.cast::<u32>();
        // SAFETY: `bytes` bytes, ours.
        unsafe { std::ptr::write_bytes(at.cast::<u8>(), 0, bytes) };
        Ok(Self { at, len, context: Arc::clone(gpu.context()) })
    }

    pub fn words(&self) -> &[u32] {
        // SAFETY: `len` initialised words of ours.
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
        // SAFETY: allocated in `new`, freed once.
        self.context.record_err(unsafe { result::free_host(self.at.cast()) });
    }
}
