//! The results of one of the compared runs.

use std::time::Duration;

use pagedraft_spec_decode::StageTimes;
use pagedraft_spec_decode::metrics::SpeculationMetrics;
use pagedraft_workloads::latency::Spread;

use serde::Serialize;

use super::batch::Pass;
use super::parity::Parity;
use crate::cli::step_figures::StepCounts;

/// The milliseconds that a step spent in each stage, by the host's clock.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct StageMs {
    pub metadata: f64,
    pub propose: f64,
    pub execute: f64,
    pub sample: f64,
}

/// The milliseconds that the device worked on each stage of a step, by its own clock.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct DeviceMs {
    /// Copying the target's metadata and other inputs.
    pub inputs: f64,
    /// The target's forward pass, with logits.
    pub forward: f64,
    /// Choosing tokens, which also decides which drafts are accepted.
    pub choice: f64,
    /// All work of the draft model.
    pub draft: f64,
}

/// One run: its timed batches, and whether it gave the reference's results.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The seconds of each timed batch, in order.
    pub latencies: Vec<f64>,
    steps_seconds: f64,
    steps: u64,
    stages: StageTimes,
    /// The metrics of the timed batches.
    pub metrics: SpeculationMetrics,
    /// How often a request of the timed batches was preempted.
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
            steps: 0,
            stages: StageTimes::default(),
            metrics: SpeculationMetrics::default(),
            preemptions: 0,
            target: StepCounts::default(),
            draft: StepCounts::default(),
            parity: Parity::new(requests),
        }
    }

    /// Adds a timed batch.
    pub fn add(&mut self, pass: &Pass) {
        self.latencies.push(pass.latency);
        self.steps_seconds += pass.steps_seconds;
        self.steps += pass.steps;
        self.stages.add(&pass.stages);
        self.metrics.merge(&pass.metrics);
        self.preemptions += pass.preemptions;
        self.target.add(&pass.target);
        self.draft.add(&pass.draft);
    }

    /// The spread of the latencies; `None` before the first batch.
    pub fn spread(&self) -> Option<Spread> {
        Spread::of(&self.latencies)
    }

    /// The mean latency of `other` divided by the mean latency of this run.
    pub fn speedup_over(&self, other: &Self) -> Option<f64> {
        Some(other.spread()?.mean() / self.spread()?.mean())
    }

    /// The median of the ratios of batches that ran side by side. Slow changes of the machine's speed
    /// cancel out in it.
    pub fn paired_speedup_over(&self, other: &Self) -> Option<f64> {
        let ratios: Vec<f64> = other.latencies.iter().zip(&self.latencies).map(|(o, own)| o / own).collect();
        Some(Spread::of(&ratios)?.median())
    }

    /// The share of the steps' time that is neither proposing nor the target's forward pass with logits. It
    /// is scheduling, metadata, sampling, verification and book-keeping.
    pub fn share_outside_model(&self) -> Option<f64> {
        let model_seconds = (self.stages.propose + self.stages.execute) * 1e-6;
        (self.steps_seconds > 0.0).then(|| (1.0 - model_seconds / self.steps_seconds).max(0.0))
    }

    /// The milliseconds of a step by stage, as a mean over all steps, by the host's clock.
    pub fn stage_ms(&self) -> Option<StageMs> {
        let of = |us: f64| us / self.steps as f64 * 1e-3;
        let StageTimes { metadata, propose, execute, sample } = self.stages;
        (self.steps > 0).then(|| StageMs {
            metadata: of(metadata),
            propose: of(propose),
            execute: of(execute),
            sample: of(sample),
        })
    }

    /// The milliseconds that the device worked on a step, as a mean over all steps, by its own clock;
    /// `None` if it has no clock.
    pub fn device_ms(&self) -> Option<DeviceMs> {
        let target = self.target.stages.filter(|_| self.steps > 0)?;
        let of = |time: Duration| time.as_secs_f64() / self.steps as f64 * 1e3;
        Some(DeviceMs {
            inputs: of(target.inputs),
            forward: of(target.forward),
            choice: of(target.choice),
            draft: of(self.draft.stages.unwrap_or_default().total()),
        })
    }

    /// The mean number of drafts of a verify row.
    pub fn drafts_per_row(&self) -> Option<f64> {
        let rows = self.metrics.num_verify_rows;
        (rows > 0).then(|| self.metrics.num_draft_tokens as f64 / rows as f64)
    }
}
