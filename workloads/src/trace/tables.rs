//! Decides which block tables a trace writes.

use std::collections::HashMap;

use pagedraft_attention::metadata::AttentionMetadata;
use pagedraft_block_manager::BlockId;
use pagedraft_scheduler::{RequestKey, StepPlan};
use serde::{Deserialize, Serialize};

/// Which block tables a trace writes (`--trace-tables`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TraceTables {
    /// Every table in every step.
    #[default]
    Full,
    /// A table is written only if it differs from the last one written for the request. An empty list
    /// stands for the others.
    Delta,
}

/// Leaves out of the metadata those tables that were written before. Its buffers are reused from step to
/// step.
#[derive(Debug, Default)]
pub struct TableDelta {
    known: HashMap<RequestKey, Vec<BlockId>>,
    reduced: AttentionMetadata,
}

impl TableDelta {
    /// The metadata as the trace writes it. `plan_rows` has the plan row of each metadata row. Everything
    /// but the tables that are left out is copied unchanged.
    pub fn reduce(
        &mut self,
        plan: &StepPlan,
        plan_rows: &[u32],
        metadata: &AttentionMetadata,
    ) -> &AttentionMetadata {
        for request in plan.preempted.iter().chain(&plan.finished) {
            self.known.remove(request);
        }
        self.reduced.clone_from(metadata);
        self.reduced.block_tables.clear();
        for (m, table) in metadata.block_tables.iter().enumerate() {
            let request =
                plan_rows.get(m).and_then(|&row| plan.rows.get(row as usize)).map(|row| row.request);
            let known = request.map(|request| self.known.entry(request).or_default());
            match known {
                Some(known) if known == table => self.reduced.block_tables.push(&[]),
                Some(known) => {
                    known.clear();
                    known.extend_from_slice(table);
                    self.reduced.block_tables.push(table);
                }
                None => self.reduced.block_tables.push(table),
            }
        }
        &self.reduced
    }

    /// The result of the last [`reduce`](Self::reduce).
    #[must_use]
    pub fn reduced(&self) -> &AttentionMetadata {
        &self.reduced
    }
}
