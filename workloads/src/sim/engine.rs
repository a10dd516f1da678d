//! One simulated engine: a scheduler, and an executor that draws what steps emit and computes what they
//! cost.

use std::sync::Arc;

use pagedraft_block_manager::{BlockHash, GroupId, SideTable};
use pagedraft_scheduler::{
    Applied, DraftControl, Kept, KvView, RequestSpec, RowOutcome, Scheduler, SchedulerConfig, SegmentKv,
    StepOutcome, StepPlan, StepTimes, SubmitError,
};

use super::drafting::Drafting;
use super::draws::Draws;
use super::event_log::EventLog;
use super::freezes::Freezes;
use super::graphs::{GraphShape, Graphs};
use super::in_flight::InFlight;
use super::router::{self, Routed};
use super::row_sums::RowSums;
use super::step_trace::{Made, StepTrace};
use super::{CostModel, Observer, PromptRule, SimOptions, StepCost, StepShape};
use crate::Error;
use crate::replay::{RowReport, StepReport, Ticket};
use crate::trace::{KeptCounts, PoolCounts};

/// An engine in virtual time. [`begin`](Self::begin) plans a step and draws its outcome, and
/// [`finish`](Self::finish) applies it when its time has come. Requests may be submitted in between; they
/// are planned for in the next step, as in a live engine.
pub(super) struct Engine {
    scheduler: Scheduler,
    cost: CostModel,
    freezes: Freezes,
    graphs: Graphs,
    drafting: Option<Drafting>,
    seed: u64,
    requests: SideTable<InFlight>,
    plan: StepPlan,
    outcome: StepOutcome<()>,
    applied: Vec<Applied>,
    shape: StepShape,
    /// The sums over the rows of the step, by segment of the model.
    sums: Vec<RowSums>,
    /// The KV groups of each segment; none if the model is not cut.
    segments: Vec<SegmentKv>,
    /// How prompts are pruned.
    rule: Option<Arc<dyn PromptRule>>,
    price: StepCost,
    graph: Option<GraphShape>,
    report: StepReport,
    trace: Option<StepTrace>,
    /// When the running step ends, if one is running.
    ends: Option<u64>,
    /// When an idle engine notices the request that it was given.
    wakes: Option<u64>,
    /// Whether `load` is kept up to date.
    weighed: bool,
    load: u64,
    taken: u64,
    /// The number of requests that it was given since the last step.
    begun: u32,
}

impl Engine {
    /// # Errors
    ///
    /// The options contradict each other.
    pub(super) fn new(
        replica: u32,
        options: &SimOptions,
        weighed: bool,
        traced: bool,
    ) -> Result<Self, Error> {
        let speculation = options.speculation.as_ref();
        let config = SchedulerConfig {
            num_speculative_tokens: speculation.map_or(0, |s| s.most),
            ..options.scheduler.clone()
        };
        let mut scheduler = Scheduler::new(config).map_err(|e| Error::Options(e.to_string()))?;
        let drafting = speculation.map(|s| Drafting::new(options, s)).transpose().map_err(Error::Options)?;
        if let Some(auto) = speculation.filter(|s| s.auto) {
            let costs = options.cost.step_costs(Some(&auto.proposer));
            scheduler.set_draft_control(Some(DraftControl::new(auto.most, &costs)));
        }
        let told = (options.replicas > 1).then_some(replica);
        scheduler.keep_journal(traced);
        let segments = options.scheduler.segments.clone();
        let trace = traced.then(|| StepTrace::new(&scheduler, &segments, told)).transpose();
        Ok(Self {
            scheduler,
            freezes: Freezes::new(&options.cost.freezes).map_err(Error::Options)?,
            cost: options.cost.clone(),
            graphs: Graphs::new(options),
            drafting,
            seed: options.seed,
            requests: SideTable::default(),
            plan: StepPlan::default(),
            outcome: StepOutcome::default(),
            applied: Vec::new(),
            shape: StepShape::default(),
            sums: vec![RowSums::default(); segments.len().max(1)],
            segments,
            rule: options.prune.clone(),
            price: StepCost::default(),
            graph: None,
            report: StepReport { replica, ..StepReport::default() },
            trace: trace.map_err(|e| Error::Options(e.to_string()))?,
            ends: None,
            wakes: None,
            weighed,
            load: 0,
            taken: 0,
            begun: 0,
        })
    }

    /// When the running step ends, if one is running.
    pub(super) fn ends(&self) -> Option<u64> {
        self.ends
    }

