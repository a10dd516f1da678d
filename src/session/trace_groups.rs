//! Describes what a step did in each KV group, for the trace of an engine with several.

use std::collections::BTreeMap;

use pagedraft_attention::BlockTables;
use pagedraft_attention::metadata::AttentionMetadata;
use pagedraft_block_manager::{BlockManager, KvGroup};
use pagedraft_scheduler::StepPlan;
use pagedraft_spec_decode::ExecutionRecord;
use pagedraft_spec_decode::proposer::GroupStep;
use pagedraft_workloads::trace::{GroupCounts, PoolCounts, TableDelta, TraceTables};
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
    /// A group of the target. Its rows are the metadata rows of the step.
    Rows {
        slot_mapping: &'a [i64],
        seq_lens: &'a [u32],
        context_lens: &'a [u32],
        block_tables: &'a BlockTables,
        kv_index: Option<&'a [i64]>,
        #[serde(skip_serializing_if = "Option::is_none")]
        window: Option<u32>,
    },
    /// A draft model's group, which has rows of its own.
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
        for group in blocks.groups() {
            let stats = blocks.group_stats(group.id);
            let counts = GroupCounts {
                used: u64::from(stats.used),
                cached: u64::from(stats.cached),
                // This includes the padding that makes a whole number of blocks fill a page.
                block_bytes: blocks.arena().group(group.id).map_or(0, |cut| cut.stride as u64),
            };
            self.by_group.insert(group.name.clone(), counts);
        }
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
                lines.insert(name.as_str(), GroupLine::of(metadata));
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

impl<'a> GroupLine<'a> {
    fn of(metadata: &'a AttentionMetadata) -> Self {
        Self::Rows {
            slot_mapping: &metadata.slot_mapping,
            seq_lens: &metadata.seq_lens,
            context_lens: &metadata.context_lens,
            block_tables: &metadata.block_tables,
            kv_index: Some(&metadata.kv_index[..]).filter(|index| !index.is_empty()),
            window: metadata.window,
        }
    }
}
