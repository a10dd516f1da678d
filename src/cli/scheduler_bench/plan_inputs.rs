//! Writes the metadata of a plan all of whose drafts exist, as an executor with the MQA scorer would.

use pagedraft_attention::{AttentionError, MaskKind, MetadataBuilder};
use pagedraft_block_manager::GroupId;
use pagedraft_scheduler::{KvView, PlanRow, StepPlan};

/// Builds metadata in buffers that are reused from step to step.
pub struct PlanInputs {
    pub builder: MetadataBuilder,
    /// For each metadata row, the plan row that it belongs to.
    pub order: Vec<u32>,
}

fn query_len(row: &PlanRow) -> u32 {
    row.tokens.end - row.tokens.start + u32::from(row.drafts_max)
}

impl PlanInputs {
    pub fn new(block_size: u32) -> Result<Self, AttentionError> {
        Ok(Self { builder: MetadataBuilder::new(block_size)?, order: Vec::new() })
    }

    /// Rows of several tokens come first, then those of one, each in the plan's order.
    pub fn build(&mut self, plan: &StepPlan, kv: &dyn KvView) -> Result<(), AttentionError> {
        self.order.clear();
        let rows = || (0u32..).zip(&plan.rows);
        self.order.extend(rows().filter(|(_, row)| query_len(row) > 1).map(|(i, _)| i));
        self.order.extend(rows().filter(|(_, row)| query_len(row) == 1).map(|(i, _)| i));
        self.builder.begin();
        for &i in &self.order {
            let row = &plan.rows[i as usize];
            let table = kv.block_table(row.request, GroupId(0));
            self.builder.push_row(row.tokens.start, query_len(row), table, MaskKind::Causal)?;
        }
        Ok(())
    }
}
