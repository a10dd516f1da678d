//! The step's three documents: the plan the scheduler writes, the view of the KV
//! cache it hands over with it, and the outcome that comes back.
//!
//! They are what is executed *and* what is logged: a trace serialises these very
//! objects.

use std::ops::Range;

use pagedraft_block_manager::{BlockCopy, BlockId, GroupId};
use serde::Serialize;

use crate::RequestKey;

/// Number of a step, from 0, increasing by one a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct StepId(pub u64);

/// What a plan row asks of the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Tokens of the known sequence (the prompt, or what a preempted request had) whose KV is missing.
    Prefill,
    /// The last token of the sequence alone.
    Decode,
    /// The last token of the sequence and up to `drafts_max` drafts behind it.
    Verify,
    /// A block of a diffusion model: positions `block`, the whole sequence recomputed when `full`.
    Denoise {
        /// Positions of the block.
        block: Range<u32>,
        /// Whether every position is recomputed, not the block's alone.
        full: bool,
    },
}

/// One request's work in a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PlanRow {
    /// Whose work.
    pub request: RequestKey,
    /// What kind.
    pub kind: Kind,
    /// Positions of known tokens to compute: `num_computed .. num_computed + num_new`, drafts not counted.
    pub tokens: Range<u32>,
    /// How many drafts may follow; slots are reserved for so many.
    pub drafts_max: u16,
    /// Whether the row ends at the end of the known sequence, so that a token is sampled.
    pub samples: bool,
}

/// What one step has to do, rows in scheduling order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StepPlan {
    /// Its number.
    pub id: StepId,
    /// The work.
    pub rows: Vec<PlanRow>,
    /// Blocks to copy before anything is written in this step (copy-on-write of forks).
    pub copies: Vec<BlockCopy>,
    /// Requests whose blocks were taken back while this plan was made.
    pub preempted: Vec<RequestKey>,
    /// Requests that ended (finished or aborted) since the plan before: executors drop what they keep for them.
    pub finished: Vec<RequestKey>,
}

/// The tokens and tables of the requests of a plan, borrowed from the scheduler.
pub trait KvView {
    /// Every known token of the request: prompt, then what was generated and accepted.
    fn tokens(&self, request: RequestKey) -> &[u32];
    /// The request's block table in a KV group: at least as long as the plan row's reserved slots need.
    fn block_table(&self, request: RequestKey, group: GroupId) -> &[BlockId];
    /// Tokens a block.
    fn block_size(&self) -> u32;
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token, the end-of-sequence token or a stop string.
    Stop,
    /// `max_tokens` or the model's maximum length.
    Length,
    /// Aborted by its owner.
    Abort,
}

/// What a plan row gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RowOutcome {
    /// Whose.
    pub request: RequestKey,
    /// Its tokens, as a range of [`StepOutcome::tokens`]; empty for a prefill chunk that ends short of the sequence.
    pub tokens: Range<u32>,
    /// Drafts scored.
    pub num_drafts: u16,
    /// Drafts accepted (causally: before the first miss).
    pub num_accepted: u16,
    /// Set between execute and apply when a stop string was found: the tokens range was already cut to what is kept.
    pub stop: bool,
}

/// What a step gave, rows in the plan's order.
#[derive(Clone, Debug, Default)]
pub struct StepOutcome<R> {
    /// The plan's number.
    pub id: StepId,
    /// One for each plan row, in order.
    pub rows: Vec<RowOutcome>,
    /// The emitted tokens of all rows, one after the other.
    pub tokens: Vec<u32>,
    /// What the executor writes on record: metadata, times, selections.
    pub record: R,
}

/// Runs plans. The engine's is in `pagedraft-spec-decode`; a simulator's needs no model.
pub trait Executor {
    /// What goes on record for a step.
    type Record: Serialize + Default;
    /// Why a step failed.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Runs `plan` and writes what came of it to `outcome`, whose buffers are reused from step to step.
    ///
    /// # Errors
    ///
    /// A fault of the device or the model. The plan was then not applied, and must not be.
    fn execute(
        &mut self,
        plan: &StepPlan,
        kv: &dyn KvView,
        outcome: &mut StepOutcome<Self::Record>,
    ) -> Result<(), Self::Error>;
}
