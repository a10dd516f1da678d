//! Describes what a step did in each KV group, for the trace of an engine with several.

use std::collections::BTreeMap;

use pagedraft_block_manager::{BlockManager, KvGroup};
use pagedraft_scheduler::StepPlan;
use pagedraft_spec_decode::ExecutionRecord;
use pagedraft_spec_decode::proposer::GroupStep;
use pagedraft_workloads::trace::{GroupCounts, GroupRows, PoolCounts, TableDelta, TraceTables};
use serde::Serialize;

/// The names of the groups, and what is kept about them from line to line.
pub(super) struct TraceGroups {
    /// The target's groups: their names, and the tables written before.
    target: Vec<(String, TableDelta)>,
    /// The group of a draft model.
    draft: Option<String>,
    by_group: BTreeMap<String, GroupCounts>,
}

/// What a trace writes about a group.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum GroupLine<'a> {
    /// A group of the target: its rows are the step's metadata rows.
    Rows(GroupRows<'a>),
    /// A draft model's group, whose rows are its own.
    Own(&'a GroupStep),
}

impl TraceGroups {
    pub fn new(groups: &[KvGroup]) -> Self {
        let name = |group: &&KvGroup| group.name.clone();
        Self {
            target: groups.iter().filter(|g| !g.lags).map(|g| (name(&g), TableDelta::default())).collect(),
            draft: groups.iter().find(|g| g.lags).map(|g| name(&g)),
            by_group: BTreeMap::new(),
        }
    }

    /// Whether several groups share the pool.
    fn several(&self) -> bool {
        self.target.len() + usize::from(self.draft.is_some()) > 1
    }

    /// Begins the line of a step, after which the pool is as `blocks` shows it.
    pub fn begin(
        &mut self,
        plan: &StepPlan,
        record: &ExecutionRecord,
        blocks: &BlockManager,
        tables: TraceTables,
    ) {
        if tables == TraceTables::Delta && self.target.len() > 1 {
            for ((_, delta), metadata) in self.target.iter_mut().zip(&record.inputs.groups) {
                delta.reduce(plan, &record.plan_rows, metadata);
            }
        }
        self.by_group.clear();
        if !self.several() {
            return;
        }
        GroupCounts::by_group(blocks, &mut self.by_group);
    }

    pub fn by_group(&self) -> Option<&BTreeMap<String, GroupCounts>> {
        (!self.by_group.is_empty()).then_some(&self.by_group)
    }

    pub fn pool(&self, blocks: &BlockManager) -> PoolCounts {
        if self.several() { PoolCounts::with_bytes(blocks.stats()) } else { blocks.stats().into() }
    }

    /// The lines of the groups: those of the target if it has several, and a draft model's if it wrote
    /// anything.
    pub fn lines<'a>(
        &'a self,
        record: &'a ExecutionRecord,
        draft: Option<&'a GroupStep>,
        tables: TraceTables,
    ) -> Option<BTreeMap<&'a str, GroupLine<'a>>> {
        let mut lines = BTreeMap::new();
        if self.target.len() > 1 {
            for ((name, delta), whole) in self.target.iter().zip(&record.inputs.groups) {
                let metadata = if tables == TraceTables::Delta { delta.reduced() } else { whole };
                lines.insert(name.as_str(), GroupLine::Rows(GroupRows(metadata)));
            }
        }
        if let (Some(name), Some(step)) = (&self.draft, draft)
            && !step.plan_rows.is_empty()
        {
            lines.insert(name.as_str(), GroupLine::Own(step));
        }
        (!lines.is_empty()).then_some(lines)
    }
}
