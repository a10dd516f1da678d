//! Proposers: what may come next, before the target has said so.
//!
//! A proposer sees the plan's rows that may have drafts and gives each up to as many as the plan reserved slots for; none
//! is an answer too. Under coupled acceptance nothing that it says can change a token of the output, only how many come
//! out of a step.
//!
//! # What can be added
//!
//! Heads on the target (MTP, EAGLE) need the target's hidden states: [`Verified`] is where the executor hands over what a
//! verify step left behind. Trees need a parent for each draft in [`Drafts`] and a mask a row.

mod draft_log;
mod draft_model;
mod draft_pass;
mod error;
mod ngram;
mod synthetic;

pub use draft_model::{DraftModel, DraftOptions};
pub use draft_pass::DraftCounts;
pub use error::ProposerError;
pub use ngram::NgramProposer;
pub use synthetic::SyntheticProposer;

use std::time::Duration;

use pagedraft_block_manager::BlockId;
use pagedraft_model::{ModelError, RunCounts};
use pagedraft_scheduler::{CostCurve, KvView, RequestKey, SlotCounts, StepPlan};
use serde::Serialize;

use crate::drafts::Drafts;
use crate::error::ExecuteError;
use crate::requests::{Registered, Requests};

/// A row that may have drafts.
#[derive(Clone, Copy, Debug)]
pub struct ProposeRow<'a> {
    /// Whose.
    pub request: RequestKey,
    /// Every known token: prompt, then output. The first draft is the token behind the last of them.
    pub tokens: &'a [u32],
    /// How the request is sampled, and where its prompt ends.
    pub registered: &'a Registered,
    /// The most drafts it may have; at least 1.
    pub max: usize,
}

/// The rows of a step that may have drafts.
pub struct Proposing<'a> {
    /// The plan.
    pub plan: &'a StepPlan,
    /// Tokens of its requests.
    pub kv: &'a dyn KvView,
    /// Their parameters.
    pub requests: &'a Requests,
    /// Plan rows that may have drafts, ascending.
    pub rows: &'a [u32],
}

impl<'a> Proposing<'a> {
    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Row `i` of them.
    ///
    /// # Errors
    ///
    /// A request that was never registered, or a row that is not there.
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

/// What became of the drafts of a step.
pub struct Verified<'a> {
    /// Accepted drafts of each row, in the order of [`Proposing::rows`].
    pub accepted: &'a [u16],
    /// Plan rows that had drafts, in the same order.
    pub rows: &'a [u32],
    /// By plan row and KV group the slots that hold accepted tokens: a proposer with KV of its own says so in its group.
    pub took: &'a mut SlotCounts,
}

/// What a step wrote into a KV group of the proposer's own, a row a sequence: the inputs that its forward passes were given,
/// put together by sequence.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct GroupStep {
    /// For each row the plan row it belongs to.
    pub plan_rows: Vec<u32>,
    /// Tokens whose KV was written, row by row: those it lacked, then drafts.
    pub input_tokens: Vec<u32>,
    /// Their positions.
    pub input_positions: Vec<u32>,
    /// Where each row's tokens start, and the end of the last.
    pub query_start_loc: Vec<u32>,
    /// Slot of each token in the group.
    pub slot_mapping: Vec<i64>,
    /// Tokens of each row in the group after the step's forward passes.
    pub seq_lens: Vec<u32>,
    /// Of those, the ones there before.
    pub context_lens: Vec<u32>,
    /// Blocks of each row in the group's own pool.
    pub block_tables: Vec<Vec<BlockId>>,
    /// Always absent: an index in the group is the position.
    pub kv_index: Option<Vec<i64>>,
}

/// Proposes drafts.
pub trait Proposer {
    /// What reports call it: `draft`, `ngram`, `synthetic`.
    fn name(&self) -> &'static str;

    /// Gives rows their drafts: `drafts` has begun with one row for each of `step`'s, and row i takes up to
    /// [`ProposeRow::max`].
    ///
    /// # Errors
    ///
    /// A fault of a model or its device. A proposer that merely has nothing to say (no room, no match) leaves the row empty.
    fn propose(&mut self, step: &Proposing<'_>, drafts: &mut Drafts) -> Result<(), ExecuteError>;

    /// Hears what became of the drafts it proposed last, before anything else is asked of it.
    fn verified(&mut self, verified: &mut Verified<'_>) {
        let _ = verified;
    }

    /// Forgets a request that ended, or that was preempted (it may come back).
    fn forget(&mut self, request: RequestKey) {
        let _ = request;
    }

    /// What the last step wrote into a KV group of its own, if it has one and [`keep_record`](Self::keep_record) said so.
    fn record(&self) -> Option<&GroupStep> {
        None
    }

    /// Whether the distributions that drafts are drawn from are wanted with them; drafts are then drawn by noise of their
    /// own, not by the target's. Proposers that have none do nothing.
    fn keep_probabilities(&mut self, keep: bool) {
        let _ = keep;
    }

    /// Whether its own steps, if it has any, are all eager.
    fn set_enforce_eager(&mut self, yes: bool) {
        let _ = yes;
    }

    /// Whether its own steps, if it has any, give results that are a function of the request.
    ///
    /// # Errors
    ///
    /// Those of [`Runner::set_deterministic`](pagedraft_model::Runner::set_deterministic).
    fn set_deterministic(&mut self, yes: bool) -> Result<(), ModelError> {
        let _ = yes;
        Ok(())
    }

    /// Has its KV cache and buffers, if it has any, backed by memory now, so that no step waits for it.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    fn touch(&mut self) -> Result<(), ModelError> {
        Ok(())
    }

    /// How its own steps ran, if it has any.
    fn counts(&mut self) -> Option<&RunCounts> {
        None
    }

    /// Counts its own steps from 0 again.
    fn reset_counts(&mut self) {}

    /// What a forward pass of its own costs, by its rows up to `most`, measured in about `budget`; nothing where it has none.
    ///
    /// # Errors
    ///
    /// A fault of its model or device.
    fn measure(&mut self, most: u32, budget: Duration) -> Result<CostCurve, ExecuteError> {
        let _ = (most, budget);
        Ok(CostCurve::default())
    }

    /// Whether [`record`](Self::record) is wanted.
    fn keep_record(&mut self, keep: bool) {
        let _ = keep;
    }
}
