//! The command line from outside: what it prints, writes and refuses.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

#[path = "../browser/mod.rs"]
mod browser;
mod calibrate;
mod compare;
#[cfg(target_os = "linux")]
mod cuda;
#[cfg(target_os = "linux")]
mod device;
mod diffusion;
mod dump;
mod figures;
mod generate;
mod log;
#[cfg(target_os = "linux")]
mod magnitudes;
mod mock_server;
#[path = "../models/mod.rs"]
mod models;
#[cfg(target_os = "linux")]
mod names;
#[cfg(feature = "s3-pool")]
mod object_store;
#[path = "../program/mod.rs"]
mod program;
mod prompts;
mod prune;
mod quantize;
#[cfg(feature = "redis-pool")]
mod redis_server;
mod refusals;
mod replay;
mod replay_endpoint;
mod report;
mod scheduler;
mod speculation;
mod stops;
mod tensors;
mod tiers;