    /// When it next looks for work: at the end of the running step, or when it has woken. `None` if it will
    /// not.
    pub(super) fn looks(&self) -> Option<u64> {
        self.ends.or(self.wakes)
    }

    /// Whether it has work but no running step.
    pub(super) fn may_begin(&self, now: u64) -> bool {
        self.ends.is_none() && self.wakes.is_none_or(|wakes| wakes <= now) && self.scheduler.has_unfinished()
    }

    /// The step that was finished last.
    pub(super) fn report(&self) -> &StepReport {
        &self.report
    }

    /// Accepts a request at time `now`.
    ///
    /// # Errors
    ///
    /// The reason why a live engine would refuse it.
    pub(super) fn submit(
        &mut self,
        now: u64,
        ticket: Ticket,
        index: u64,
        prompt: Vec<u32>,
        max_tokens: u32,
    ) -> Result<(), String> {
        let config = self.scheduler.config();
        let capacity = self.scheduler.capacity();
        let prompt_len = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        let max_len = prompt_len.saturating_add(max_tokens).min(config.max_model_len);
        let kept = self.rule.as_ref().map(|rule| rule.counts(prompt_len)).transpose()?.unwrap_or_default();
        let shares = self.rule.as_ref().filter(|_| !kept.is_empty()).map(|rule| rule.shares_kept(&prompt));
        let shares_kept = shares.transpose()?;
        let spec = RequestSpec { kept: kept.clone(), shares_kept, ..RequestSpec::new(prompt, max_tokens) };
        self.scheduler.check(&spec).map_err(|e: SubmitError| e.to_string())?;
        // The last token is never computed, so it needs no slot.
        if max_len > capacity.saturating_add(1) {
            return Err(format!(
                "it may grow to {max_len} tokens ({prompt_len} of prompt), and the pool of {} KV blocks holds {capacity}: ask \
                 for fewer tokens, or for more blocks",
                config.num_blocks
            ));
        }
        let idle = self.ends.is_none() && !self.scheduler.has_unfinished() && now > self.report.end_ns;
        let key = self.scheduler.submit(spec).map_err(|e| e.to_string())?;
        if idle {
            // The cast gives the nearest integer in range.
            self.wakes = Some(now.saturating_add((self.cost.us_to_wake * 1e3).round() as u64));
        }
        let compact = self.rule.as_ref().is_some_and(|rule| rule.is_compact());
        if let Some(trace) = &mut self.trace {
            trace.name(
                key,
                index,
                KeptCounts {
                    counts: kept.clone(),
                    compact,
                    prompt_len,
                    name: shares_kept.map(|shares| shares.name),
                },
            );
        }
        let mut request = InFlight {
            ticket,
            index,
            draws: Draws::new(self.seed, index),
            prompt_len,
            kept,
            compact,
            len: prompt_len,
            max_len,
            ..InFlight::default()
        };
        request.owes = request.left(0);
        self.load += u64::from(request.owes);
        self.taken += 1;
        self.begun += 1;
        self.requests.insert(key, request);
        Ok(())
    }

    /// Plans a step at time `now`, draws its outcome, and decides when it ends.
    ///
    /// # Errors
    ///
    /// The scheduler has a fault, or has requests but makes no plan for them.
    pub(super) fn begin(&mut self, now: u64) -> Result<(), Error> {
        self.wakes = None;
        self.scheduler.step(&mut self.plan).map_err(|e| Error::Engine(e.to_string()))?;
        if self.plan.rows.is_empty() {
            return Err(Error::Engine(
                "the scheduler has requests, and planned a step without rows".to_owned(),
            ));
        }
        self.preempt();
        let before = self.shape.token_rows;
        self.execute()?;
        self.shape.begun = std::mem::take(&mut self.begun);
        // Before its first step the engine was idle, even if that step begins at time 0.
        let idle_ns = now.saturating_sub(self.report.end_ns).max(u64::from(self.plan.id.0 == 0));
        self.shape.idle_us = idle_ns as f64 * 1e-3;
        self.shape.rows_before = if self.shape.after_idle() { 0 } else { before };
        self.gather()?;
        let proposer = self.drafting.as_ref().map(|drafting| &drafting.cost);
        self.price = self.cost.step(&self.shape, proposer);
        // The cast gives the nearest integer in range; NaN becomes 0.
        let length = (self.price.total_us() * 1e3).round() as u64;
        let end = self.freezes.end(now, length);
        let (stats, during) = (self.scheduler.stats(), counts(&self.scheduler));
        let report = &mut self.report;
        report.step = self.plan.id.0;
        (report.start_ns, report.end_ns) = (now, end);
        report.preempted = self.plan.preempted.len() as u32;
        report.running = stats.running as u32;
        report.waiting = stats.waiting as u32;
        report.pool_during = during;
        report.replayed = self.graph.is_some();
        self.ends = Some(end);
        Ok(())
    }

