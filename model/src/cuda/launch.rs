//! A kernel to be launched, as data.

use crate::device::BufferId;

/// Memory that a kernel is given, by what it is; the device knows where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nothing: a null pointer.
    Null,
    /// A buffer, from its start.
    Buffer(BufferId),
    /// The step's packed inputs, from this word on.
    Inputs(usize),
    /// The rows selected for a gather.
    Selection,
    /// The KV cache, from this byte on.
    Cache(usize),
    /// Partial sums of a kernel that is split.
    Partial,
    /// Counters of a kernel that is split: zeroes between launches.
    Arrived,
    /// The chosen tokens of the last selection, and what they are chosen by.
    Choice(usize),
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Argument {
    /// An address.
    At(Place),
    /// A number of 32 bits.
    U32(u32),
    /// A number of 64 bits.
    U64(u64),
    /// A number.
    F32(f32),
}

/// One launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// Blocks of threads.
    pub grid: [u32; 3],
    /// Threads a block.
    pub block: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared: u32,
    /// Arguments in the kernel's order.
    pub arguments: Vec<Argument>,
}
