//! Proposers guess what comes next before the target has computed it.
//!
//! A proposer sees the plan rows that may have drafts. It gives each of them as many drafts as the plan reserved slots
//! for, or fewer, or none. Under coupled acceptance it cannot change any token of the output, only how many tokens a
//! step gives.
//!
//! # What can be added
//!
//! Heads on the target (MTP, EAGLE) need the target's hidden states: the executor can hand over in [`Verified`] what a
//! verify step left behind. Trees need a parent for each draft in [`Drafts`], and a mask for each row.

mod continuation;
mod draft_log;
mod draft_model;
mod draft_pass;
mod error;
mod matches;
mod ngram;
mod past_outputs;
mod suffix;
mod synthetic;

pub use draft_model::{DraftModel, DraftOptions};
pub use draft_pass::DraftCounts;
pub use error::ProposerError;
pub use ngram::NgramProposer;
pub use suffix::SuffixProposer;
pub use synthetic::SyntheticProposer;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pagedraft_block_manager::BlockId;
use pagedraft_model::{ModelError, RunCounts};
use pagedraft_scheduler::{CostCurve, KvView, RequestKey, SlotCounts, StepPlan};
use serde::Serialize;

use crate::drafts::Drafts;
use crate::error::ExecuteError;
use crate::requests::{Registered, Requests};

/// A plan row that may have drafts.
#[derive(Clone, Copy, Debug)]
pub struct ProposeRow<'a> {
    /// The request of the row.
    pub request: RequestKey,
    /// All known tokens: the prompt, then the output. The first draft comes after the last of them.
    pub tokens: &'a [u32],
    /// How the request is sampled, and where its prompt ends.
    pub registered: &'a Registered,
    /// The greatest number of drafts it may have, at least 1.
    pub max: usize,
}

/// The plan rows of a step that may have drafts.
pub struct Proposing<'a> {
    /// The plan.
    pub plan: &'a StepPlan,
    /// A view of the tokens of its requests.
    pub kv: &'a dyn KvView,
    /// What was registered of its requests.
    pub requests: &'a Requests,
    /// The indices of the plan rows that may have drafts, in ascending order.
    pub rows: &'a [u32],
}

impl<'a> Proposing<'a> {
    /// The number of rows that may have drafts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether no row may have drafts.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The row with the index `i` among them.
    ///
    /// # Errors
    ///
    /// The row does not exist, or its request was never registered.
    pub fn row(&self, i: usize) -> Result<ProposeRow<'a>, ExecuteError> {
        let Some(row) = self.rows.get(i).and_then(|&r| self.plan.rows.get(r as usize)) else {
            return Err(ExecuteError::Plan { request: RequestKey::default(), what: "it has no such row" });
        };
        Ok(ProposeRow {
            request: row.request,
            tokens: self.kv.tokens(row.request),
            registered: self.requests.get(row.request)?,
            max: usize::from(row.drafts_max),
        })
    }
}

/// What the target decided about the drafts of a step.
pub struct Verified<'a> {
    /// For each row, in the order of [`Proposing::rows`], the number of its drafts that were accepted.
    pub accepted: &'a [u16],
    /// The plan rows that could have drafts, in the same order.
    pub rows: &'a [u32],
    /// For each plan row and KV group, the slots that hold accepted tokens. A proposer with KV of its own
    /// writes those of its group.
    pub took: &'a mut SlotCounts,
}

/// What a step wrote into a proposer's own KV group, one row for each sequence: the inputs of its forward passes, put
/// together by sequence.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GroupStep {
    /// For each row, the index of the plan row it belongs to.
    pub plan_rows: Vec<u32>,
    /// The tokens whose KV was written, row by row: first those that the row lacked, then drafts.
    pub input_tokens: Vec<u32>,
    /// The positions of these tokens.
    pub input_positions: Vec<u32>,
    /// For each row, the index of its first token, and at the end the number of tokens.
    pub query_start_loc: Vec<u32>,
    /// The slot of each token in the group.
    pub slot_mapping: Vec<i64>,
    /// For each row, the number of tokens in the group after the step's forward passes.
    pub seq_lens: Vec<u32>,
    /// For each row, the number of tokens in the group before the step.
    pub context_lens: Vec<u32>,
    /// The blocks of each row in the group's own pool.
    pub block_tables: Vec<Vec<BlockId>>,
    /// Always absent, because the index of a token in the group is its position.
    pub kv_index: Option<Vec<i64>>,
}

/// Proposes drafts for the rows of a step.
pub trait Proposer {
    /// The name that reports use: `draft`, `ngram`, `suffix` or `synthetic`.
    fn name(&self) -> &'static str;

    /// Gives the rows of `step` their drafts. `drafts` has one row for each of them, and row i takes up to
    /// [`ProposeRow::max`] drafts.
    ///
    /// # Errors
    ///
    /// A model or its device failed. A proposer that merely has no draft to give (no room, no match) leaves the row
    /// empty and returns no error.
    fn propose(&mut self, step: &Proposing<'_>, drafts: &mut Drafts) -> Result<(), ExecuteError>;

    /// Hears what became of the drafts it proposed last, before anything else is asked of it.
    fn verified(&mut self, verified: &mut Verified<'_>) {
        let _ = verified;
    }

    /// Forgets a request that ended or was preempted. A preempted request may come back.
    fn forget(&mut self, request: RequestKey) {
        let _ = request;
    }

    /// What the last step wrote into its own KV group, if it has one and [`keep_record`](Self::keep_record) asked for
    /// it.
    fn record(&self) -> Option<&GroupStep> {
        None
    }

    /// Sets whether the distributions that drafts are drawn from are given with them. Drafts are then drawn with noise
    /// of their own, not the target's. A proposer without distributions ignores this.
    fn keep_probabilities(&mut self, keep: bool) {
        let _ = keep;
    }

    /// Sets whether all its own forward passes, if it has any, run eagerly.
    fn set_enforce_eager(&mut self, yes: bool) {
        let _ = yes;
    }

    /// Sets whether the results of its own forward passes, if it has any, are a function of the request alone.
    ///
    /// # Errors
    ///
    /// The errors of [`Runner::set_deterministic`](pagedraft_model::Runner::set_deterministic).
    fn set_deterministic(&mut self, yes: bool) -> Result<(), ModelError> {
        let _ = yes;
        Ok(())
    }

    /// Has its own forward passes, if it has any, end early while `flag` is set: see
    /// [`Device::interrupt_on`](pagedraft_model::Device::interrupt_on).
    fn interrupt_on(&mut self, flag: &Arc<AtomicBool>) {
        let _ = flag;
    }

    /// Backs its KV cache and buffers, if it has any, with memory now, so that no step waits for memory.
    ///
    /// # Errors
    ///
    /// There is not enough memory.
    fn touch(&mut self) -> Result<(), ModelError> {
        Ok(())
    }

    /// Counts of how its own forward passes ran, if it has any.
    fn counts(&mut self) -> Option<&RunCounts> {
        None
    }

    /// Sets these counts to 0.
    fn reset_counts(&mut self) {}

    /// Measures what a forward pass of its own costs, by its number of rows up to `most`, within about `budget`. A
    /// proposer without forward passes returns an empty curve.
    ///
    /// # Errors
    ///
    /// Its model or device failed.
    fn measure(&mut self, most: u32, budget: Duration) -> Result<CostCurve, ExecuteError> {
        let _ = (most, budget);
        Ok(CostCurve::default())
    }

    /// Sets whether [`record`](Self::record) is wanted.
    fn keep_record(&mut self, keep: bool) {
        let _ = keep;
    }
}
