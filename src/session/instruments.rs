//! What benches, comparisons and tests ask of a session, and serving does not: other ways to speculate, logits and states
//! that are kept, shadowing, and the documents of the last step.

use anyhow::ensure;

use pagedraft_model::RunCounts;
use pagedraft_scheduler::{DraftControl, DraftReport, StepPlan};
use pagedraft_spec_decode::ExecutionRecord;
use pagedraft_spec_decode::canary::CanaryReport;

use super::sequence::Sequence;
use super::{RequestId, Session, SetupId, SpeculationOptions, log};

impl Session {
    /// Makes the engine ready to speculate in another way; [`switch`](Self::switch) changes over to it. A draft model must be
    /// the one that the session was opened with.
    ///
    /// # Errors
    ///
    /// Options that do not go together; a fault of the device while costs are measured.
    pub fn prepare(&mut self, options: &SpeculationOptions, enforce_eager: bool) -> anyhow::Result<SetupId> {
        self.setups.prepare(options, enforce_eager, &mut self.executor)
    }

    /// Changes over to a way to speculate; metrics and counts begin anew. What a setup has learnt about its drafts stays with
    /// it.
    ///
    /// # Errors
    ///
    /// Requests are running, or the trace cannot be written.
    pub fn switch(&mut self, to: SetupId) -> anyhow::Result<()> {
        self.setups.switch(to, &mut self.scheduler, &mut self.executor)?;
        log::switched(self.setups.options(to));
        if let (Some(trace), Some((options, eager))) = (&mut self.trace, self.setups.options(to)) {
            trace.setup(options, eager)?;
        }
        Ok(())
    }

    /// Has a GPU's results depend on nothing but the request from here on, or lets its libraries choose by the batch. Weights and KV
    /// are those there are; the first change captures the other way's graphs. The prefix cache is emptied, so that no request reads
    /// what was computed in the other way.
    ///
    /// # Errors
    ///
    /// Requests are running; a device with one way to compute, as the CPU; cuBLASLt is not there; a fault of the device.
    pub fn set_deterministic(&mut self, yes: bool) -> anyhow::Result<()> {
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

    /// How the target's steps ran, and the draft model's own.
    pub fn run_counts(&mut self) -> (&RunCounts, Option<&RunCounts>) {
        self.executor.counts()
    }

    /// What prices the drafts: what it has learnt, and decided last.
    pub fn draft_report(&self) -> Option<DraftReport> {
        self.scheduler.draft_control().map(DraftControl::report)
    }

    /// Shadows this share of the replayed steps of every setup, from the next [`switch`](Self::switch) on: they are run eagerly
    /// as well, and compared. With `raise` a difference fails the step.
    pub fn set_shadowing(&mut self, rate: f64, raise: bool) {
        self.setups.set_shadowing(rate, raise, self.seed);
    }

    /// What shadowing saw in all setups; `None` where nothing is shadowed.
    pub fn canary_report(&self) -> Option<CanaryReport> {
        self.setups.canary_report(self.executor.canary())
    }

    /// Tokens of context that a query behind `len` tokens reads, averaged over the model's layers.
    pub fn context_read(&self, len: u32) -> u32 {
        self.scheduler.context_read(len)
    }

    /// What the last step was executed from.
    pub fn last_step(&self) -> (&StepPlan, &ExecutionRecord) {
        (&self.plan, &self.outcome.record)
    }

    /// Whether drafts behind a miss are judged too, for the metrics that count them (at the cost of judging them).
    pub fn count_noncausal(&mut self, yes: bool) {
        self.executor.count_noncausal(yes);
    }

    /// Keeps the logits that every later token is chosen from, for [`take_logits`](Self::take_logits).
    pub fn keep_logits(&mut self) {
        self.executor.keep_logits(true);
    }

    /// Keeps the logits and the hidden states of every later token, or no longer.
    pub fn keep_states(&mut self, keep: bool) {
        self.executor.keep_logits(keep);
        self.executor.keep_hidden(keep);
    }

    /// The logits each token of a sample was chosen from, where they are kept.
    pub fn take_logits(&mut self, id: RequestId) -> Vec<Vec<f32>> {
        let sequence = self.sequences.get_mut(id.0);
        sequence.map(Sequence::take_logits).unwrap_or_default()
    }

    /// The hidden states, behind the final norm, that those logits were made of, where they are kept.
    pub fn take_hidden(&mut self, id: RequestId) -> Vec<Vec<f32>> {
        let sequence = self.sequences.get_mut(id.0);
        sequence.map(Sequence::take_hidden).unwrap_or_default()
    }

    /// Has the KV cache and the buffers of the largest step backed by memory now: else the system does so when each part is
    /// first written, within a step. Takes some tenths of a second a GiB.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    pub fn touch(&mut self) -> anyhow::Result<()> {
        Ok(self.executor.touch()?)
    }

    /// Forgets every prefix in the cache; where nothing runs, blocks are then handed out from 0 again.
    pub fn clear_prefix_cache(&mut self) {
        self.scheduler.clear_prefix_cache();
    }
}
