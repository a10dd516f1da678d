//! Runs plans on a model: proposes drafts, writes metadata, runs the forward pass, and verifies.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use pagedraft_attention::MetadataBuilder;
use pagedraft_block_manager::GroupId;
use pagedraft_model::{Device, ModelError, RunCounts, Runner};
use pagedraft_scheduler::{
    CostCurve, Executor, KvView, Progress, RequestKey, SegmentKv, StepOutcome, StepPlan,
};

use crate::acceptance::{Acceptance, Verdict, Verifier};
use crate::canary::CanaryReport;
use crate::canvas::Canvases;
use crate::drafts::Drafts;
use crate::error::ExecuteError;
use crate::metrics::{SpeculationMetrics, SpeculationTimes};
use crate::proposer::{GroupStep, Proposer, Proposing, Verified};
use crate::record::ExecutionRecord;
use crate::requests::{Registered, Requests};
use crate::sampled::Sampled;
use crate::sampling::Changer;
use crate::scorer::Scorer;
use crate::segment_rows::{SegmentRows, one_segment};
use crate::shadow::Shadow;
use crate::tensors::TensorTracer;
use crate::thinning::ThinnedPrompts;

/// The KV group of a dense model.
pub const TARGET_GROUP: GroupId = GroupId(0);

/// Names one of an executor's proposers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProposerId(usize);

/// The engine's executor. It holds a target model, proposers of which at most one is in use, and the
/// sampling parameters of the requests that run on it.
///
/// Token rows run in the order of the metadata: rows with more than one query token first, then the single
/// tokens, each in the plan's order. The token rows of one plan row are neighbours. The outcome is in the
/// plan's order.
pub struct ModelExecutor<D: Device> {
    pub(crate) runner: Runner<D>,
    /// The KV groups that each segment of the target writes.
    pub(crate) segments: Vec<SegmentKv>,
    /// For each KV group of the target, the builder that writes its metadata.
    pub(crate) builders: Vec<MetadataBuilder>,
    pub(crate) windows: Vec<Option<u32>>,
    /// For each segment, the rows that run in it.
    pub(crate) rows: Vec<SegmentRows>,
    pub(crate) thinned: ThinnedPrompts,
    pub(crate) canvases: Canvases,
    /// For each plan row, the reason why its request cannot go on, if there is one.
    pub(crate) faults: Vec<Option<String>>,
    /// The plan rows that need KV which the device could not get back.
    lost: Vec<u32>,
    /// For each token row of a segment, the token row of the segment before that it continues.
    pub(crate) continued: Vec<u32>,
    pub(crate) requests: Requests,
    proposers: Vec<Box<dyn Proposer + Send>>,
    active: Option<ProposerId>,
    pub(crate) scorer: Scorer,
    pub(crate) verifier: Verifier,
    pub(crate) changer: Changer,
    noncausal: bool,
    keep_groups: bool,
    pub(crate) shadow: Option<Shadow>,
    pub(crate) metrics: SpeculationMetrics,
    pub(crate) tensors: Option<TensorTracer>,
    /// Whether the tensors of the step that runs are traced.
    pub(crate) traces: bool,
    pub(crate) keep_logits: bool,
    pub(crate) keep_hidden: bool,
    /// The plan rows that may have drafts. `drafts` and `accepted` have an entry for each of them.
    drafting: Vec<u32>,
    pub(crate) drafts: Drafts,
    accepted: Vec<u16>,
    /// For each row with drafts, the number of its drafts and what was decided about them.
    pub(crate) verdicts: Vec<(usize, Verdict)>,
    /// For each plan row, its index in `drafting`.
    pub(crate) draft_row: Vec<Option<u32>>,
    pub(crate) sampled: Sampled,
}

impl<D: Device> ModelExecutor<D> {
    /// An executor over a loaded model, without proposers. The whole model is one segment.
    ///
    /// # Errors
    ///
    /// The block size is not 16, 32 or 64.
    pub fn new(runner: Runner<D>, block_size: u32) -> Result<Self, ExecuteError> {
        let segments = one_segment(runner.model().kv().len());
        Self::with_segments(runner, block_size, segments)
    }

