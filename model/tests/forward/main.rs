//! Forward passes and their kernels: against references, with and without graphs, on the CPU and emulated.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

#[path = "../agreement/mod.rs"]
mod agreement;
mod cpu_arena;
mod cuda_arena;
mod cuda_compile;
mod cuda_launches;
mod cuda_matmul;
mod cuda_rows;
mod cuda_step;
#[path = "../devices/mod.rs"]
mod devices;
mod dsa_golden;
mod dsa_rows;
#[path = "../emulated/mod.rs"]
mod emulated;
#[path = "../../../attention/tests/emulator/mod.rs"]
mod emulator;
mod golden;
#[path = "../launches/mod.rs"]
mod launches;
#[path = "../../../attention/tests/random/mod.rs"]
mod random;
mod segments;
#[path = "../steps/mod.rs"]
mod steps;
mod tape;
mod tiers;
mod window;
