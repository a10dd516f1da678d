//! A running engine, for whoever embeds it.
//!
//! [`session`] puts the parts of an engine together (scheduler, executor, tokenizer, trace) within one process, and runs it step by
//! step. [`handle`] runs a session on a thread of its own, for callers that are asynchronous. [`prune`] says which prompts are pruned, and how. [`quantize`] writes a model with its
//! matrices in 8 bits. [`error`] says why something failed. Nothing
//! here decides what runs in a step: that is the scheduler's part.
#![deny(missing_docs)]

pub mod error;
pub mod handle;
pub mod memory_need;
pub mod prune;
pub mod quantize;
pub mod session;

/// The revision that this was built from, or `unknown`.
pub const REVISION: &str = env!("PAGEDRAFT_REVISION");