    /// An executor over a model of several segments, without proposers. The scheduler must have been made
    /// with the same segments.
    ///
    /// # Errors
    ///
    /// The block size is not 16, 32 or 64.
    pub fn with_segments(
        runner: Runner<D>,
        block_size: u32,
        segments: Vec<SegmentKv>,
    ) -> Result<Self, ExecuteError> {
        let groups = runner.model().kv();
        let builders = groups.iter().map(|_| MetadataBuilder::new(block_size)).collect::<Result<_, _>>()?;
        Ok(Self {
            windows: groups.iter().map(|group| group.window).collect(),
            builders,
            rows: segments.iter().map(|_| SegmentRows::default()).collect(),
            segments,
            thinned: ThinnedPrompts::default(),
            canvases: Canvases::default(),
            faults: Vec::new(),
            lost: Vec::new(),
            continued: Vec::new(),
            runner,
            requests: Requests::default(),
            proposers: Vec::new(),
            active: None,
            scorer: Scorer::default(),
            verifier: Verifier::default(),
            changer: Changer::default(),
            noncausal: false,
            keep_groups: false,
            shadow: None,
            metrics: SpeculationMetrics::default(),
            tensors: None,
            traces: false,
            keep_logits: false,
            keep_hidden: false,
            drafting: Vec::new(),
            drafts: Drafts::default(),
            accepted: Vec::new(),
            verdicts: Vec::new(),
            draft_row: Vec::new(),
            sampled: Sampled::default(),
        })
    }

    /// Adds a proposer. It is not used before it is [chosen](Self::choose_proposer).
    pub fn add_proposer(&mut self, mut proposer: Box<dyn Proposer + Send>) -> ProposerId {
        proposer.keep_record(self.keep_groups);
        proposer.keep_probabilities(self.verifier.rule() == Acceptance::Rejection);
        self.proposers.push(proposer);
        ProposerId(self.proposers.len() - 1)
    }

    /// Uses this proposer from now on, or none, so that rows have no drafts. The proposer in use before
    /// forgets every request, so no request should be running.
    pub fn choose_proposer(&mut self, proposer: Option<ProposerId>) {
        if let Some(was) = self.active.and_then(|id| self.proposers.get_mut(id.0)) {
            self.requests.keys().for_each(|request| was.forget(request));
        }
        self.active = proposer;
    }

    /// The proposer in use.
    pub fn proposer(&mut self) -> Option<&mut (dyn Proposer + Send + 'static)> {
        self.active.and_then(|id| self.proposers.get_mut(id.0)).map(Box::as_mut)
    }

    /// Sets how verify rows become metadata.
    pub fn set_scorer(&mut self, scorer: Scorer) {
        self.scorer = scorer;
    }

    /// Sets how drafts are accepted. Under rejection sampling, proposers that draw their drafts keep the
    /// distributions that they drew from.
    pub fn set_acceptance(&mut self, acceptance: Acceptance) {
        self.verifier = Verifier::new(acceptance);
        self.verifier.count_noncausal(self.noncausal);
        for proposer in &mut self.proposers {
            proposer.keep_probabilities(acceptance == Acceptance::Rejection);
        }
    }

    /// Sets whether drafts behind a rejected one are judged too, for the metrics that count them.
    pub fn count_noncausal(&mut self, yes: bool) {
        self.noncausal = yes;
        self.verifier.count_noncausal(yes);
    }

    /// Sets whether every step runs eagerly, including the proposers' own passes.
    pub fn set_enforce_eager(&mut self, yes: bool) {
        self.runner.set_enforce_eager(yes);
        for proposer in &mut self.proposers {
            proposer.set_enforce_eager(yes);
        }
    }

