//! Why a step could not be executed.

use pagedraft_attention::AttentionError;
use pagedraft_model::ModelError;
use pagedraft_scheduler::RequestKey;

use crate::sampling::SamplingError;

/// Why a step failed. Its plan was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The model or its device failed.
    #[error(transparent)]
    Model(ModelError),
    /// The plan's block tables and lengths do not fit each other.
    #[error("the step's metadata is inconsistent: {0}")]
    Metadata(#[from] AttentionError),
    /// No token can be drawn from the logits of a row.
    #[error("request {request}: its logits cannot be sampled: {source}")]
    Sampling {
        /// The request that the row belongs to.
        request: RequestKey,
        /// The reason.
        source: SamplingError,
    },
    /// The plan has a row of a request that was never registered.
    #[error(
        "request {request:?} is in the plan, but has no sampling parameters: register it before it is scheduled"
    )]
    Unregistered {
        /// The request.
        request: RequestKey,
    },
    /// The plan has a row of a kind that this executor does not run.
    #[error("request {request:?}: this executor runs no {kind} rows")]
    Unsupported {
        /// The request.
        request: RequestKey,
        /// The kind of row.
        kind: String,
    },
    /// The plan contradicts what the KV view says of a request.
    #[error("request {request:?}: the plan is inconsistent: {what}")]
    Plan {
        /// The request.
        request: RequestKey,
        /// The contradiction.
        what: &'static str,
    },
    /// A replayed step and its eager shadow differ.
    #[error("acceptance canary: {0}")]
    Canary(crate::canary::CanaryAlarm),
}

impl ExecuteError {
    /// Whether the step failed only because it was interrupted.
    #[must_use]
    pub fn is_interrupt(&self) -> bool {
        matches!(self, Self::Model(ModelError::Interrupted))
    }
}
