//! What can go wrong on a GPU, or before one is in use.

use std::path::PathBuf;

use cudarc::cublaslt::result::CublasError;
use cudarc::driver::DriverError;
use cudarc::driver::sys::CUresult;

use super::purpose::Purpose;

/// A fault of a GPU, of its driver or of one of its libraries.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CudaError {
    /// A library is missing.
    #[error("{name} is not found{looked}: {hint}")]
    NoLibrary {
        /// The name of the library.
        name: &'static str,
        /// Where it was looked for apart from the loader's path. It is empty, or starts with " (".
        looked: String,
        /// How to get it.
        hint: &'static str,
    },
    /// A library lacks a function that is called here.
    #[error("{name} has no {symbol}: {hint}")]
    OldLibrary {
        /// The name of the library.
        name: &'static str,
        /// The name of the missing function.
        symbol: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// There is no GPU that can be used.
    #[error("{what}")]
    NoGpu {
        /// The reason, and what to do about it.
        what: String,
    },
    /// The driver refused a call, or the GPU failed.
    #[error("{doing}: the CUDA driver says {code:?}{}", hint(*code))]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// The driver's error code.
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
    /// There is not enough of the GPU's memory.
    #[error(
        "{purpose} of the model: the GPU has no piece of {bytes} bytes (of its {total}, {free} are free); {}",
        purpose.remedy()
    )]
    NoMemory {
        /// The purpose of the memory.
        purpose: Purpose,
        /// The number of bytes that were asked for.
        bytes: usize,
        /// The number of bytes that are free.
        free: usize,
        /// The number of bytes that the GPU has.
        total: usize,
    },
    /// cuBLASLt refused a call.
    #[error("{doing}: cuBLASLt says {said}")]
    Blas {
        /// What was being done.
        doing: &'static str,
        /// The error code of cuBLASLt.
        said: String,
    },
    /// A kernel source does not compile.
    #[error("the kernels of {name} do not compile for {arch}: {log}")]
    Compile {
        /// The name of the source.
        name: String,
        /// The GPU's architecture.
        arch: String,
        /// What the compiler printed.
        log: String,
    },
    /// The compiled modules lack a kernel, which is a fault of this program.
    #[error("there is no kernel {kernel}")]
    NoKernel {
        /// The name of the kernel.
        kernel: String,
    },
    /// A copy goes beyond the memory that was allocated, which is a fault of this program.
    #[error("{bytes} bytes from {at:#x} are copied, and do not lie in one piece of this device's memory")]
    Outside {
        /// The address where the range begins.
        at: u64,
        /// The number of bytes of the range.
        bytes: usize,
    },
    /// There is no kernel for a shape.
    #[error("{what}")]
    Unsupported {
        /// What was asked for, and what is supported.
        what: String,
    },
    /// The cache of compiled kernels can't be used.
    #[error("cannot write the kernel cache {}: {said}", path.display())]
    Cache {
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
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

/// Adds to a library's error what was being done.
pub(super) trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T, CudaError>;
}

impl<T> Doing<T> for Result<T, DriverError> {
    fn doing(self, doing: &'static str) -> Result<T, CudaError> {
        // The driver's own text is not used, because asking for it is one more call to a driver that has just failed.
        self.map_err(|DriverError(code)| CudaError::Driver { doing, code })
    }
}

impl<T> Doing<T> for Result<T, CublasError> {
    fn doing(self, doing: &'static str) -> Result<T, CudaError> {
        self.map_err(|error| CudaError::Blas { doing, said: error.to_string() })
    }
}
