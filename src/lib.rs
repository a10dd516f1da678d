//! Pagedraft: an LLM serving engine whose scheduler knows about speculation.
//!
//! The library behind the binary of the same name: [`session`] wires the rooms of the house (scheduler, executor,
//! tokenizer, trace) to an engine in a process; [`exit`] says what an error means to whoever started it. Nothing here
//! decides anything.
#![deny(missing_docs)]

pub mod exit;
pub mod session;
#[cfg(feature = "train")]
#[allow(missing_docs, reason = "a tool behind a feature, not an interface")]
pub mod train;

/// The revision this was built from, or `unknown`.
pub const REVISION: &str = env!("PAGEDRAFT_REVISION");
