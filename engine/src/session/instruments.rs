//! What benches, comparisons and tests need of a session, but serving does not: other ways to speculate,
//! kept logits and states, shadowing, and the documents of the last step.

use pagedraft_model::{AnyDevice, RunCounts, Runner};
use pagedraft_scheduler::{DraftControl, DraftReport, StepPlan};
use pagedraft_spec_decode::ExecutionRecord;
use pagedraft_spec_decode::canary::CanaryReport;

use super::sequence::Sequence;
use super::{RequestId, Session, SetupId, SpeculationOptions, log};
use crate::error::{Result, ensure};

impl Session {
    /// Prepares the engine to speculate in another way. [`switch`](Self::switch) then changes to it. A
    /// draft model must be the one that the session was opened with.
    ///
    /// # Errors
    ///
    /// The options contradict each other, or the device has a fault while costs are measured.
    pub fn prepare(&mut self, options: &SpeculationOptions, enforce_eager: bool) -> Result<SetupId> {
        self.setups.prepare(options, enforce_eager, &mut self.executor)
    }

    /// Changes to a prepared way to speculate. Metrics and counts start at 0. A setup keeps what it has
    /// learnt about its drafts.
    ///
    /// # Errors
    ///
    /// Requests are running, or the trace cannot be written.
    pub fn switch(&mut self, to: SetupId) -> Result<()> {
        self.setups.switch(to, &mut self.scheduler, &mut self.executor)?;
        log::switched(self.setups.options(to));
        if let (Some(trace), Some((options, eager))) = (&mut self.trace, self.setups.options(to)) {
            trace.setup(options, eager)?;
        }
        Ok(())
    }

    /// Makes a GPU's results depend on the request alone from now on, or lets its libraries choose by the
    /// batch how they compute. Weights and KV stay in place, and the first change captures graphs for the
    /// other way. The prefix cache is emptied, so that no request reads what was computed in the other way.
    ///
    /// # Errors
    ///
    /// Requests are running; the device has only one way to compute, as the CPU does; cuBLASLt is not
    /// there; or the device has a fault.
    pub fn set_deterministic(&mut self, yes: bool) -> Result<()> {
        ensure!(
            !self.has_unfinished(),
            "requests are running: how the device computes is changed between them"
        );
        if yes != self.info.deterministic {
            self.executor.set_deterministic(yes)?;
            self.scheduler.clear_prefix_cache();
            self.info.deterministic = yes;
        }
        Ok(())
    }

    /// How the steps of the target ran, and those of the draft model.
    pub fn run_counts(&mut self) -> (&RunCounts, Option<&RunCounts>) {
        self.executor.counts()
    }

    /// The state of the control that prices drafts: what it has learnt, and what it decided last.
    pub fn draft_report(&self) -> Option<DraftReport> {
        self.scheduler.draft_control().map(DraftControl::report)
    }

    /// From the next [`switch`](Self::switch) on, shadows this share of the replayed steps of every setup:
    /// they are also run eagerly, and the results are compared. With `raise` a difference fails the step.
    pub fn set_shadowing(&mut self, rate: f64, raise: bool) {
        self.setups.set_shadowing(rate, raise, self.seed);
    }

    /// What shadowing has seen in all setups; `None` if nothing is shadowed.
    pub fn canary_report(&self) -> Option<CanaryReport> {
        self.setups.canary_report(self.executor.canary())
    }

    /// The number of context tokens that a query behind `len` tokens reads, as a mean over the model's
    /// layers.
    pub fn context_read(&self, len: u32) -> u32 {
        self.scheduler.context_read(len)
    }

    /// The plan and the record of the last step.
    pub fn last_step(&self) -> (&StepPlan, &ExecutionRecord) {
        (&self.plan, &self.outcome.record)
    }

    /// Sets whether drafts behind a rejected one are judged too, for the metrics that count them. Judging
    /// them takes time.
    pub fn count_noncausal(&mut self, yes: bool) {
        self.executor.count_noncausal(yes);
    }

    /// Keeps the logits that every later token is chosen from, for [`take_logits`](Self::take_logits).
    pub fn keep_logits(&mut self) {
        self.executor.keep_logits(true);
    }

    /// Sets whether the logits and the hidden states of every later token are kept.
    pub fn keep_states(&mut self, keep: bool) {
        self.executor.keep_logits(keep);
        self.executor.keep_hidden(keep);
    }

    /// The logits that each token of a sample was chosen from, if they are kept.
    pub fn take_logits(&mut self, id: RequestId) -> Vec<Vec<f32>> {
        let sequence = self.sequences.get_mut(id.0);
        sequence.map(Sequence::take_logits).unwrap_or_default()
    }

    /// The hidden states after the final norm from which those logits were computed, if they are kept.
    pub fn take_hidden(&mut self, id: RequestId) -> Vec<Vec<f32>> {
        let sequence = self.sequences.get_mut(id.0);
        sequence.map(Sequence::take_hidden).unwrap_or_default()
    }

    /// Makes the system back the KV cache and the buffers of the largest step with physical memory now.
    /// Otherwise it does so when each part is first written, within a step. This takes some tenths of a
    /// second per GiB.
    ///
    /// # Errors
    ///
    /// There is not enough memory.
    pub fn touch(&mut self) -> Result<()> {
        Ok(self.executor.touch()?)
    }

    /// The model on its device, to look into and to plant faults in.
    pub fn runner(&mut self) -> &mut Runner<AnyDevice> {
        self.executor.runner()
    }

    /// Empties the prefix cache. If nothing is running, blocks are then handed out from 0 again.
    pub fn clear_prefix_cache(&mut self) {
        self.scheduler.clear_prefix_cache();
    }
}
