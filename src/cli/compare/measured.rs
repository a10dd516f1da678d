//! What one of the compared runs came to.

use pagedraft_spec_decode::metrics::SpeculationMetrics;
use pagedraft_workloads::latency::Spread;

use super::batch::Pass;
use super::parity::Parity;
use crate::cli::step_figures::StepCounts;

/// One run: its timed batches, and whether it gave what the reference gave.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Seconds of each timed batch, in order.
    pub latencies: Vec<f64>,
    steps_seconds: f64,
    model_seconds: f64,
    /// Of the timed batches.
    pub metrics: SpeculationMetrics,
    /// Times a request of the timed batches was preempted.
    pub preemptions: u64,
    pub target: StepCounts,
    pub draft: StepCounts,
    pub parity: Parity,
}

impl Measured {
    pub fn new(requests: usize) -> Self {
        Self {
            latencies: Vec::new(),
            steps_seconds: 0.0,
            model_seconds: 0.0,
            metrics: SpeculationMetrics::default(),
            preemptions: 0,
            target: StepCounts::default(),
            draft: StepCounts::default(),
            parity: Parity::new(requests),
        }
    }

    /// Takes in a timed batch.
    pub fn add(&mut self, pass: &Pass) {
        self.latencies.push(pass.latency);
        self.steps_seconds += pass.steps_seconds;
        self.model_seconds += pass.model_seconds;
        self.metrics.merge(&pass.metrics);
        self.preemptions += pass.preemptions;
        self.target.add(&pass.target);
        self.draft.add(&pass.draft);
    }

    /// The spread of the latencies; `None` before the first.
    pub fn spread(&self) -> Option<Spread> {
        Spread::of(&self.latencies)
    }

    /// Mean latency of `other` / mean latency of this run.
    pub fn speedup_over(&self, other: &Self) -> Option<f64> {
        Some(other.spread()?.mean() / self.spread()?.mean())
    }

    /// Median of the ratios of batches that ran side by side: what drifts on the machine drops out.
    pub fn paired_speedup_over(&self, other: &Self) -> Option<f64> {
        let ratios: Vec<f64> = other.latencies.iter().zip(&self.latencies).map(|(o, own)| o / own).collect();
        Some(Spread::of(&ratios)?.median())
    }

    /// The share of the steps' time that is neither proposing nor the target's forward pass and head: scheduling,
    /// metadata, sampling and verification, book-keeping.
    pub fn share_outside_model(&self) -> Option<f64> {
        (self.steps_seconds > 0.0).then(|| (1.0 - self.model_seconds / self.steps_seconds).max(0.0))
    }

    /// Drafts of a verify row, mean.
    pub fn drafts_per_row(&self) -> Option<f64> {
        let rows = self.metrics.num_verify_rows;
        (rows > 0).then(|| self.metrics.num_draft_tokens as f64 / rows as f64)
    }
}
