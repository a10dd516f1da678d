//! Makes of a simulated step what a live engine's trace would have.

use std::collections::BTreeMap;

use pagedraft_attention::metadata::AttentionMetadata;
use pagedraft_attention::{AttentionError, MaskKind, MetadataBuilder, MetadataRow};
use pagedraft_block_manager::{GroupId, KvGroup, KvIndex, KvJournal, SideTable};
use pagedraft_scheduler::{Applied, KvView, RequestKey, Scheduler, SegmentKv, StepOutcome, StepPlan};

use super::in_flight::InFlight;
use super::{GraphShape, SimEvent, SimGroups, StepCost};
use crate::trace::{
    GroupCounts, KeptCounts, KvEvents, PoolCounts, RequestNames, StepEvent, TargetRows, TimesUs,
};

/// The inputs and the metadata of a step, made as the live engine's executor makes them. Rows of several
/// query tokens come first, then single ones, each in the plan's order. Under batch expansion a verify row
/// becomes as many single ones. The buffers are reused from step to step.
#[derive(Debug)]
pub(super) struct StepTrace {
    /// The engine, if there are several.
    replica: Option<u32>,
    /// The model's segments; at least one.
    segments: Vec<SegmentTrace>,
    /// The KV groups that segments write.
    groups: Vec<GroupTrace>,
    /// The pool by group, where several share it.
    by_group: BTreeMap<String, GroupCounts>,
    names: RequestNames,
    /// What entered and left the prefix cache in the step.
    journal: KvJournal,
}

/// The token rows of a step in one segment of the model.
#[derive(Debug, Default)]
struct SegmentTrace {
    order: Vec<u32>,
    plan_rows: Vec<u32>,
    tokens: Vec<u32>,
    positions: Vec<u32>,
}

/// The metadata of a step in one KV group.
#[derive(Debug)]
struct GroupTrace {
    id: GroupId,
    /// The segment whose layers write it.
    segment: u16,
    name: String,
    window: Option<u32>,
    builder: MetadataBuilder,
    metadata: AttentionMetadata,
}

impl GroupTrace {
    fn new(group: &KvGroup, segment: u16, block_size: u32) -> Result<Self, AttentionError> {
        Ok(Self {
            id: group.id,
            segment,
            name: group.name.clone(),
            window: group.window,
            builder: MetadataBuilder::new(block_size)?,
            metadata: AttentionMetadata::default(),
        })
    }

    /// Appends the `queries` tokens of a request behind the first `start`, as one row, or as `rows` rows of one token; the rows that
    /// it became.
    fn push(
        &mut self,
        scheduler: &Scheduler,
        (request, thins): (RequestKey, bool),
        start: u32,
        queries: u32,
        rows: u32,
    ) -> Result<u32, AttentionError> {
        let table = scheduler.block_table(request, self.id);
        let explicit = matches!(scheduler.index(request, self.id), KvIndex::Explicit(_));
        let stored = scheduler.lengths(request, self.id).physical;
        if stored > start && !(explicit && thins) {
            // The prefix cache has these tokens in this group, and lacks them in another: they are computed again.
            self.builder.push(MetadataRow { stored, ..MetadataRow::causal(start, queries, table) })?;
            return Ok(1);
        }
        for r in 0..rows {
            self.builder.push_row(start + r, queries / rows, table, MaskKind::Causal)?;
        }
        Ok(rows)
    }
}

/// The further parts of a line.
pub(super) struct Made<'a> {
    pub(super) scheduler: &'a Scheduler,
    pub(super) plan: &'a StepPlan,
    pub(super) outcome: &'a StepOutcome<()>,
    pub(super) applied: &'a [Applied],
    pub(super) cost: StepCost,
    pub(super) graph: Option<&'a GraphShape>,
    pub(super) pool: PoolCounts,
}

impl SegmentTrace {
    fn gather(
        &mut self,
        segment: u16,
        mut groups: Vec<&mut GroupTrace>,
        (plan, outcome): (&StepPlan, &StepOutcome<()>),
        scheduler: &Scheduler,
        expands: bool,
        requests: &SideTable<InFlight>,
    ) -> Result<(), AttentionError> {
        let drafts = |i: u32| outcome.rows.get(i as usize).map_or(0, |row| u32::from(row.num_drafts));
        let span = |i: u32| {
            let row = &plan.rows[i as usize];
            let runs = row.segments.contains(&segment);
            requests.get(row.request).filter(|_| runs).map_or(0..0, |request| request.span(row, segment))
        };
        let is_long = |&i: &u32| span(i).len() as u32 + drafts(i) > 1 && !(expands && drafts(i) > 0);
        let all = || (0..plan.rows.len() as u32).filter(|&i| !span(i).is_empty());
        self.order.clear();
        self.order.extend(all().filter(is_long));
        self.order.extend(all().filter(|i| !is_long(i)));
        self.plan_rows.clear();
        self.tokens.clear();
        self.positions.clear();
        for &i in &self.order {
            let row = &plan.rows[i as usize];
            let Some(request) = requests.get(row.request) else { continue };
            let (span, drafts) = (span(i), drafts(i));
            let tokens = scheduler.tokens(row.request);
            let compact = segment > 0 && request.compact;
            if request.thins(row) {
                for index in span.clone() {
                    let position = request.position(segment, index);
                    self.tokens.extend(tokens.get(position as usize));
                    self.positions.push(if compact { index } else { position });
                }
            } else {
                let (start, end) = (row.tokens.start, row.tokens.end);
                self.tokens.extend_from_slice(tokens.get(start as usize..end as usize).unwrap_or_default());
                let (draws, accepted) = (request.draws, u32::from(outcome.rows[i as usize].num_accepted));
                self.tokens.extend((0..drafts).map(|d| match d < accepted {
                    true => draws.token(end + d),
                    false => draws.other_token(end + d),
                }));
                let first = if compact { span.start } else { start };
                self.positions.extend(first..first + span.len() as u32 + drafts);
            }
            let queries = span.len() as u32 + drafts;
            let rows = if expands && drafts > 0 { queries } else { 1 };
            let mut pushed = 0;
            for group in &mut groups {
                pushed =
                    group.push(scheduler, (row.request, request.thins(row)), span.start, queries, rows)?;
            }
            self.plan_rows.extend((0..pushed).map(|_| i));
        }
        Ok(())
    }
}

