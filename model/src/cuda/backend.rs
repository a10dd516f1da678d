//! What a CUDA device runs on: memory, copies and launches, which run in the order in which they are asked for.
//!
//! [`Gpu`](super::driver::Gpu) is the real one. Tests put an emulator in its place, which runs the same kernels over host
//! memory, so that everything above this interface is the code that runs on a GPU.

use super::error::CudaError;
use super::purpose::Purpose;
use crate::checkpoint::Dtype;
use crate::device_times::{DeviceTimes, Stage};
use crate::graph::GraphKey;

/// A launch whose arguments are all known.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadyLaunch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// The number of blocks of threads.
    pub grid: [u32; 3],
    /// The number of threads per block.
    pub block: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
    /// The arguments. Each is read from the first bytes of its word, as many as its type has.
    pub arguments: Vec<u64>,
}

/// The shape of `out[rows, n] (+)= x[rows, k] w[n, k]^T`, all row-major, x and w in the dtype of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProductShape {
    /// The number of token rows.
    pub rows: usize,
    /// The number of rows of the weight.
    pub n: usize,
    /// The number of values per row of x and of w.
    pub k: usize,
    /// Whether the output is f32. Otherwise it has the dtype of the weights.
    pub out_f32: bool,
    /// Whether the product is added to the output instead of replacing it.
    pub add: bool,
}

/// A command that can be put on the stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// A kernel's launch.
    Launch(ReadyLaunch),
    /// A matrix product by the vendor's library.
    Product {
        /// The shape of the product.
        shape: ProductShape,
        /// The address of the activations.
        x: u64,
        /// The address of the weights.
        weights: u64,
        /// The address of the output.
        out: u64,
    },
}

/// Runs commands over memory of its own, in the order in which it is asked.
pub trait Backend {
    /// Commands that were captured.
    type Graph;
    /// Memory that several backends use, such as the KV arena's.
    type Shared: Clone;

    /// Takes shared memory in, keeps it for as long as the backend exists, and returns its address.
    fn adopt(&mut self, shared: &Self::Shared) -> u64;

    /// The number of multiprocessors.
    fn multiprocessors(&self) -> u32;

    /// Prepares for [products](Command::Product) of matrices of this type, if that was not done before.
    ///
    /// # Errors
    ///
    /// The vendor's library is missing or does not start.
    fn open_products(&mut self, dtype: Dtype) -> Result<(), CudaError>;

    /// Says to which stage of a step all that follows belongs. Its time is counted there.
    fn enter(&mut self, stage: Stage);

    /// Allocates zeroed memory at a multiple of 256 bytes, and keeps it for as long as the backend exists.
    ///
    /// # Errors
    ///
    /// There is not enough memory. The error names the purpose.
    fn allocate(&mut self, bytes: usize, purpose: Purpose) -> Result<u64, CudaError>;

    /// Copies `bytes` to an address. They may be changed once this returns.
    ///
    /// # Errors
    ///
    /// The range lies outside the allocated memory, or the driver has a fault.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), CudaError>;

    /// Copies on the device.
    ///
    /// # Errors
    ///
    /// The range lies outside the allocated memory, or the driver has a fault.
    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError>;

    /// Gives `words` words, into which the caller writes what it [sends](Self::send) next. It may wait until an earlier
    /// copy no longer reads them.
    ///
    /// # Errors
    ///
    /// There is not enough memory, or the driver has a fault.
    fn staging(&mut self, words: usize) -> Result<&mut [u32], CudaError>;

    /// Copies the first `words` of the words that were [staged](Self::staging) last to an address, without waiting.
    ///
    /// # Errors
    ///
    /// The range lies outside the allocated memory, or the driver has a fault.
    fn send(&mut self, at: u64, words: usize) -> Result<(), CudaError>;

    /// Waits for everything, and then for `words` words from an address.
    ///
    /// # Errors
    ///
    /// The range lies outside the allocated memory, or the driver, or anything that ran before, has a fault.
    fn fetch(&mut self, at: u64, words: usize) -> Result<&[u32], CudaError>;

    /// Puts commands on the stream.
    ///
    /// # Safety
    ///
    /// Each launch has the arguments that its kernel takes, and all memory that a command reads and writes through its
    /// addresses was allocated by this backend.
    ///
    /// # Errors
    ///
    /// The driver has a fault.
    unsafe fn run(&mut self, commands: &[Command]) -> Result<(), CudaError>;

    /// Captures commands that have run before with the same addresses.
    ///
    /// # Safety
    ///
    /// The same as for [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// The driver has a fault.
    unsafe fn capture(&mut self, commands: &[Command], key: GraphKey) -> Result<Self::Graph, CudaError>;

    /// The number of bytes of memory that a graph takes.
    fn graph_bytes(&self, graph: &Self::Graph) -> usize;

    /// Puts captured commands on the stream.
    ///
    /// # Safety
    ///
    /// This same backend captured them.
    ///
    /// # Errors
    ///
    /// The driver has a fault.
    unsafe fn replay(&mut self, graph: &Self::Graph) -> Result<(), CudaError>;

    /// The time that each stage's copies and commands took since the last call. It waits for them. What is
    /// [written](Self::write) belongs to no stage.
    fn busy(&mut self) -> DeviceTimes;
}
