//! Makes of a simulated step what a live engine's trace would have.

use pagedraft_attention::metadata::AttentionMetadata;
use pagedraft_attention::{AttentionError, MaskKind, MetadataBuilder};
use pagedraft_block_manager::{GroupId, KvJournal};
use pagedraft_scheduler::{Applied, KvView, RequestKey, Scheduler, StepOutcome, StepPlan};

use super::draws::Draws;
use super::{GraphShape, SimEvent, StepCost};
use crate::trace::{KvEvents, PoolCounts, RequestNames, StepEvent, TimesUs};

/// The inputs and the metadata of a step, made as the live engine's executor makes them. Rows of several
/// query tokens come first, then single ones, each in the plan's order. Under batch expansion a verify row
/// becomes as many single ones. The buffers are reused from step to step.
#[derive(Debug)]
pub(super) struct StepTrace {
    /// The engine, if there are several.
    replica: Option<u32>,
    builder: MetadataBuilder,
    metadata: AttentionMetadata,
    order: Vec<u32>,
    plan_rows: Vec<u32>,
    tokens: Vec<u32>,
    positions: Vec<u32>,
    names: RequestNames,
    /// What entered and left the prefix cache in the step.
    journal: KvJournal,
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

impl StepTrace {
    pub(super) fn new(block_size: u32, replica: Option<u32>) -> Result<Self, AttentionError> {
        Ok(Self {
            replica,
            builder: MetadataBuilder::new(block_size)?,
            metadata: AttentionMetadata::default(),
            order: Vec::new(),
            plan_rows: Vec::new(),
            tokens: Vec::new(),
            positions: Vec::new(),
            names: RequestNames::default(),
            journal: KvJournal::default(),
        })
    }

    /// Names a request. It must be called before its first step.
    pub(super) fn name(&mut self, request: RequestKey, index: u64) {
        self.names.insert(request, index.to_string());
    }

    /// Makes the metadata of a step that was planned and drawn. It must be called before the step is
    /// applied, because requests that ended have no tables after that.
    pub(super) fn gather(
        &mut self,
        plan: &StepPlan,
        outcome: &StepOutcome<()>,
        scheduler: &Scheduler,
        expands: bool,
        draws: impl Fn(RequestKey) -> Draws,
    ) -> Result<(), AttentionError> {
        let drafts = |i: u32| outcome.rows.get(i as usize).map_or(0, |row| u32::from(row.num_drafts));
        let is_long = |&i: &u32| {
            let new = plan.rows[i as usize].tokens.len() as u32;
            new + drafts(i) > 1 && !(expands && drafts(i) > 0)
        };
        let all = || 0..plan.rows.len() as u32;
        self.order.clear();
        self.order.extend(all().filter(is_long));
        self.order.extend(all().filter(|i| !is_long(i)));
        self.plan_rows.clear();
        self.tokens.clear();
        self.positions.clear();
        self.builder.begin();
        for &i in &self.order {
            let row = &plan.rows[i as usize];
            let (start, end, drafts) = (row.tokens.start, row.tokens.end, drafts(i));
            let known = scheduler.tokens(row.request).get(start as usize..end as usize).unwrap_or_default();
            self.tokens.extend_from_slice(known);
            let (draws, accepted) = (draws(row.request), u32::from(outcome.rows[i as usize].num_accepted));
            self.tokens.extend((0..drafts).map(|d| match d < accepted {
                true => draws.token(end + d),
                false => draws.other_token(end + d),
            }));
            self.positions.extend(start..end + drafts);
            let table = scheduler.block_table(row.request, GroupId(0));
            let queries = end - start + drafts;
            let (rows, each) = if expands && drafts > 0 { (queries, 1) } else { (1, queries) };
            for r in 0..rows {
                self.builder.push_row(start + r, each, table, MaskKind::Causal)?;
                self.plan_rows.push(i);
            }
        }
        self.metadata = self.builder.take(std::mem::take(&mut self.metadata));
        Ok(())
    }

    /// Takes the journal of the prefix cache, once the step is applied.
    pub(super) fn drain(&mut self, scheduler: &mut Scheduler) {
        scheduler.drain_journal(&mut self.journal);
    }

    /// The line of the step that was gathered last, once it is applied.
    pub(super) fn event<'a>(&'a mut self, made: &Made<'a>) -> SimEvent<'a> {
        let Made { scheduler, plan, outcome, applied, cost, graph, pool } = *made;
        self.names.note(plan, applied);
        self.metadata.use_cuda_graph = graph.is_some();
        let StepCost { schedule, metadata, propose, execute, sample, .. } = cost;
        StepEvent {
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
            input_tokens: &self.tokens,
            input_positions: &self.positions,
            plan_rows: &self.plan_rows,
            metadata: &self.metadata,
            groups: None,
            pool,
            by_group: None,
            kv_events: KvEvents { journal: &self.journal, groups: scheduler.blocks().groups() },
        }
    }
}