    fn preempt(&mut self) {
        let config = self.scheduler.config();
        for key in &self.plan.preempted {
            let Some(request) = self.requests.get_mut(*key) else { continue };
            request.preemptions += 1;
            request.drafted.preempted(config.block_size, config.enable_prefix_caching);
            let owes = request.left(0);
            self.load = self.load - u64::from(request.owes) + u64::from(owes);
            request.owes = owes;
        }
    }

    /// Draws the outcome of the plan, and adds up the work.
    fn execute(&mut self) -> Result<(), Error> {
        let Self { scheduler, requests, plan, outcome, shape, sums, drafting, report, .. } = self;
        outcome.id = plan.id;
        outcome.rows.clear();
        outcome.tokens.clear();
        outcome.took.begin(0);
        outcome.kept.clear();
        outcome.kept_positions.clear();
        shape.draft_passes.clear();
        (shape.draft_catch_up, shape.draft_reads, shape.draft_pairs, shape.ended) = (0, 0, 0, 0);
        sums.fill(RowSums::default());
        if let Some(drafting) = drafting {
            drafting.begin();
        }
        let expands = drafting.as_ref().is_some_and(|drafting| drafting.batch_expansion);
        let reads = |len| scheduler.context_read(len);
        for (at, row) in plan.rows.iter().enumerate() {
            let Some(request) = requests.get_mut(row.request) else { continue };
            if !request.begun {
                request.begin(row, scheduler);
            }
            if request.thins(row) && row.segments.end > 1 {
                keep(&self.segments, self.rule.as_deref(), request, at, plan, outcome)?;
            }
            // A row that samples ends behind the last known token.
            let len = request.len;
            let (num_drafts, num_accepted) = match drafting {
                Some(drafting) => {
                    drafting.row(request.draws, &mut request.drafted, len, row.drafts_max, shape)
                }
                None => (0, 0),
            };
            let first = outcome.tokens.len() as u32;
            if row.samples {
                let upto = len + u32::from(num_accepted);
                outcome.tokens.extend((len..=upto).map(|position| request.draws.token(position)));
                if upto + 1 >= request.max_len {
                    shape.ended += 1;
                    request.blocks_held = scheduler.block_table(row.request, GroupId(0)).len() as u32;
                }
            }
            outcome.rows.push(RowOutcome {
                tokens: first..outcome.tokens.len() as u32,
                num_drafts,
                num_accepted,
                ..RowOutcome::of(row.request)
            });
            let mut segments = row.segments.clone();
            if let Some(sums) = segments.next().and_then(|segment| sums.get_mut(usize::from(segment))) {
                sums.add((row, row.tokens.clone()), reads, num_drafts, expands);
                sums.add_once(row, num_drafts);
            }
            for segment in segments {
                if let Some(sums) = sums.get_mut(usize::from(segment)) {
                    sums.add((row, request.span(row, segment)), reads, num_drafts, expands);
                }
            }
        }
        RowSums::shape(sums, |segment| scheduler.segment_share(segment), shape);
        let sum = |of: fn(&RowSums) -> u32| sums.iter().map(of).sum();
        shape.plan_rows = plan.rows.len() as u32;
        shape.logit_rows = sum(|sums| sums.logit_rows);
        shape.prefills = sum(|sums| sums.prefills);
        report.prefill_tokens = sum(|sums| sums.prefill_tokens);
        report.decode_rows = sum(|sums| sums.decode_rows);
        self.graph = self.graphs.replayed(sums);
        shape.replayed = self.graph.is_some();
        let most = sums.iter().map(|sums| sums.token_rows).max().unwrap_or(0);
        shape.pad_rows = self.graph.map_or(0, |graph| graph.token_rows - most);
        Ok(())
    }

    /// Makes the trace's view of the step, if a trace is written.
    fn gather(&mut self) -> Result<(), Error> {
        let Self { trace: Some(trace), plan, outcome, scheduler, requests, drafting, .. } = self else {
            return Ok(());
        };
        let expands = drafting.as_ref().is_some_and(|drafting| drafting.batch_expansion);
        let gathered = trace.gather(plan, outcome, scheduler, expands, requests);
        gathered.map_err(|e| Error::Engine(format!("the metadata of step {}: {e}", plan.id.0)))
    }

