//! The executor of a step: metadata, forward pass, sampling.
//!
//! [`ModelExecutor`] implements the scheduler's [`Executor`](pagedraft_scheduler::Executor) on a model. Plain decoding is
//! its case of no drafts; proposers, scorers and acceptance come into this crate, between the metadata and the sampling.
//!
//! # What this crate promises
//!
//! - **The record is what ran.** [`StepRecord`] holds the [`StepInputs`](pagedraft_model::StepInputs) that the model was given,
//!   not a copy made for the log.
//! - **A draw is a function of seed, sample and position** ([`sampling`]): the order of requests, their batch mates and how
//!   often a position was computed change nothing.
//!
//! What it costs beside the model: the metadata of a step (under a microsecond a row), and a pass over the vocabulary for each
//! sampled row; nothing is allocated in a steady step without logprobs.
#![deny(missing_docs)]

pub mod acceptance;
pub mod canary;
mod drafts;
mod error;
mod executor;
pub mod metrics;
pub mod proposer;
mod record;
mod requests;
pub mod sampling;

pub use drafts::Drafts;
pub use error::ExecuteError;
pub use executor::{ModelExecutor, TARGET_GROUP};
pub use record::{Mode, PromptLogprobs, StageTimes, StepRecord};
pub use requests::{Registered, Requests};