    /// Sets whether the devices' results are a function of the request alone, including the proposers'
    /// devices; see [`Runner::set_deterministic`]. No request should be running.
    ///
    /// # Errors
    ///
    /// The device has one way to compute only, a library is not there, or the device has a fault.
    pub fn set_deterministic(&mut self, yes: bool) -> Result<(), ModelError> {
        self.runner.set_deterministic(yes)?;
        self.proposers.iter_mut().try_for_each(|proposer| proposer.set_deterministic(yes))
    }

    /// Has a step end early while `flag` is set, in the target's forward pass or in the proposers'. [`execute`](Executor::execute) then
    /// fails with an error that [is an interrupt](ExecuteError::is_interrupt), and the step is not to be applied.
    pub fn interrupt_on(&mut self, flag: &Arc<AtomicBool>) {
        self.runner.device_mut().interrupt_on(Arc::clone(flag));
        self.proposers.iter_mut().for_each(|proposer| proposer.interrupt_on(flag));
    }

    /// How the segments of the target ran since [`reset_counts`](Self::reset_counts), and those of the
    /// proposer if it has a model of its own.
    pub fn counts(&mut self) -> (&RunCounts, Option<&RunCounts>) {
        let proposer = self.active.and_then(|id| self.proposers.get_mut(id.0));
        (self.runner.counts(), proposer.and_then(|proposer| proposer.counts()))
    }

    /// Makes the system back the KV cache and the buffers of the largest step with physical memory now,
    /// including the proposers', so that no step waits for it.
    ///
    /// # Errors
    ///
    /// There is not enough memory.
    pub fn touch(&mut self) -> Result<(), ModelError> {
        self.runner.touch()?;
        self.proposers.iter_mut().try_for_each(|proposer| proposer.touch())
    }

    /// Sets these counts to 0.
    pub fn reset_counts(&mut self) {
        self.runner.reset_counts();
        self.proposers.iter_mut().for_each(|proposer| proposer.reset_counts());
    }

    /// Measures what a forward pass of a proposer's own model costs, by its number of rows up to `most`,
    /// within about `budget`. The curve is empty if the proposer has no model.
    ///
    /// # Errors
    ///
    /// The proposer's model or device failed.
    pub fn measure_proposer(
        &mut self,
        id: ProposerId,
        most: u32,
        budget: Duration,
    ) -> Result<CostCurve, ExecuteError> {
        match self.proposers.get_mut(id.0) {
            Some(proposer) => proposer.measure(most, budget),
            None => Ok(CostCurve::default()),
        }
    }

    /// From now on shadows replayed steps with `shadow`, or none at all if it is `None`. Returns the shadow
    /// in use before.
    pub fn set_shadow(&mut self, shadow: Option<Shadow>) -> Option<Shadow> {
        std::mem::replace(&mut self.shadow, shadow)
    }

    /// What the canary has seen so far.
    pub fn canary(&self) -> Option<&CanaryReport> {
        self.shadow.as_ref().map(Shadow::report)
    }

    /// What speculation has gained since [`take_metrics`](Self::take_metrics).
    pub fn metrics(&self) -> &SpeculationMetrics {
        &self.metrics
    }

    /// Returns the [`metrics`](Self::metrics) and sets them to 0.
    pub fn take_metrics(&mut self) -> SpeculationMetrics {
        std::mem::take(&mut self.metrics)
    }

    /// Sets whether the record keeps the logits that each token is chosen from. This costs a copy of
    /// `vocab` values per token.
    pub fn keep_logits(&mut self, keep: bool) {
        self.keep_logits = keep;
    }

    /// Has the tensors of every later step looked at by `tracer`, or by nobody if it is `None`. A step that it traces runs eagerly, with
    /// the same bits.
    pub fn trace_tensors(&mut self, tracer: Option<TensorTracer>) {
        self.tensors = tracer;
    }

    /// Who looks at the tensors of steps.
    pub fn tensor_tracer(&self) -> Option<&TensorTracer> {
        self.tensors.as_ref()
    }

    /// Sets whether the record keeps the hidden states after the final norm.
    pub fn keep_hidden(&mut self, keep: bool) {
        self.keep_hidden = keep;
    }

