//! The step's three documents: the plan the scheduler writes, the view of the KV
//! cache it hands over with it, and the outcome that comes back.
//!
//! They are what is executed *and* what is logged: a trace serialises these very
//! objects.

use std::ops::Range;

use pagedraft_block_manager::{BlockCopy, BlockId, GroupId, KvIndex, Lengths};
use serde::Serialize;

use crate::{RequestKey, SlotCounts};

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
    /// A pass over the canvas of a diffusion model, which rewrites the block at positions `block` in place. A
    /// `full` pass computes every position of prompt and canvas, any other the block alone.
    Denoise {
        /// Positions of the block.
        block: Range<u32>,
        /// Whether every position is computed, not the block's alone.
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
    /// Known tokens to compute, drafts not counted, by their index among the tokens that reach the row's first segment.
    /// In segment 0, and in every segment of a request that drops no tokens, that index is the token's position.
    pub tokens: Range<u32>,
    /// The model's segments that the row runs through. A row that ends before the last segment waits there, and goes on
    /// in a later step. A row that goes on into a further segment takes all of its request's tokens that reach it.
    pub segments: Range<u16>,
    /// Whether it computes part of a prompt of which tokens are dropped on the way. A row behind a hit of such a prompt does not: what is
    /// kept is known by then, and its tokens run through all segments.
    pub thins: bool,
    /// How many drafts may follow; slots are reserved for so many.
    pub drafts_max: u16,
    /// Whether the row ends at the end of the known sequence, behind the last segment, so that a token is sampled.
    pub samples: bool,
}

/// What one step has to do, rows in scheduling order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StepPlan {
    /// Its number.
    pub id: StepId,
    /// The work.
    pub rows: Vec<PlanRow>,
    /// For each row and KV group the greatest number of slots that the request may have once the row has run: the
    /// blocks for them are reserved. 0 where the row leaves the group as it is.
    pub needs: SlotCounts,
    /// Blocks to copy before anything is written in this step (copy-on-write of forks).
    pub copies: Vec<BlockCopy>,
    /// Requests whose blocks were taken back while this plan was made.
    pub preempted: Vec<RequestKey>,
    /// Requests that ended (finished or aborted) since the plan before: executors drop what they keep for them.
    pub finished: Vec<RequestKey>,
}

impl StepPlan {
    /// Makes it an empty plan for a model of `groups` KV groups; the buffers are kept.
    pub(crate) fn begin(&mut self, id: StepId, groups: usize) {
        self.id = id;
        self.rows.clear();
        self.needs.begin(groups);
        self.copies.clear();
        self.preempted.clear();
        self.finished.clear();
    }
}

/// The tokens and tables of the requests of a plan, borrowed from the scheduler.
///
/// A request that does not exist has no tokens, no blocks and lengths of 0.
pub trait KvView {
    /// Every known token of the request: prompt, then what was generated and accepted.
    fn tokens(&self, request: RequestKey) -> &[u32];
    /// The request's block table in a KV group: at least as long as the slots that the plan row needs. Entries of
    /// blocks that were given back (they lie behind a sliding window) are [`BlockId::FREED`].
    fn block_table(&self, request: RequestKey, group: GroupId) -> &[BlockId];
    /// How much of the group was committed before this step: slots, and the positions they stand for.
    fn lengths(&self, request: RequestKey, group: GroupId) -> Lengths;
    /// How a token finds its slot in the group: by its position, or by an explicit list of the positions that are kept.
    fn index(&self, request: RequestKey, group: GroupId) -> KvIndex<'_>;
    /// How many KV groups there are.
    fn num_groups(&self) -> usize;
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
    /// Nothing could be computed for it: its row said so ([`Progress::Failed`]). Written as `abort`, since the
    /// protocols that carry the reason have no other word.
    #[serde(rename = "abort")]
    Failed,
}

/// What a row did to its request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// It computed the tokens of its plan row, and appended what it emitted.
    #[default]
    Append,
    /// It rewrote part of a canvas in place. The emitted tokens are those of the canvas that became final, in order.
    Canvas {
        /// Whether the next pass over this canvas has to be a full one. The first pass of each block always is.
        refresh: bool,
    },
    /// The request cannot go on, and ends here: its logits are not numbers, for example. The other rows are not
    /// touched by that. Who runs the plan says why on record.
    Failed,
    /// KV that the request needs is gone. It emitted nothing, and is preempted when the next step is planned, so that it is
    /// computed again.
    Lost,
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
    /// What the row did.
    pub progress: Progress,
}

impl RowOutcome {
    /// The outcome of a row that emits nothing yet.
    #[inline]
    #[must_use]
    pub fn of(request: RequestKey) -> Self {
        Self {
            request,
            tokens: 0..0,
            num_drafts: 0,
            num_accepted: 0,
            stop: false,
            progress: Progress::Append,
        }
    }
}

/// Which of a prompt's tokens a row kept in a KV group, where that is decided by what was computed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// Index of the plan row.
    pub row: u32,
    /// The group.
    pub group: GroupId,
    /// Their positions, ascending, as a range of [`StepOutcome::kept_positions`].
    pub positions: Range<u32>,
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
    /// For each row and KV group the slots that hold accepted tokens after the step. Without rows it says that every
    /// group took what its row computed and accepted, and that groups that lag took nothing.
    pub took: SlotCounts,
    /// The tokens that stay in groups in which not all do, of the rows that decided it in this step.
    pub kept: Vec<Kept>,
    /// Positions of [`kept`](Self::kept), one list after the other.
    pub kept_positions: Vec<u32>,
    /// What the executor writes on record: metadata, times, selections.
    pub record: R,
}

impl<R> StepOutcome<R> {
    /// Makes it the outcome of `plan` in which no row has emitted anything yet; buffers are kept, and the record.
    pub fn begin(&mut self, plan: &StepPlan) {
        self.id = plan.id;
        self.tokens.clear();
        self.rows.clear();
        self.rows.extend(plan.rows.iter().map(|row| RowOutcome::of(row.request)));
        self.took.begin(plan.needs.groups());
        self.kept.clear();
        self.kept_positions.clear();
    }
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
