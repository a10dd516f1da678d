//! What the steps of a live run took, by stage, and what they had to do.

use std::collections::BTreeMap;

use pagedraft_workloads::replay::RequestLine;
use pagedraft_workloads::sim::{MeasuredStep, StepCost};

use super::acceptance::Tally;
use super::shapes::Shapes;
use super::way::Way;
use crate::cli::live::{LiveStep, Observe};

/// Looks at every step of the way that is run.
pub struct Meter {
    /// Tokens that the proposer may catch up with in a step.
    catch_up: u32,
    way: Way,
    /// Whether its steps are kept.
    counted: bool,
    run: u64,
    shapes: Shapes,
    accepted: Vec<u32>,
    /// Token rows of the step before.
    rows_before: u32,
    pub steps: Vec<MeasuredStep>,
    pub tallies: BTreeMap<&'static str, Tally>,
    /// Microseconds of steps with prefill, and their token rows; of those without, and their number.
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

    /// The steps to come are of a run of their own.
    pub fn begin(&mut self, way: &Way, counted: bool) {
        self.way = way.clone();
        self.counted = counted;
        self.run += 1;
    }

    /// The way that is run.
    pub fn way(&self) -> &Way {
        &self.way
    }

    /// Seconds that a request alone takes, about.
    pub fn service(&self, prompt: u32, output: u32) -> f64 {
        let mean = |(us, of): (f64, f64)| us / of.max(1.0);
        (f64::from(prompt) * mean(self.prefill) + f64::from(output) * mean(self.decode)) * 1e-6
    }
}

impl Observe for Meter {
    fn line(&mut self, line: &RequestLine) -> anyhow::Result<()> {
        // A replay writes it; the disk is another's.
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
