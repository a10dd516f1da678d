//! Why a step could not be executed.

use pagedraft_attention::AttentionError;
use pagedraft_model::ModelError;
use pagedraft_scheduler::RequestKey;

use crate::sampling::SamplingError;

/// A step that failed; its plan was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// The model or its device.
    #[error(transparent)]
    Model(ModelError),
    /// The plan's tables and lengths do not make metadata.
    #[error("the step's metadata is inconsistent: {0}")]
    Metadata(#[from] AttentionError),
    /// The blocks of a draft model's KV, misused: a fault of this crate.
    #[error("the draft model's KV blocks: {0}")]
    DraftKv(#[from] pagedraft_block_manager::Error),
    /// The logits of a row cannot be sampled.
    #[error("request {request}: its logits cannot be sampled: {source}")]
    Sampling {
        /// Whose.
        request: RequestKey,
        /// Why not.
        source: SamplingError,
    },
    /// A request that was never registered.
    #[error(
        "request {request:?} is in the plan, but has no sampling parameters: register it before it is scheduled"
    )]
    Unregistered {
        /// Which.
        request: RequestKey,
    },
    /// A kind of row that this executor does not run.
    #[error("request {request:?}: this executor runs no {kind} rows")]
    Unsupported {
        /// Which.
        request: RequestKey,
        /// The kind.
        kind: String,
    },
    /// A plan that does not fit what the view says.
    #[error("request {request:?}: the plan is inconsistent: {what}")]
    Plan {
        /// Which.
        request: RequestKey,
        /// How.
        what: &'static str,
    },
    /// A replayed step and its eager shadow do not agree.
    #[error("acceptance canary: {0}")]
    Canary(crate::canary::CanaryAlarm),
}
