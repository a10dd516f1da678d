//! Records the work and the times, by stage, of the steps of a live run.

use std::collections::BTreeMap;

use pagedraft_workloads::replay::RequestLine;
use pagedraft_workloads::sim::{MeasuredStep, StepCost};

use super::acceptance::Tally;
use super::shapes::Shapes;
use super::way::Way;
use crate::cli::live::{LiveStep, Observe};

/// Observes every step of the present way of running the engine.
pub struct Meter {
    /// The most tokens that the proposer may catch up with in a step.
    catch_up: u32,
    way: Way,
    /// Whether its steps are recorded.
    counted: bool,
    run: u64,
    shapes: Shapes,
    accepted: Vec<u32>,
    /// The number of token rows of the step before.
    rows_before: u32,
    pub steps: Vec<MeasuredStep>,
    pub tallies: BTreeMap<&'static str, Tally>,
    /// For steps with prefill, their microseconds and token rows; for steps without, their microseconds and
    /// their number.
    prefill: (f64, f64),
    decode: (f64, f64),
}

impl Meter {
    pub fn new(way: Way, catch_up: u32) -> Self {
        Self {
            catch_up,
            way,
            counted: false,
            run: 0,
            shapes: Shapes::default(),
            accepted: Vec::new(),
            rows_before: 0,
            steps: Vec::new(),
            tallies: BTreeMap::new(),
            prefill: (0.0, 0.0),
            decode: (0.0, 0.0),
        }
    }

    /// Says that the next steps belong to a new run.
    pub fn begin(&mut self, way: &Way, counted: bool) {
        self.way = way.clone();
        self.counted = counted;
        self.run += 1;
    }

    /// The present way of running the engine.
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// The seconds that a request of these lengths takes alone, estimated from the steps so far.
    pub fn service(&self, prompt: u32, output: u32) -> f64 {
        let mean = |(us, of): (f64, f64)| us / of.max(1.0);
        (f64::from(prompt) * mean(self.prefill) + f64::from(output) * mean(self.decode)) * 1e-6
    }
}

impl Observe for Meter {
    fn line(&mut self, line: &RequestLine) -> anyhow::Result<()> {
        // The line is serialised because a replay does so too. It is not written, because the speed of the
        // disk does not belong to the engine.
        Ok(serde_json::to_writer(std::io::sink(), line)?)
    }

    fn step(&mut self, step: &LiveStep<'_>) {
        let Self { way, tallies, accepted, .. } = self;
        accepted.clear();
        accepted.extend(step.report.rows.iter().map(|row| u32::from(row.num_accepted)));
        let name = way.proposer.filter(|_| self.counted);
        let mut shape = self.shapes.of_last(
            step.session,
            way.keeps_kv,
            self.catch_up,
            |row| accepted.get(row).copied().unwrap_or(0),
            |drafts| {
                if let Some(name) = name {
                    tallies.entry(name).or_default().add(drafts);
                }
            },
        );
        shape.idle_us = step.idle_ns as f64 * 1e-3;
        shape.rows_before = if step.idle_ns == 0 { self.rows_before } else { 0 };
        self.rows_before = shape.token_rows;
        shape.begun = step.taken;
        shape.ended = step.report.ended.len() as u32;
        let us = step.took_ns as f64 * 1e-3;
        if step.idle_ns == 0 {
            let (sum, of) = match step.report.prefill_tokens {
                0 => (&mut self.decode, 1.0),
                _ => (&mut self.prefill, f64::from(shape.token_rows)),
            };
            (sum.0, sum.1) = (sum.0 + us, sum.1 + of);
        }
        if self.counted {
            let stages = step.stages;
            let known = stages.metadata + stages.propose + stages.execute + stages.sample;
            let took = StepCost {
                schedule: 0.0,
                metadata: stages.metadata,
                propose: stages.propose,
                execute: stages.execute,
                sample: stages.sample,
                other: (us - known).max(0.0),
            };
            let woke_us = step.woke_ns.map(|ns| ns as f64 * 1e-3);
            let proposer = way.proposer.map(str::to_owned);
            self.steps.push(MeasuredStep { shape, took, woke_us, proposer, run: self.run });
        }
    }
}
