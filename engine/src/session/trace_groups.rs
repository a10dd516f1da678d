//! Describes what a step did in each KV group, for the trace of an engine with several.

use std::collections::BTreeMap;

use pagedraft_block_manager::{BlockManager, KvGroup};
use pagedraft_model::StepInputs;
use pagedraft_scheduler::{SegmentKv, StepPlan};
use pagedraft_spec_decode::ExecutionRecord;
use pagedraft_spec_decode::proposer::GroupStep;
use pagedraft_workloads::trace::{GroupCounts, PoolCounts, TableDelta, TargetRows, TraceTables};
use serde::Serialize;

/// The names of the groups, and what is kept about them from line to line.
pub(super) struct TraceGroups {
    /// The target's groups: their names, and the tables written before.
    target: Vec<TargetGroup>,
    /// The group of a draft model.
    draft: Option<String>,
    by_group: BTreeMap<String, GroupCounts>,
}

/// A group of the target.
struct TargetGroup {
    name: String,
    /// The segment of the model whose layers write it. `None` for a group in which rows wait between two segments: it has no tables
    /// of interest.
    segment: Option<u16>,
    delta: TableDelta,
}

/// What a trace writes about a group.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum GroupLine<'a> {
    /// A group of the target.
    Target(TargetRows<'a>),
    /// A draft model's group, whose rows are its own.
    Own(&'a GroupStep),
}

impl TraceGroups {
    /// The groups of an engine whose model has these segments; none if it has one.
    pub fn new(groups: &[KvGroup], segments: &[SegmentKv]) -> Self {
        let name = |group: &&KvGroup| group.name.clone();
        let target = |group: &KvGroup| TargetGroup {
            name: group.name.clone(),
            segment: match segments.iter().position(|segment| segment.groups.contains(&group.id)) {
                Some(segment) => Some(segment as u16),
                None => segments.is_empty().then_some(0),
            },
            delta: TableDelta::default(),
        };
        Self {
            target: groups.iter().filter(|g| !g.lags).map(target).collect(),
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
            for (at, group) in self.target.iter_mut().enumerate() {
                let ran = group.segment.and_then(|segment| ran(record, segment));
                if let Some((inputs, plan_rows)) = ran {
                    group.delta.reduce(plan, plan_rows, &inputs.groups[at]);
                }
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
            for (at, group) in self.target.iter().enumerate() {
                let Some(segment) = group.segment else { continue };
                let Some((inputs, plan_rows)) = ran(record, segment) else { continue };
                let delta = tables == TraceTables::Delta;
                let metadata = if delta { group.delta.reduced() } else { &inputs.groups[at] };
                let rows = TargetRows {
                    segment,
                    tokens: &inputs.tokens,
                    positions: &inputs.positions,
                    plan_rows,
                    metadata,
                };
                lines.insert(group.name.as_str(), GroupLine::Target(rows));
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

/// What a segment of the step ran with, and the plan row of each of its metadata rows. `None` if no token reached it.
fn ran(record: &ExecutionRecord, segment: u16) -> Option<(&StepInputs, &[u32])> {
    let Some(later) = usize::from(segment).checked_sub(1) else {
        return Some((&record.inputs, &record.plan_rows));
    };
    let ran = record.more.get(..record.more_segments)?.get(later)?;
    (!ran.inputs.tokens.is_empty()).then_some((&ran.inputs, &ran.plan_rows[..]))
}
