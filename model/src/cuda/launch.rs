//! The launch of a kernel, as data.

use crate::device::BufferId;

/// Memory that a kernel is given, named by what it is for. The device knows its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// No memory: a null pointer.
    Null,
    /// A buffer, from its start on.
    Buffer(BufferId),
    /// The step's packed inputs, from this word on.
    Inputs(usize),
    /// The rows that were selected for a gather.
    Selection,
    /// The KV cache, from this byte on.
    Cache(usize),
    /// The partial sums of a split kernel.
    Partial,
    /// The counters of a split kernel, which are zero between launches.
    Arrived,
    /// The chosen tokens of the last selection, and the parameters they are chosen by.
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
    /// A floating point number of 32 bits.
    F32(f32),
}

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The kernel's name.
    pub kernel: &'static str,
    /// The number of blocks of threads.
    pub grid: [u32; 3],
    /// The number of threads per block.
    pub block: u32,
    /// The bytes of dynamic shared memory of a block.
    pub shared: u32,
    /// The arguments in the kernel's order.
    pub arguments: Vec<Argument>,
}