    /// Sets whether proposers record what they write into KV groups of their own, for
    /// [`group_step`](Self::group_step).
    pub fn keep_group_steps(&mut self, keep: bool) {
        self.keep_groups = keep;
        for proposer in &mut self.proposers {
            proposer.keep_record(keep);
        }
    }

    /// What the last step wrote into the proposer's own KV group.
    pub fn group_step(&self) -> Option<&GroupStep> {
        self.active.and_then(|id| self.proposers.get(id.0))?.record()
    }

    /// Says how `request` is sampled. It must be called before a plan has a row of the request. The
    /// executor forgets it when a plan lists the request as finished.
    pub fn register(&mut self, request: RequestKey, registered: Registered) {
        self.requests.insert(request, registered);
    }

    /// The model. What a step left behind can be read from it, such as hidden states and the last logits.
    pub fn runner(&mut self) -> &mut Runner<D> {
        &mut self.runner
    }

    /// Forgets requests that ended, and asks for drafts. Row d of `self.drafts` belongs to plan row
    /// `self.drafting[d]`.
    fn propose(&mut self, plan: &StepPlan, kv: &dyn KvView) -> Result<(), ExecuteError> {
        let may = |i: u32| plan.rows[i as usize].drafts_max > 0;
        self.drafting.clear();
        self.drafting.extend((0..plan.rows.len() as u32).filter(|&i| may(i)));
        self.draft_row.clear();
        self.draft_row.resize(plan.rows.len(), None);
        for (d, &i) in (0..).zip(&self.drafting) {
            self.draft_row[i as usize] = Some(d);
        }
        self.drafts.begin(self.drafting.len());
        let mut proposer = self.active.and_then(|id| self.proposers.get_mut(id.0));
        if let Some(proposer) = &mut proposer {
            for &request in plan.preempted.iter().chain(&plan.finished) {
                proposer.forget(request);
            }
        }
        // This comes before anything that can fail, because no later plan names these requests.
        for &request in &plan.finished {
            self.requests.remove(request);
        }
        for &request in plan.preempted.iter().chain(&plan.finished) {
            self.thinned.forget(request);
        }
        let Some(proposer) = proposer else { return Ok(()) };
        let step = Proposing { plan, kv, requests: &self.requests, rows: &self.drafting };
        proposer.propose(&step, &mut self.drafts)?;
        for (d, &i) in self.drafting.iter().enumerate() {
            let row = &plan.rows[i as usize];
            if self.drafts.row(d).len() > usize::from(row.drafts_max) {
                return Err(ExecuteError::Plan {
                    request: row.request,
                    what: "it was given more drafts than planned",
                });
            }
        }
        Ok(())
    }

    /// The drafts of a plan row.
    pub(crate) fn drafts_of(&self, plan_row: usize) -> &[u32] {
        self.draft_row[plan_row].map_or(&[], |d| self.drafts.row(d as usize))
    }

    /// Takes note of the plan rows that need latents which the device could not get back.
    fn note_lost_rows(&mut self, record: &ExecutionRecord) {
        self.lost.clear();
        let Some(tiers) = self.runner.device_mut().tiers() else { return };
        let starts = &record.inputs.metadata().query_start_loc;
        for &token in tiers.lost_rows() {
            let behind = starts.partition_point(|&start| start <= token);
            let Some(&row) = behind.checked_sub(1).and_then(|row| record.plan_rows.get(row)) else {
                continue;
            };
            if !self.lost.contains(&row) {
                self.lost.push(row);
                // Nothing is sampled from such a row.
                self.faults[row as usize].get_or_insert_with(|| "its KV was lost".to_owned());
            }
        }
    }

    /// Counts a step that succeeded, if a proposer was asked.
    fn count(&mut self, times: SpeculationTimes) {
        for &(drafts, verdict) in &self.verdicts {
            self.metrics.record_row(drafts, verdict);
        }
        if self.active.is_some() && !self.drafting.is_empty() {
            self.metrics.record_step(self.drafts.longest(), times);
        }
    }