    /// Passes the step that was finished last to an observer that writes traces.
    ///
    /// # Errors
    ///
    /// The observer's errors.
    pub(super) fn tell(&mut self, observer: &mut dyn Observer) -> Result<(), Error> {
        let Self { trace: Some(trace), scheduler, plan, outcome, applied, price, graph, report, .. } = self
        else {
            return Ok(());
        };
        trace.drain(scheduler);
        let (cost, pool) = (*price, report.pool);
        let made = Made { scheduler, plan, outcome, applied, cost, graph: graph.as_ref(), pool };
        trace.note(&made);
        let groups = trace.groups();
        match trace.event(&made, groups.as_ref()) {
            Some(event) => observer.trace(report.replica, event),
            None => Ok(()),
        }
    }

    /// Ends the running step. [`report`](Self::report) then says what it did.
    ///
    /// # Errors
    ///
    /// The scheduler has a fault.
    pub(super) fn finish(&mut self, log: &mut EventLog) -> Result<(), Error> {
        self.ends = None;
        let Self { scheduler, requests, plan, outcome, applied, price, report, .. } = self;
        scheduler.apply(outcome, applied).map_err(|e| Error::Engine(e.to_string()))?;
        report.pool = counts(scheduler);
        report.rows.clear();
        report.ended.clear();
        log.step(report, applied.len());
        for (one, row) in applied.iter().zip(&plan.rows) {
            let Some(request) = requests.get_mut(one.request) else { continue };
            let new_tokens = one.tokens.end - one.tokens.start;
            let told = RowReport {
                ticket: request.ticket,
                new_tokens: new_tokens as u16,
                num_drafts: one.num_drafts,
                num_accepted: one.num_accepted,
                context: request.computed_by(row, one.num_drafts),
                cached_tokens: request.cached,
            };
            log.row(request.index, &told, one.finish);
            report.rows.push(told);
            let computed = request.computed_by(row, one.num_accepted);
            request.len += new_tokens;
            if row.samples {
                request.positions = Vec::new();
            }
            if self.weighed {
                let owes = match one.finish {
                    None => request.left(computed),
                    Some(_) => 0,
                };
                self.load = self.load - u64::from(request.owes) + u64::from(owes);
                request.owes = owes;
            }
            if let Some(reason) = one.finish {
                report.ended.push(request.end(reason));
            }
        }
        scheduler.observe(&StepTimes {
            propose_us: price.propose,
            execute_us: price.execute + price.sample,
            total_us: (report.end_ns - report.start_ns) as f64 * 1e-3,
        });
        Ok(())
    }
}

/// Says which tokens of a prompt go on behind the cuts that the row at index `at` of the plan comes through.
fn keep(
    segments: &[SegmentKv],
    rule: Option<&dyn PromptRule>,
    request: &mut InFlight,
    at: usize,
    plan: &StepPlan,
    outcome: &mut StepOutcome<()>,
) -> Result<(), Error> {
    if request.positions.is_empty()
        && let Some(rule) = rule
    {
        request.positions = rule.positions(request.prompt_len).map_err(Error::Engine)?;
    }
    let (row, needs) = (&plan.rows[at], plan.needs.row(at));
    for segment in row.segments.clone().filter(|&segment| segment > 0) {
        let groups = segments.get(usize::from(segment)).map_or(&[][..], |kv| &kv.groups);
        for &group in groups {
            let need = needs.get(usize::from(group.0)).copied().unwrap_or(0);
            let from = outcome.kept_positions.len() as u32;
            outcome.kept_positions.extend((0..need).map(|index| request.position(segment, index)));
            outcome.kept.push(Kept { row: at as u32, group, positions: from..from + need });
        }
    }
    Ok(())
}

/// How full the pool is; with its bytes where several KV groups share it.
fn counts(scheduler: &Scheduler) -> PoolCounts {
    let pool = scheduler.stats().pool;
    if scheduler.blocks().num_groups() > 1 { PoolCounts::with_bytes(pool) } else { pool.into() }
}
impl Routed for Engine {
    fn load(&self) -> u64 {
        self.load
    }

    fn taken(&self) -> u64 {
        self.taken
    }

    fn hit(&self, hashes: &[BlockHash], block_size: usize) -> usize {
        router::hit(&self.scheduler, hashes, block_size)
    }
}
