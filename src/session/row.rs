//! What a step was to each of its requests, for those who measure.

use pagedraft_block_manager::{BlockId, GroupId};
use pagedraft_scheduler::{Applied, Kind, KvView, PlanRow, Scheduler};

use super::request::RequestId;

/// What a step gave one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRow {
    /// Whose.
    pub id: RequestId,
    /// Whether it computed tokens of the prompt, or such as a preemption had lost.
    pub prefill: bool,
    /// Tokens of KV that the row read or wrote, its own and its drafts' included.
    pub context: u32,
    /// Tokens emitted and kept: 0 for a piece of a prompt.
    pub new_tokens: u32,
    /// Drafts scored.
    pub num_drafts: u16,
    /// Drafts accepted.
    pub num_accepted: u16,
    /// Prompt tokens whose KV was there already when the request was first admitted.
    pub num_cached_tokens: u32,
}

impl StepRow {
    /// The row as it was planned.
    pub(super) fn planned(id: RequestId, row: &PlanRow, num_cached_tokens: u32) -> Self {
        Self {
            id,
            prefill: row.kind == Kind::Prefill,
            context: row.tokens.end,
            new_tokens: 0,
            num_drafts: 0,
            num_accepted: 0,
            num_cached_tokens,
        }
    }

    /// What came of it.
    pub(super) fn apply(&mut self, applied: &Applied) {
        self.context = self.context.saturating_add(u32::from(applied.num_drafts));
        self.new_tokens = applied.tokens.len() as u32;
        self.num_drafts = applied.num_drafts;
        self.num_accepted = applied.num_accepted;
    }
}

/// The blocks of the first group that a request of a plan holds, in the order of its table.
pub(super) fn table<'a>(scheduler: &'a Scheduler, row: &PlanRow) -> &'a [BlockId] {
    scheduler.block_table(row.request, GroupId::default())
}