    /// Writes to the outcome, for each row and KV group, how many slots hold accepted tokens now. It tells
    /// the proposer what became of its drafts, and the proposer writes the same for its own group.
    fn account(&mut self, plan: &StepPlan, outcome: &mut StepOutcome<ExecutionRecord>) {
        outcome.took.begin(plan.needs.groups());
        for (i, (row, result)) in plan.rows.iter().zip(&outcome.rows).enumerate() {
            let rejected = u32::from(row.drafts_max - result.num_accepted);
            let took = outcome.took.push();
            // The groups after the target's belong to the proposer, which fills them in below.
            for (took, need) in took.iter_mut().zip(plan.needs.row(i)).take(self.builders.len()) {
                *took = need.saturating_sub(rejected);
            }
        }
        self.accepted.clear();
        self.accepted.extend(self.drafting.iter().map(|&i| outcome.rows[i as usize].num_accepted));
        if let Some(proposer) = self.active.and_then(|id| self.proposers.get_mut(id.0)) {
            let mut verified =
                Verified { accepted: &self.accepted, rows: &self.drafting, took: &mut outcome.took };
            proposer.verified(&mut verified);
        }
    }
}

impl<D: Device> Executor for ModelExecutor<D> {
    type Record = ExecutionRecord;
    type Error = ExecuteError;

    fn execute(
        &mut self,
        plan: &StepPlan,
        kv: &dyn KvView,
        outcome: &mut StepOutcome<ExecutionRecord>,
    ) -> Result<(), ExecuteError> {
        outcome.begin(plan);
        outcome.record.clear();
        self.faults.clear();
        self.faults.resize(plan.rows.len(), None);
        self.traces = self.tensors.as_mut().is_some_and(|tracer| tracer.begin(plan.id.0));
        let start = Instant::now();
        self.propose(plan, kv)?;
        self.begin_passes(plan)?;
        let proposed = Instant::now();
        self.runner.copy_blocks(&plan.copies)?;
        let gather_us = self.run_segments(plan, kv, outcome)?;
        self.note_lost_rows(&outcome.record);
        let forwarded = Instant::now();
        let (head_us, sample_us) = self.sample(plan, kv, outcome)?;
        self.fill_masks(plan, outcome)?;
        self.shadow(plan, kv, outcome)?;
        let shadowed = Instant::now();
        let prompt_head_us = self.prompt_logprobs(plan, kv, &mut outcome.record)?;
        let prompt_done = Instant::now();
        for (i, (row, result)) in plan.rows.iter().zip(&mut outcome.rows).enumerate() {
            if self.lost.contains(&(i as u32)) {
                *result = pagedraft_scheduler::RowOutcome {
                    progress: Progress::Lost,
                    num_drafts: self.draft_row[i].map_or(0, |d| self.drafts.row(d as usize).len()) as u16,
                    ..pagedraft_scheduler::RowOutcome::of(row.request)
                };
                outcome.record.forget(row.request);
            } else if let Some(why) = self.faults[i].take() {
                *result = pagedraft_scheduler::RowOutcome {
                    progress: Progress::Failed,
                    ..pagedraft_scheduler::RowOutcome::of(row.request)
                };
                outcome.record.faults.push((row.request, why));
            }
        }
        self.account(plan, outcome);

        let us = |from: Instant, to: Instant| (to - from).as_secs_f64() * 1e6;
        let times = &mut outcome.record.time_us;
        times.metadata = gather_us;
        times.propose = us(start, proposed) + prompt_done.elapsed().as_secs_f64() * 1e6;
        let scoring = us(proposed, forwarded) - gather_us + head_us;
        times.execute = scoring + prompt_head_us;
        times.sample = sample_us + us(shadowed, prompt_done) - prompt_head_us;
        // Log probabilities of prompts are left out, because they are no part of speculation.
        let times =
            SpeculationTimes { propose_us: times.propose, scoring_us: scoring, verification_us: sample_us };
        self.count(times);
        Ok(())
    }
}

impl From<ModelError> for ExecuteError {
    fn from(error: ModelError) -> Self {
        Self::Model(error)
    }
}
