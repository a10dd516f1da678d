//! The engines that a trace is of.

use std::collections::BTreeMap;

use super::lives::Lives;
use super::{Fault, Rule, TraceConfig};
use crate::trace::StepRecord;

/// What is carried from step to step, of each engine for itself.
pub(super) struct Engines<'a> {
    config: &'a TraceConfig,
    /// Those that a step was of.
    seen: BTreeMap<u32, Engine>,
}

/// One of them.
pub(super) struct Engine {
    pub(super) lives: Lives,
    /// Blocks that were used after its last step.
    pub(super) blocks_held: u64,
}

impl<'a> Engines<'a> {
    pub(super) fn new(config: &'a TraceConfig) -> Self {
        Self { config, seen: BTreeMap::new() }
    }

    /// The engine that a step is of.
    pub(super) fn of(&mut self, step: &StepRecord) -> Result<&mut Engine, Fault> {
        let count = self.config.replicas;
        let replica = match step.replica {
            None if count == 1 => 0,
            Some(replica) if replica < count => replica,
            other => {
                let is = other.map_or("not said".to_owned(), |replica| replica.to_string());
                return Err(Fault::new(
                    Rule::Replica,
                    format!("replica is {is}, the configuration has {count} engines"),
                ));
            }
        };
        for (other, engine) in self.seen.iter().filter(|(other, _)| **other != replica) {
            if let Some(row) = step.rows.iter().find(|row| engine.lives.has_seen(&row.request_id)) {
                let what = format!("has a row of engine {replica}, and had one of engine {other}");
                return Err(Fault::of(Rule::Replica, &row.request_id, what));
            }
        }
        Ok(self.engine(replica))
    }

    fn engine(&mut self, replica: u32) -> &mut Engine {
        let config = self.config;
        self.seen.entry(replica).or_insert_with(|| Engine { lives: Lives::new(config), blocks_held: 0 })
    }

    /// New engines go on with the run at step `first`.
    pub(super) fn resume(&mut self, first: u64) -> Result<(), Fault> {
        if self.config.replicas == 1 {
            // Also before its first step: numbers go on from here.
            self.engine(0);
        }
        for engine in self.seen.values_mut() {
            engine.lives.resume(first)?;
            engine.blocks_held = 0;
        }
        Ok(())
    }

    /// How many there are steps of.
    pub(super) fn count(&self) -> u64 {
        self.seen.len() as u64
    }

    pub(super) fn requests_seen(&self) -> u64 {
        self.seen.values().map(|engine| engine.lives.requests_seen()).sum()
    }

    pub(super) fn blocks_held(&self) -> u64 {
        self.seen.values().fold(0, |sum, engine| sum.saturating_add(engine.blocks_held))
    }
}
