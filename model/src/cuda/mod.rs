//! An NVIDIA GPU as a [`Device`](crate::Device).
//!
//! One binary runs everywhere. CUDA's libraries are looked for when a GPU is asked for ([`probe`]), and an error about a
//! missing one says how to get it. Kernels are compiled once for the GPU that is found ([`CubinCache`]).
//!
//! # What it promises
//!
//! - **A row's bits are a function of the row.** All matrix products are done by kernels of this program's own sources, which cut the
//!   sums over k by the weight's shape alone. A row therefore gives the same bits alone, in a batch, and padded in a graph. With
//!   `deterministic` off, products are done by cuBLASLt, which picks kernels by the number of rows.
//! - **The inputs of a step are sent in one copy** ([`InputLayout`]), and the chosen tokens come back as token ids. Logits stay on
//!   the GPU unless somebody reads them.
//! - **Rows that do not fit a buffer are refused.** Rows and widths of every operation are compared with its buffers before it is
//!   launched. [`Runner`](crate::Runner) makes sure that token ids and positions are within the model's range.
//! - **Models without kernels are refused by name**: those with several KV groups, sliding windows, or rows held between steps.
//! - **Padding touches nothing.** A pad row of a graph has slot -1 and belongs to no item of attention.
//! - **Nothing panics because a library is missing**, and every error of the driver becomes a [`CudaError`]. A kernel's fault is
//!   reported by the next read, and is final: the context is lost. With `PAGEDRAFT_CUDA_SYNC=1` in the environment every command
//!   outside a graph is waited for, and the error names the kernel, its grid and its arguments. That is slow, and is for finding
//!   faults.
//!
//! # How it is made
//!
//! Operations are [lowered](Lowering) to [launches](Launch) by a function of shapes alone. A [`CudaDevice`] puts the
//! launches on a [`Backend`], which is the GPU, or in tests an emulator that runs the same sources over host memory.
//!
//! One thread uses a device at a time: it may be moved between threads, but is never shared.

mod arena;
mod attention_work;
mod backend;
mod blas;
mod choice_table;
mod clock;
mod cubin_cache;
mod device;
mod driver;
mod error;
mod gpu_backend;
mod graph;
mod inputs;
pub mod kernels;
mod launch;
mod library;
mod loaded;
mod lowering;
mod memory;
mod memory_need;
mod modules;
mod options;
mod pinned;
mod purpose;
mod weights;
mod workspace;

pub use arena::CudaArena;
pub use attention_work::{AttentionLaunch, AttentionWork};
pub use backend::{Backend, Command, ProductShape, ReadyLaunch};
pub use cubin_cache::{CubinCache, CubinKey};
pub use device::{Captured, CudaDevice, default_dtype};
pub use driver::{Gpu, probe};
pub use error::CudaError;
pub use gpu_backend::{GpuBackend, GpuMemory};
pub use graph::CudaGraph;
pub use inputs::{InputLayout, Packed, Packer};
pub use launch::{Argument, Launch, Place};
pub use library::{CUBLASLT, DRIVER, NVRTC, SharedLibrary, directories, include_directories};
pub use loaded::KernelFacts;
pub use lowering::{Geometry, Lowering, Shape};
pub use memory_need::MemoryNeed;
pub use modules::{attention_shape, modules, sources};
pub use options::{CudaOptions, KvStorage, check, part_bytes};
pub use purpose::Purpose;
