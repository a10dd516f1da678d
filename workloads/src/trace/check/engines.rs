//! Keeps the engines of a trace apart.

use std::collections::BTreeMap;

use super::fault::Fault;
use super::lives::Lives;
use super::rule::Rule;
use super::trace_config::TraceConfig;
use crate::trace::{PruneRecord, StepRecord};

/// The state of each engine, which is carried from step to step.
pub(super) struct Engines<'a> {
    config: &'a TraceConfig,
    /// The engines that have made a step.
    seen: BTreeMap<u32, Engine>,
}

/// The state of one engine.
pub(super) struct Engine {
    pub(super) lives: Lives,
    /// The number of blocks in use after its last step.
    pub(super) blocks_held: u64,
}

impl<'a> Engines<'a> {
    pub(super) fn new(config: &'a TraceConfig) -> Self {
        Self { config, seen: BTreeMap::new() }
    }

    /// Checks a record of a pruned prompt, whose request had a row in the step before the line.
    pub(super) fn check_prune(&mut self, record: &PruneRecord) -> Result<(), Fault> {
        let bad = |what: String| Err(Fault::of(Rule::Prune, &record.request_id, what));
        let size = self.config.block_size;
        let (kept, reached) = (record.kept.len() as u32, record.input_seq_len);
        if !record.kept.is_sorted_by(|a, b| a < b) {
            return bad(format!("kept behind layer {} does not ascend", record.layer));
        }
        if kept != record.keep_k
            || kept != record.tokens_kept
            || reached.checked_sub(kept) != Some(record.tokens_pruned)
        {
            return bad(format!(
                "{kept} of {reached} tokens were kept behind layer {}, and the line says {} kept of {} to keep, {} dropped",
                record.layer, record.tokens_kept, record.keep_k, record.tokens_pruned
            ));
        }
        let freed = reached.div_ceil(size) - kept.div_ceil(size);
        if freed != record.blocks_freed {
            return bad(format!("blocks_freed is {}, the counts give {freed}", record.blocks_freed));
        }
        let known = self.seen.values_mut().find_map(|engine| engine.lives.thinned_mut(&record.request_id));
        match known {
            Some(thinned) => thinned.take_kept(record).or_else(bad),
            // It ended with the step.
            None => Ok(()),
        }
    }

    /// The engine that made a step.
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

    /// New engines resume the run at step `first`.
    pub(super) fn resume(&mut self, first: u64) -> Result<(), Fault> {
        if self.config.replicas == 1 {
            // Engine 0 is made even before its first step, so that it knows the number from which steps
            // count.
            self.engine(0);
        }
        for engine in self.seen.values_mut() {
            engine.lives.resume(first)?;
            engine.blocks_held = 0;
        }
        Ok(())
    }

    /// The number of engines that have made a step.
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
