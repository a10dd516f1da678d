//! Traces: what is logged is what ran, for real engines and for simulated ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

mod dsa;
mod files;
mod groups;
mod metadata;
#[path = "../models/mod.rs"]
mod models;
#[path = "../program/mod.rs"]
mod program;
#[path = "../requests/mod.rs"]
mod requests;
mod simulated;
mod speculation;
mod tensors;