impl StepTrace {
    /// The trace of an engine with this scheduler, whose model has these segments; none if it is not cut.
    pub(super) fn new(
        scheduler: &Scheduler,
        segments: &[SegmentKv],
        replica: Option<u32>,
    ) -> Result<Self, AttentionError> {
        let groups = scheduler.blocks().groups().iter().filter_map(|group| {
            let segment = match segments {
                [] => 0,
                _ => segments.iter().position(|kv| kv.groups.contains(&group.id))? as u16,
            };
            Some(GroupTrace::new(group, segment, scheduler.block_size()))
        });
        Ok(Self {
            replica,
            groups: groups.collect::<Result<_, _>>()?,
            segments: (0..segments.len().max(1)).map(|_| SegmentTrace::default()).collect(),
            by_group: BTreeMap::new(),
            names: RequestNames::default(),
            journal: KvJournal::default(),
        })
    }

    /// Names a request, and says how it drops tokens of its prompt, if it does. It must be called before its first step.
    pub(super) fn name(&mut self, request: RequestKey, index: u64, kept: KeptCounts) {
        self.names.insert(request, index.to_string());
        if !kept.counts.is_empty() {
            self.names.set_kept(request, kept);
        }
    }

    /// Makes the metadata of a step that was planned and drawn. It must be called before the step is
    /// applied, because requests that ended have no tables after that.
    pub(super) fn gather(
        &mut self,
        plan: &StepPlan,
        outcome: &StepOutcome<()>,
        scheduler: &Scheduler,
        expands: bool,
        requests: &SideTable<InFlight>,
    ) -> Result<(), AttentionError> {
        for group in &mut self.groups {
            group.builder.begin();
            group.builder.set_window(group.window);
        }
        for (segment, rows) in (0..).zip(&mut self.segments) {
            let groups = self.groups.iter_mut().filter(|group| group.segment == segment);
            let groups: Vec<&mut GroupTrace> = groups.collect();
            rows.gather(segment, groups, (plan, outcome), scheduler, expands, requests)?;
        }
        for group in &mut self.groups {
            group.metadata = group.builder.take(std::mem::take(&mut group.metadata));
        }
        Ok(())
    }

    /// Takes the journal of the prefix cache, once the step is applied.
    pub(super) fn drain(&mut self, scheduler: &mut Scheduler) {
        scheduler.drain_journal(&mut self.journal);
    }

    /// Whether several KV groups share the pool.
    fn has_several_groups(&self) -> bool {
        self.groups.len() > 1
    }

    /// Takes note of a step that was applied, for its [line](Self::event).
    pub(super) fn note(&mut self, made: &Made<'_>) {
        self.names.note(made.plan, made.applied);
        for group in &mut self.groups {
            group.metadata.use_cuda_graph = made.graph.is_some();
        }
        if self.has_several_groups() {
            GroupCounts::by_group(made.scheduler.blocks(), &mut self.by_group);
        }
    }

    /// The metadata of each KV group, where there are several.
    pub(super) fn groups(&self) -> Option<SimGroups<'_>> {
        self.has_several_groups().then(|| {
            let groups = self.groups.iter().filter_map(|group| {
                let rows = self.segments.get(usize::from(group.segment))?;
                let rows = TargetRows {
                    segment: group.segment,
                    tokens: &rows.tokens,
                    positions: &rows.positions,
                    plan_rows: &rows.plan_rows,
                    metadata: &group.metadata,
                };
                (group.segment == 0 || !rows.tokens.is_empty()).then_some((group.name.as_str(), rows))
            });
            groups.collect()
        })
    }

    /// The line of the step that was gathered last, once it was [noted](Self::note); `None` of an engine without KV groups.
    pub(super) fn event<'a>(
        &'a self,
        made: &Made<'a>,
        groups: Option<&'a SimGroups<'a>>,
    ) -> Option<SimEvent<'a>> {
        let Made { scheduler, plan, outcome, applied, cost, graph, pool } = *made;
        let StepCost { schedule, metadata, propose, execute, sample, .. } = cost;
        let first = self.segments.first()?;
        Some(StepEvent {
            plan,
            first_step: 0,
            replica: self.replica,
            outcome: &outcome.rows,
            tokens: &outcome.tokens,
            applied,
            names: &self.names,
            finished: self.names.finished(),
            time_us: TimesUs { schedule, metadata, propose, execute, sample },
            mode: if graph.is_some() { "graph" } else { "eager" },
            graph_key: graph,
            input_tokens: &first.tokens,
            input_positions: &first.positions,
            plan_rows: &first.plan_rows,
            metadata: &self.groups.first()?.metadata,
            groups,
            pool,
            by_group: self.has_several_groups().then_some(&self.by_group),
            kv_events: KvEvents { journal: &self.journal, groups: scheduler.blocks().groups() },
        })
    }
}
