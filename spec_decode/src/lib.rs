//! The executor of a step: drafts, metadata, forward pass, verification.
//!
//! [`ModelExecutor`] implements the scheduler's [`Executor`](pagedraft_scheduler::Executor) on a model. A [`proposer`] gives
//! rows their drafts, a [`Scorer`] writes them into the metadata, [`acceptance`] decides which of them stand. Plain
//! decoding is the case of no drafts.
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
pub mod calibrate;
pub mod canary;
mod drafts;
mod error;
mod executor;
pub mod metrics;
pub mod proposer;
mod record;
mod requests;
mod sampled;
pub mod sampling;
mod scorer;
mod shadow;

pub use drafts::Drafts;
pub use error::ExecuteError;
pub use executor::{ModelExecutor, ProposerId, TARGET_GROUP};
pub use record::{PromptLogprobs, StageTimes, StepRecord};
pub use requests::{Registered, Requests};
pub use scorer::Scorer;
pub use shadow::Shadow;
