//! What can go wrong on a GPU, or on the way to it.

use std::path::PathBuf;

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use super::purpose::Purpose;

/// A fault of a GPU, of its driver or of one of its libraries.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CudaError {
    /// A library that is not there.
    #[error("{name} is not found{looked}: {hint}")]
    NoLibrary {
        /// The library.
        name: &'static str,
        /// Where it was looked for beside the loader's path; empty, or starting with " (".
        looked: String,
        /// What brings it.
        hint: &'static str,
    },
    /// A library that lacks what is called here.
    #[error("{name} has no {symbol}: {hint}")]
    OldLibrary {
        /// The library.
        name: &'static str,
        /// The missing function.
        symbol: &'static str,
        /// What to do.
        hint: &'static str,
    },
    /// No GPU that could be used.
    #[error("{what}")]
    NoGpu {
        /// Why, and what to do.
        what: String,
    },
    /// The driver refused, or the GPU failed.
    #[error("{doing}: the CUDA driver says {code:?}{}", hint(*code))]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// The driver's word.
        code: CUresult,
    },
    /// A command went wrong, found out because every command was waited for (`PAGEDRAFT_CUDA_SYNC=1`).
    #[error("{command}: {error}")]
    After {
        /// What ran.
        command: String,
        /// What was said when it was waited for.
        error: Box<CudaError>,
    },
    /// A piece of the GPU's memory that is not to be had.
    #[error(
        "{purpose} of the model: the GPU has no piece of {bytes} bytes (of its {total}, {free} are free); {}",
        purpose.remedy()
    )]
    NoMemory {
        /// What it is for.
        purpose: Purpose,
        /// Its length.
        bytes: usize,
        /// Memory that is free.
        free: usize,
        /// Memory that there is.
        total: usize,
    },
    /// cuBLASLt refused.
    #[error("{doing}: cuBLASLt says {said}")]
    Blas {
        /// What was being done.
        doing: &'static str,
        /// Its word.
        said: String,
    },
    /// A kernel source that does not compile.
    #[error("the kernels of {name} do not compile for {arch}: {log}")]
    Compile {
        /// The source.
        name: String,
        /// The GPU's architecture.
        arch: String,
        /// The compiler's words.
        log: String,
    },
    /// A kernel that the compiled modules lack: a fault of this program.
    #[error("there is no kernel {kernel}")]
    NoKernel {
        /// Its name.
        kernel: String,
    },
    /// A copy beyond the memory that was allocated: a fault of this program.
    #[error("{bytes} bytes from {at:#x} are copied, and do not lie in one piece of this device's memory")]
    Outside {
        /// Where the range begins.
        at: u64,
        /// Its length.
        bytes: usize,
    },
    /// A shape that no kernel is made for.
    #[error("{what}")]
    Unsupported {
        /// What, and what is supported.
        what: String,
    },
    /// The cache of compiled kernels.
    #[error("cannot write the kernel cache {}: {said}", path.display())]
    Cache {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        said: String,
    },
}

fn hint(code: CUresult) -> &'static str {
    match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            "; ask for less with --num-blocks, --kv-cache-memory, --max-num-batched-tokens or --max-model-len"
        }
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS
        | CUresult::CUDA_ERROR_MISALIGNED_ADDRESS
        | CUresult::CUDA_ERROR_LAUNCH_FAILED
        | CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION => {
            "; a kernel went wrong, and the GPU's context is lost: PAGEDRAFT_CUDA_SYNC=1 tells which, compute-sanitizer where in it"
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | CUresult::CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => {
            "; the driver's parts are of different versions: restart after an update"
        }
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            "; the driver is older than the compiler of the kernels: update it, or install an older libnvrtc"
        }
        _ => "",
    }
}

/// Says what was being done when a library refused.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, CudaError>;
}

impl<T> Doing<T> for Result<T, DriverError> {
    fn doing(self, doing: &'static str) -> Result<T, CudaError> {
        // Not by the driver's own words: asking for them is one more call to a driver that has just failed.
        self.map_err(|DriverError(code)| CudaError::Driver { doing, code })
    }
}

impl<T> Doing<T> for Result<T, CublasError> {
    fn doing(self, doing: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| CudaError::Blas { doing, said: error.to_string() })
    }
}
