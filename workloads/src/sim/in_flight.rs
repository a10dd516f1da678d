use std::ops::Range;

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
    /// How many tokens of the prompt go on behind each cut of the model; empty if all of them do.
    pub(super) kept: Vec<u32>,
    /// Whether their tokens are numbered anew behind each cut.
    pub(super) compact: bool,
    /// Their positions, from the first cut on until the prompt is computed.
    pub(super) positions: Vec<Vec<u32>>,
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

    /// Whether the row computes part of a prompt that loses tokens on its way.
    pub(super) fn thins(&self, row: &PlanRow) -> bool {
        !self.kept.is_empty() && row.thins
    }

    /// The known tokens of a row that run through a segment, by their index among the tokens that the segment holds of the request.
    #[inline]
    pub(super) fn span(&self, row: &PlanRow, segment: u16) -> Range<u32> {
        let kept = usize::from(segment).checked_sub(1).and_then(|cut| self.kept.get(cut));
        match kept {
            Some(_) if self.thins(row) && segment == row.segments.start => row.tokens.clone(),
            Some(kept) if self.thins(row) => 0..kept + self.len - self.prompt_len,
            Some(kept) => {
                let index = |position: u32| kept + position - self.prompt_len;
                index(row.tokens.start)..index(row.tokens.end)
            }
            None => row.tokens.clone(),
        }
    }

    /// The position of token `index` of those that reach a segment while the prompt is computed.
    pub(super) fn position(&self, segment: u16, index: u32) -> u32 {
        match usize::from(segment).checked_sub(1).and_then(|cut| self.positions.get(cut)) {
            Some(kept) => match kept.get(index as usize) {
                Some(&position) => position,
                None => self.prompt_len + (index - kept.len() as u32),
            },
            None => index,
        }
    }

    /// How many of its tokens are computed once the row has run and this many drafts are accepted. Tokens of a prompt count when they
    /// have passed the first segment.
    pub(super) fn computed_by(&self, row: &PlanRow, accepted: u16) -> u32 {
        let behind_a_cut = self.thins(row) && row.segments.start > 0;
        if behind_a_cut { self.len } else { row.tokens.end + u32::from(accepted) }
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
