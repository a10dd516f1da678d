//! The server on real sockets: what clients get, and what becomes of those that misbehave.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

mod access;
mod answers;
mod bodies;
#[path = "../browser/mod.rs"]
mod browser;
mod client;
mod ending;
mod figures;
mod idle;
mod mutated;
mod openai_client;
#[cfg(feature = "otel")]
mod otel;
mod page;
mod place;
mod process;
#[path = "../program/mod.rs"]
mod program;
#[path = "../../attention/tests/random/mod.rs"]
mod random;
mod readers;
mod soak;
mod streams;
