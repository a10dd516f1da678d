//! The CPU device: what it is made of.

mod buffer;
mod device;
pub mod matmul;
pub mod memory;
mod memory_limit;
pub mod panel;
pub mod rows;
pub mod rowwise;
pub mod team;

pub use device::{CpuDevice, CpuOptions, Tape};
pub use memory_limit::{MemoryLimit, Whose};
