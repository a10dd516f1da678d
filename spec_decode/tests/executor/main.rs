//! Proposers, acceptance and whole steps of the executor, against slow ways.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

mod choosing_device;
mod cuda_sampling;
#[path = "../stage/cut.rs"]
mod cut;
mod draft_model;
#[path = "../../../attention/tests/emulator/mod.rs"]
mod emulator;
mod in_flight;
mod padded_vocabulary;
#[path = "../../../attention/tests/random/mod.rs"]
mod random;
#[path = "../stage/shadow.rs"]
mod shadow;
#[path = "../stage/mod.rs"]
mod stage;
mod steps;
mod synthetic;
mod thinning;
#[path = "../stage/tiny.rs"]
mod tiny;
