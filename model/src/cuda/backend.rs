//! What a CUDA device stands on: memory, copies and launches, which run in the order in which they are asked for.
//!
//! [`Gpu`](super::driver::Gpu) is the real one. Tests put an emulator in its place, which runs the very kernels over host
//! memory: everything above this line is then what runs on a GPU.

use super::error::CudaError;
use super::purpose::Purpose;
use crate::checkpoint::Dtype;
use crate::device_times::{DeviceTimes, Stage};
use crate::graph::GraphKey;

/// A launch with every argument known.
#[derive(Clone, Debug, PartialEq)]
pub struct ReadyLaunch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Blocks of threads.
    pub grid: [u32; 3],
    /// Threads a block.
    pub block: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
    /// Arguments: each is read from the first bytes of its word, as many as its type has.
    pub arguments: Vec<u64>,
}

/// The shape of `out[rows, n] (+)= x[rows, k] w[n, k]^T`, all row-major, x and w in the dtype of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProductShape {
    /// Token rows.
    pub rows: usize,
    /// Rows of the weight.
    pub n: usize,
    /// Values a row of both.
    pub k: usize,
    /// Whether the output is f32, or has the dtype of the weights.
    pub out_f32: bool,
    /// Whether the output is added to.
    pub add: bool,
}

/// Something to be put on the stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// A kernel.
    Launch(ReadyLaunch),
    /// A matrix product by the vendor's library.
    Product {
        /// Its shape.
        shape: ProductShape,
        /// Address of the activations.
        x: u64,
        /// Address of the weights.
        weights: u64,
        /// Address of the output.
        out: u64,
    },
}

/// Runs commands over memory of its own, in the order in which it is asked.
pub trait Backend {
    /// Commands that were captured.
    type Graph;
    /// Memory that several backends use: the KV arena.
    type Shared: Clone;

    /// Takes shared memory in, and keeps it for as long as the backend is; its address.
    fn adopt(&mut self, shared: &Self::Shared) -> u64;

    /// Multiprocessors.
    fn multiprocessors(&self) -> u32;

    /// Makes ready for [products](Command::Product) of matrices of this type, where that was not done.
    ///
    /// # Errors
    ///
    /// The vendor's library is not there, or does not start.
    fn open_products(&mut self, dtype: Dtype) -> Result<(), CudaError>;

    /// Says for which stage of a step everything is that is asked from here on: its time is counted there.
    fn enter(&mut self, stage: Stage);

    /// Zeroed memory at a multiple of 256 bytes, kept for as long as the backend is.
    ///
    /// # Errors
    ///
    /// Not enough memory, and for what.
    fn allocate(&mut self, bytes: usize, purpose: Purpose) -> Result<u64, CudaError>;

    /// Copies `bytes` to an address; they may change when this returns.
    ///
    /// # Errors
    ///
    /// A range outside what was allocated; a fault of the driver.
    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), CudaError>;

    /// Copies on the device.
    ///
    /// # Errors
    ///
    /// A range outside what was allocated; a fault of the driver.
    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError>;

    /// `words` words to write what is [sent](Self::send) next; may wait until an earlier copy has left them.
    ///
    /// # Errors
    ///
    /// Not enough memory, or a fault of the driver.
    fn staging(&mut self, words: usize) -> Result<&mut [u32], CudaError>;

    /// Copies the first `words` of what was [staged](Self::staging) last to an address, without waiting.
    ///
    /// # Errors
    ///
    /// A range outside what was allocated; a fault of the driver.
    fn send(&mut self, at: u64, words: usize) -> Result<(), CudaError>;

    /// Waits for everything, then for `words` words from an address.
    ///
    /// # Errors
    ///
    /// A range outside what was allocated; a fault of the driver, or of anything that ran before.
    fn fetch(&mut self, at: u64, words: usize) -> Result<&[u32], CudaError>;

    /// Puts commands on the stream.
    ///
    /// # Safety
    ///
    /// A launch has the arguments of its kernel's list, and what a command reads and writes from its addresses on lies in
    /// memory that this backend allocated.
    ///
    /// # Errors
    ///
    /// A fault of the driver.
    unsafe fn run(&mut self, commands: &[Command]) -> Result<(), CudaError>;

    /// Captures commands that have run before, over the same addresses.
    ///
    /// # Safety
    ///
    /// That of [`run`](Self::run).
    ///
    /// # Errors
    ///
    /// A fault of the driver.
    unsafe fn capture(&mut self, commands: &[Command], key: GraphKey) -> Result<Self::Graph, CudaError>;

    /// Memory that a graph takes, in bytes.
    fn graph_bytes(&self, graph: &Self::Graph) -> usize;

    /// Puts captured commands on the stream.
    ///
    /// # Safety
    ///
    /// This very backend captured them.
    ///
    /// # Errors
    ///
    /// A fault of the driver.
    unsafe fn replay(&mut self, graph: &Self::Graph) -> Result<(), CudaError>;

    /// Time that each stage's copies and commands took since this was last asked. It waits for them. What is
    /// [written](Self::write) belongs to no stage.
    fn busy(&mut self) -> DeviceTimes;
}
