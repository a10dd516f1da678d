//! Which blocks a step published, by the tables it was executed from.

use std::ops::Range;

use pagedraft_attention::metadata::AttentionMetadata;
use pagedraft_block_manager::BlockId;
use pagedraft_scheduler::{Applied, StepPlan};

/// The blocks that each plan row of a step published to the prefix cache. Its buffers live from step to step.
///
/// [`Applied::published`] has places in the request's table, which a request that ended with the step has no more; the
/// step's metadata has it still.
#[derive(Debug, Default)]
pub struct PublishedBlocks {
    blocks: Vec<BlockId>,
    /// For each plan row its part of `blocks`.
    rows: Vec<Range<usize>>,
    /// For each plan row the metadata row with most blocks.
    widest: Vec<Option<u32>>,
}

impl PublishedBlocks {
    /// Takes note of a step that was applied: `plan_rows` has the plan row of each row of `metadata`, which must have its
    /// tables whole ([`TableDelta`](super::TableDelta) leaves some out).
    pub fn note(
        &mut self,
        plan: &StepPlan,
        applied: &[Applied],
        plan_rows: &[u32],
        metadata: &AttentionMetadata,
    ) {
        self.blocks.clear();
        self.rows.clear();
        self.rows.resize(plan.rows.len(), 0..0);
        if applied.iter().all(|one| one.published.is_empty()) {
            return;
        }
        let tables = &metadata.block_tables;
        self.widest.clear();
        self.widest.resize(plan.rows.len(), None);
        // A plan row that was expanded has a metadata row a token, each with the blocks up to it.
        let blocks = |m: u32| tables.get(m as usize).map_or(0, <[BlockId]>::len);
        for (m, &owner) in (0u32..).zip(plan_rows) {
            if let Some(widest) = self.widest.get_mut(owner as usize)
                && widest.is_none_or(|known| blocks(m) > blocks(known))
            {
                *widest = Some(m);
            }
        }
        let mut applied = applied.iter().peekable();
        for (i, row) in plan.rows.iter().enumerate() {
            // A row without an entry is one whose request was aborted while the step ran.
            let Some(one) = applied.next_if(|one| one.request == row.request) else { continue };
            let table = self.widest[i].and_then(|m| tables.get(m as usize)).unwrap_or_default();
            let places = one.published.start as usize..one.published.end as usize;
            let found = table.get(places);
            debug_assert!(found.is_some(), "a block published behind the step's own");
            let start = self.blocks.len();
            self.blocks.extend_from_slice(found.unwrap_or_default());
            self.rows[i] = start..self.blocks.len();
        }
    }

    /// What plan row `row` published; nothing for a row that is not there.
    #[must_use]
    pub fn of_row(&self, row: usize) -> &[BlockId] {
        self.rows.get(row).and_then(|range| self.blocks.get(range.clone())).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use pagedraft_attention::{MaskKind, MetadataBuilder};
    use pagedraft_scheduler::fake::{FakeExecutor, Script};
    use pagedraft_scheduler::{Executor, KvView, RequestSpec, Scheduler, SchedulerConfig, StepOutcome};

    use super::*;

    /// Runs one request of 40 prompt tokens to its end, all drafts accepted; the blocks that each step published.
    fn published(expand: bool, caching: bool) -> Vec<Vec<u32>> {
        let config = SchedulerConfig {
            num_speculative_tokens: 4,
            enable_prefix_caching: caching,
            ..SchedulerConfig::default()
        };
        let mut scheduler = Scheduler::new(config).unwrap();
        let key = scheduler.submit(RequestSpec::new((0..40).collect(), 9)).unwrap();
        let mut fake = FakeExecutor::new();
        fake.insert(key, 40, Script { accepted: vec![9], ..Script::default() });
        let (mut plan, mut outcome) = (StepPlan::default(), StepOutcome::default());
        let (mut applied, mut blocks) = (Vec::new(), PublishedBlocks::default());
        let mut steps = Vec::new();
        while scheduler.has_unfinished() {
            scheduler.step(&mut plan).unwrap();
            let (mut builder, mut plan_rows) = (MetadataBuilder::new(16).unwrap(), Vec::new());
            for (i, row) in (0u32..).zip(&plan.rows) {
                let table = scheduler.block_table(row.request, Default::default());
                let queries = row.tokens.len() as u32 + u32::from(row.drafts_max);
                let (rows, each) = if expand { (queries, 1) } else { (1, queries) };
                for r in 0..rows {
                    builder.push_row(row.tokens.start + r, each, table, MaskKind::Causal).unwrap();
                    plan_rows.push(i);
                }
            }
            let metadata = builder.finish();
            fake.execute(&plan, &scheduler, &mut outcome).unwrap();
            scheduler.apply(&outcome, &mut applied).unwrap();
            blocks.note(&plan, &applied, &plan_rows, metadata);
            steps.push(blocks.of_row(0).iter().map(|block| block.0).collect());
            assert_eq!(blocks.of_row(9), []);
        }
        steps
    }

    #[test]
    fn blocks_are_named_in_the_step_that_filled_them_though_their_request_ended_with_it() {
        for expand in [false, true] {
            let steps = published(expand, true);
            assert_eq!(steps, [vec![0, 1], vec![], vec![2]], "expand {expand}");
        }
    }

    #[test]
    fn nothing_is_published_without_caching() {
        assert!(published(false, false).iter().all(Vec::is_empty));
    }
}
