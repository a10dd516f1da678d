//! Memory of the GPU.

use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::driver::Gpu;
use super::error::{CudaError, Doing};
use super::purpose::Purpose;

/// A piece of the GPU's memory, which was zeroed when it was made and starts at a multiple of 256 bytes. Its address never
/// changes, so that graphs may hold it.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    at: sys::CUdeviceptr,
    bytes: usize,
    context: Arc<CudaContext>,
}

impl DeviceMemory {
    pub fn zeroed(gpu: &Gpu, bytes: usize, purpose: Purpose) -> Result<Self, CudaError> {
        gpu.bind()?;
        let bytes = bytes.max(1);
        // SAFETY: this is a fresh allocation, which is written before it is read.
        let at = match unsafe { result::malloc_sync(bytes) } {
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                let (free, total) = gpu.memory()?;
                return Err(CudaError::NoMemory { purpose, bytes, free, total });
            }
            allocated => allocated.doing("allocating memory on the GPU")?,
        };
        let memory = Self { at, bytes, context: Arc::clone(gpu.context()) };
        // SAFETY: this is all of a live allocation, and it is written in the order of the stream.
        unsafe { result::memset_d8_async(at, 0, bytes, gpu.raw_stream()) }
            .doing("zeroing memory of the GPU")?;
        Ok(memory)
    }

    pub fn address(&self) -> u64 {
        self.at
    }

    /// Whether `bytes` bytes from an address on all lie in this memory.
    pub fn holds(&self, at: u64, bytes: usize) -> bool {
        at.checked_sub(self.at).is_some_and(|from| from.saturating_add(bytes as u64) <= self.bytes as u64)
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        self.context.record_err(self.context.bind_to_thread());
        // SAFETY: the memory was allocated in `zeroed` and is freed once. Freeing waits for what still runs.
        self.context.record_err(unsafe { result::free_sync(self.at) });
    }
}
