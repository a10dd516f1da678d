//! Pagedraft: an LLM serving engine whose scheduler knows about speculation.
//!
//! This is the library behind the binary of the same name. [`session`] puts the parts of an engine together
//! (scheduler, executor, tokenizer, trace) within one process. [`exit`] says what an error means to whoever
//! started the program. Nothing here decides anything.
#![deny(missing_docs)]

pub use pagedraft_attention as attention;
pub use pagedraft_block_manager as block_manager;
pub use pagedraft_model as model;
pub use pagedraft_scheduler as scheduler;
pub use pagedraft_spec_decode as spec_decode;
pub use pagedraft_workloads as workloads;

pub mod exit;
pub mod memory_need;
pub mod prune;
pub mod report;
pub mod session;
#[cfg(feature = "train")]
#[allow(missing_docs, reason = "a tool behind a feature, not an interface")]
pub mod train;

/// The revision that this was built from, or `unknown`.
pub const REVISION: &str = env!("PAGEDRAFT_REVISION");
