//! The parts of the CPU device.

mod arena;
mod buffer;
mod device;
pub mod int8;
mod kv;
mod kv_groups;
mod kv_read;
pub mod matmul;
pub mod memory;
mod memory_limit;
mod operations;
pub mod panel;
pub mod perceptron;
mod products;
pub mod rows;
pub mod rowwise;
mod sparse;
pub mod team;

pub use arena::KvArena;
pub use device::{CpuDevice, CpuOptions, Tape};
pub use memory_limit::{MemoryLimit, Whose};
pub use products::products;
