//! What a step did for each of its requests, for those who measure.

use pagedraft_block_manager::{BlockId, GroupId};
use pagedraft_scheduler::{Applied, Kind, KvView, PlanRow, Scheduler};

use super::request::RequestId;

/// What a step did for one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRow {
    /// The sample.
    pub id: RequestId,
    /// Whether it computed prompt tokens, or tokens whose KV a preemption had lost.
    pub prefill: bool,
    /// The number of tokens whose KV the row read or wrote, with its own tokens and drafts.
    pub context: u32,
    /// The number of tokens emitted and kept; 0 for a piece of a prompt.
    pub new_tokens: u32,
    /// The number of drafts scored.
    pub num_drafts: u16,
    /// The number of drafts accepted.
    pub num_accepted: u16,
    /// The number of prompt tokens whose KV was found in the prefix cache when the request was first
    /// admitted.
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

    /// Adds the result of the row.
    pub(super) fn apply(&mut self, applied: &Applied) {
        self.context = self.context.saturating_add(u32::from(applied.num_drafts));
        self.new_tokens = applied.tokens.len() as u32;
        self.num_drafts = applied.num_drafts;
        self.num_accepted = applied.num_accepted;
    }
}

/// The blocks of the first KV group that a request of a plan holds, in the order of its table.
pub(super) fn table<'a>(scheduler: &'a Scheduler, row: &PlanRow) -> &'a [BlockId] {
    scheduler.block_table(row.request, GroupId::default())
}
