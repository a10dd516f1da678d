//! What a step costs: measured by `pagedraft bench calibrate`, or given by hand.

use pagedraft_scheduler::CostCurve;
use serde::{Deserialize, Serialize};

/// What a step has to do, as far as its cost depends on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepShape {
    /// Requests in the step.
    pub plan_rows: u32,
    /// Rows of the attention call.
    pub metadata_rows: u32,
    /// Query tokens, drafts included.
    pub token_rows: u32,
    /// Token rows whose logits are computed.
    pub logit_rows: u32,
    /// Tokens of KV read, each row of the attention call once: the sum of its contexts.
    pub context_reads: u64,
    /// Pairs of a query token and a token before it: the sum over query tokens of their contexts.
    pub context_pairs: u64,
    /// Whether a graph is replayed.
    pub replayed: bool,
    /// Requests that are drafted for, pass by pass; empty without a proposer.
    pub draft_passes: Vec<u32>,
    /// Token rows of the first of these passes, lagging tokens included.
    pub draft_catch_up: u32,
}

/// Microseconds of a step, by stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepCost {
    /// Making the plan.
    pub schedule: f64,
    /// Building the metadata.
    pub metadata: f64,
    /// Proposing drafts.
    pub propose: f64,
    /// The forward pass.
    pub execute: f64,
    /// Sampling, and acceptance.
    pub sample: f64,
    /// The rest: bookkeeping, streaming, tracing.
    pub other: f64,
}

impl StepCost {
    /// All of it.
    #[must_use]
    pub fn total_us(&self) -> f64 {
        self.schedule + self.metadata + self.propose + self.execute + self.sample + self.other
    }
}

/// What a proposer costs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DraftCost {
    /// A pass, by its token rows; without points for a proposer that has no model.
    #[serde(default)]
    pub pass: CostCurve,
    /// Microseconds of proposing at all, once a step that has drafts.
    #[serde(default)]
    pub us_per_step: f64,
    /// Microseconds a drafted request.
    #[serde(default)]
    pub us_per_row: f64,
    /// Whether it keeps KV of its own, so that a request it did not draft for has to be caught up with.
    #[serde(default)]
    pub keeps_kv: bool,
}

/// How drafts fare.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Acceptance {
    /// The probability that the draft at a place is accepted, if those before it were; the last goes on for ever.
    pub by_position: Vec<f64>,
    /// The share of decode rows that are given drafts at all.
    pub given: f64,
}

/// The engine does nothing for a while: a garbage collection, a neighbour, a suspended process.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Freeze {
    /// Seconds since the run began: the step that would begin then, or runs then, waits.
    pub at_s: f64,
    /// For so long.
    pub for_s: f64,
}

/// What steps cost on some hardware.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CostModel {
    /// What it is of.
    pub name: String,
    /// The forward pass and sampling, by token rows.
    pub target: CostCurve,
    /// Microseconds a step, whatever is in it.
    #[serde(default)]
    pub us_per_step: f64,
    /// Microseconds a request in the step: scheduling, metadata, bookkeeping.
    #[serde(default)]
    pub us_per_row: f64,
    /// Microseconds a token row whose logits are computed.
    #[serde(default)]
    pub us_per_logit_row: f64,
    /// Proposers, by name: `draft`, `ngram`, `synthetic`.
    #[serde(default)]
    pub proposers: std::collections::BTreeMap<String, DraftCost>,
    /// How their drafts fared when it was measured, by the same names.
    #[serde(default)]
    pub acceptance: std::collections::BTreeMap<String, Acceptance>,
    /// When the engine does nothing.
    #[serde(default)]
    pub freezes: Vec<Freeze>,
}
