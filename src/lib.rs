//! Pagedraft: an LLM serving engine whose scheduler knows about speculation.
//!
//! This is the library behind the binary of the same name. [`session`] is a running engine, from the crate [`engine`].
//! [`serve`] talks to it over HTTP, and [`completion_stream`] reads what such a server sends. [`report`] draws what a run wrote. [`exit`] says what an error means to whoever started the program. Nothing here decides anything.
#![deny(missing_docs)]

pub use pagedraft_attention as attention;
pub use pagedraft_block_manager as block_manager;
pub use pagedraft_engine as engine;
pub use pagedraft_engine::{REVISION, memory_need, prune, quantize, session};
pub use pagedraft_model as model;
pub use pagedraft_scheduler as scheduler;
pub use pagedraft_spec_decode as spec_decode;
pub use pagedraft_workloads as workloads;

pub mod completion_stream;
pub mod exit;
pub mod report;
pub mod serve;
#[cfg(feature = "train")]
#[allow(missing_docs, reason = "a tool behind a feature, not an interface")]
pub mod train;
