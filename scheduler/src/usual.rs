//! The usual row of a running request: the request keeps all its tokens, and nobody has to go for its blocks. Nearly
//! every row of a step is such a row, and it is planned with one look at the request and one at its blocks.

use crate::queues::Visit;
use crate::segments::Budget;
use crate::{Kind, Phase, PlanRow, RequestKey, Scheduler, StepPlan};

impl Scheduler {
    /// Plans the next row of a running request, where it is a usual one, and gives its number of drafts, for which
    /// nothing is reserved in a proposer's own KV yet. `None` where it is another row, and nothing is changed: it has to
    /// be planned the long way. That way gives the same row to a usual one.
    #[inline]
    pub(crate) fn plan_usual_row(
        &mut self,
        key: RequestKey,
        plan: &mut StepPlan,
        budget: &mut Budget,
        visit: &Visit,
    ) -> Option<u16> {
        let Self { requests, blocks, segments, config, control, .. } = self;
        let request = requests.get_mut(key.0)?;
        if request.phase != Phase::Running || !request.keeps_all() {
            return None;
        }
        // A token for each of those behind.
        let left = budget.least().saturating_sub(visit.behind_rows());
        let (start, len) = (request.computed, request.len());
        let new = (len - start).min(left).min(config.prefill_chunk.unwrap_or(u32::MAX));
        if new == 0 {
            return None;
        }
        let decodes = request.is_decoding();
        let mut drafts = 0;
        if decodes && config.num_speculative_tokens > 0 {
            // One more token than drafts comes out of the row at most.
            let most = (request.most_emitted() - 1).min(left - new);
            let wanted = control.as_ref().map_or(u16::MAX, |control| control.wanted(key));
            drafts = config.num_speculative_tokens.min(wanted).min(u16::try_from(most).unwrap_or(u16::MAX));
        }
        let end = start + new;
        let slots = end + u32::from(drafts);
        let there = blocks.has_slots(request.sequence, slots);
        // Drafts must leave the blocks that those behind lack.
        if !there && drafts > 0 {
            return None;
        }
        plan.needs.push_each(segments.in_target(), slots);
        if !there && blocks.reserve(request.sequence, plan.needs.row(plan.rows.len())) != Ok(Some(())) {
            plan.needs.remove(plan.rows.len());
            return None;
        }
        request.starved = false;
        budget.take_in_all(new + u32::from(drafts));
        let kind = match (decodes, drafts) {
            (false, _) => Kind::Prefill,
            (true, 0) => Kind::Decode,
            (true, _) => Kind::Verify,
        };
        let segments = 0..segments.count();
        let samples = end == len;
        plan.rows.push(PlanRow {
            thins: false,
            request: key,
            kind,
            tokens: start..end,
            segments,
            drafts_max: drafts,
            samples,
        });
        Some(drafts)
    }

    /// Whether a running request might lack blocks for its next row without drafts, whatever is left of the budget by
    /// then. It lacks none where the row is a usual one.
    #[inline]
    pub(crate) fn may_lack(&self, key: RequestKey) -> bool {
        let Some(request) = self.requests.get(key.0) else {
            return false;
        };
        let chunk = self.config.prefill_chunk.unwrap_or(u32::MAX);
        let new = (request.len() - request.computed).min(self.config.max_num_batched_tokens).min(chunk);
        !request.keeps_all() || !self.blocks.has_slots(request.sequence, request.computed + new)
    }
}
