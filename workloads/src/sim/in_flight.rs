use pagedraft_block_manager::GroupId;
use pagedraft_scheduler::{FinishReason, KvView, PlanRow, Scheduler};

use super::drafting::Drafted;
use super::draws::Draws;
use crate::replay::{EndedRequest, Ticket};

/// A request of an engine.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    pub(super) ticket: Ticket,
    pub(super) index: u64,
    pub(super) draws: Draws,
    pub(super) prompt_len: u32,
    /// The number of known tokens.
    pub(super) len: u32,
    /// The number of tokens at which it ends.
    pub(super) max_len: u32,
    pub(super) begun: bool,
    pub(super) cached: u32,
    pub(super) preemptions: u32,
    pub(super) blocks_held: u32,
    pub(super) prefix_blocks: Vec<u32>,
    pub(super) drafted: Drafted,
    /// The number of tokens that it still has to compute or generate.
    pub(super) owes: u32,
}

impl InFlight {
    /// The number of tokens left to compute or generate once `computed` tokens are computed.
    pub(super) fn left(&self, computed: u32) -> u32 {
        self.prompt_len.saturating_sub(computed) + self.max_len.saturating_sub(self.len)
    }

    /// Takes note of its first row.
    pub(super) fn begin(&mut self, row: &PlanRow, scheduler: &Scheduler) {
        self.begun = true;
        self.cached = row.tokens.start;
        self.drafted.admitted(self.cached);
        if self.cached > 0 {
            let blocks = (self.cached / scheduler.block_size()) as usize;
            let table = scheduler.block_table(row.request, GroupId(0));
            self.prefix_blocks.extend(table.iter().take(blocks).map(|block| block.0));
        }
    }

    pub(super) fn end(&mut self, reason: FinishReason) -> EndedRequest {
        EndedRequest {
            ticket: self.ticket,
            reason,
            error: None,
            cached_tokens: self.cached,
            preemptions: self.preemptions,
            blocks_held: self.blocks_held,
            prefix_blocks: std::mem::take(&mut self.prefix_blocks),
            output: None,
        }
    }
}
