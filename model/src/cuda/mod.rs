//! An NVIDIA GPU as a [`Device`](crate::Device).
//!
//! One binary runs everywhere: CUDA's libraries are looked for when a GPU is asked for ([`probe`]), and whatever is missing is
//! an error that says what brings it. Kernels are compiled for the GPU found, once ([`CubinCache`]).
//!
//! # What it promises
//!
//! - **A row's bits are a function of the row.** The same kernels as everywhere in this program's own sources do all matrix
//!   products, with the sums over k cut by the weight's shape alone, so that a row gives the same alone, in a batch, padded in a
//!   graph. With `deterministic` off, products are cuBLASLt's, which picks kernels by the number of rows.
//! - **What a step needs goes over in one copy** ([`InputLayout`]), and what is chosen comes back as token ids; logits stay
//!   where they are unless somebody reads them.
//! - **What is greater than a buffer is refused.** Rows and widths of every operation are compared with its buffers before it is
//!   launched. [`Runner`](crate::Runner) makes sure that token ids and positions are the model's.
//! - **What has no kernels is refused by name**: several KV groups, sliding windows, rows held between steps.
//! - **Padding touches nothing.** A pad row of a graph has slot -1 and no item of attention.
//! - **Nothing panics for want of a library**, and every error of the driver becomes a [`CudaError`]. A kernel's fault is told
//!   by the next read, and is final: the context is lost. With `PAGEDRAFT_CUDA_SYNC=1` in the environment every command outside a
//!   graph is waited for, and the error names the kernel, its grid and its arguments (slow: for finding faults).
//!
//! # How it is made
//!
//! Operations are [lowered](Lowering) to [launches](Launch) by a function of shapes alone; a [`CudaDevice`] puts them on a
//! [`Backend`]: the GPU, or in tests an emulator that runs the same sources over host memory.
//!
//! It is one thread's at a time: a device is moved between threads, never shared.

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
