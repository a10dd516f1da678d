//! Attention: kernels and what they are told, against references, on the CPU and emulated.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]
#![allow(clippy::undocumented_unsafe_blocks, reason = "buffers of a test are as long as it says")]

mod canvas;
mod cuda_attention;
mod cuda_cache;
mod cuda_plan;
mod dense;
#[path = "../emulator/mod.rs"]
mod emulator;
mod golden_metadata;
mod invariance;
mod kv_cache;
mod mass;
mod metadata;
#[path = "../random/mod.rs"]
mod random;
mod sparse;
mod windows;
#[path = "../world/mod.rs"]
mod world;
