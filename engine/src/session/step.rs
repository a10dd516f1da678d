//! One step: planned, executed, applied, and handed to the sequences that it made longer.

use std::time::Instant;

use pagedraft_scheduler::{Executor, Kind, StepTimes};

use super::request::{Emitted, SessionStep};
use super::row::{self, StepRow};
use super::sequence::sequence_of;
use super::{Session, log};
use crate::error::Result;

impl Session {
    /// Runs one step.
    ///
    /// # Errors
    ///
    /// The engine has a fault, the canary raised an alarm, or the trace can't be written. If the session
    /// goes on, the requests of a failed step are computed again.
    pub fn step(&mut self) -> Result<SessionStep> {
        if !self.scheduler.has_unfinished() {
            return Ok(SessionStep { idle: true, ..SessionStep::default() });
        }
        let ran = self.run_step();
        match &ran {
            Ok(report) => log::stepped(report, &self.outcome.record),
            Err(error) if error.is_interrupt() => log::step_interrupted(),
            Err(error) => log::step_failed(error),
        }
        ran
    }

    fn run_step(&mut self) -> Result<SessionStep> {
        let start = Instant::now();
        self.restore_prefixes()?;
        self.scheduler.step(&mut self.plan)?;
        self.save_prefixes();
        let schedule = start.elapsed();
        log::preempted(&self.plan, &self.sequences, &self.by_key);
        self.executor.execute(&self.plan, &self.scheduler, &mut self.outcome)?;
        self.collect_kept();
        self.collect_selections()?;
        self.scan_stops()?;
        // This must come before the step is applied, because requests that end with it have no table and no
        // seat afterwards.
        self.note_rows();
        let stats = self.scheduler.stats();
        let mut report = SessionStep {
            step: self.plan.id.0,
            rows: self.plan.rows.len(),
            preempted: self.plan.preempted.len(),
            running: stats.running,
            waiting: stats.waiting,
            pool_during: stats.pool,
            ..SessionStep::default()
        };
        self.scheduler.apply(&self.outcome, &mut self.applied)?;
        self.forget_lost_blocks();
        report.pool = self.scheduler.stats().pool;
        self.collect(&mut report)?;
        self.trace_step(schedule)?;
        self.trace_cuts()?;
        for applied in self.applied.iter().filter(|a| a.finish.is_some()) {
            self.by_key.remove(applied.request);
        }
        report.elapsed = start.elapsed();
        let stages = &report.stages;
        self.scheduler.observe(&StepTimes {
            propose_us: stages.propose,
            execute_us: stages.execute + stages.sample,
            total_us: report.elapsed.as_secs_f64() * 1e6,
        });
        Ok(report)
    }

    /// Cuts the outcome where a stop string was completed.
    fn scan_stops(&mut self) -> Result<()> {
        for row in &mut self.outcome.rows {
            let Some(sequence) = sequence_of(&mut self.sequences, &self.by_key, row.request) else {
                continue;
            };
            let tokens = &self.outcome.tokens[row.tokens.start as usize..row.tokens.end as usize];
            if let Some(kept) = sequence.scan(tokens)? {
                row.tokens.end = row.tokens.start + kept as u32;
                row.stop = true;
            }
        }
        Ok(())
    }

    /// Takes note of the requests that run in the step, and of the blocks that each holds.
    fn note_rows(&mut self) {
        self.rows.clear();
        for row in &self.plan.rows {
            let Some(&id) = self.by_key.get(row.request) else { continue };
            let Some(sequence) = self.sequences.get_mut(id.0) else { continue };
            let cached = self.scheduler.request(row.request).map_or(0, |info| info.num_cached_tokens);
            sequence.hold(row::table(&self.scheduler, row), cached, self.info.block_size);
            self.rows.push(StepRow::planned(id, row, cached));
        }
    }

    /// Adds what the step emitted to its sequences.
    fn collect(&mut self, report: &mut SessionStep) -> Result<()> {
        for row in &self.plan.rows {
            match row.kind {
                Kind::Prefill => report.prefill_tokens += row.tokens.len(),
                _ => report.decode_rows += 1,
            }
        }
        report.replayed = self.outcome.record.is_replayed();
        report.stages = self.outcome.record.time_us;
        report.scoring_us = self.outcome.record.scoring_us;
        let mut rows = self.rows.iter_mut();
        for applied in &self.applied {
            let Some(&id) = self.by_key.get(applied.request) else { continue };
            if let Some(sequence) = self.sequences.get_mut(id.0) {
                sequence.begin(applied);
            }
            if let Some(row) = rows.find(|row| row.id == id) {
                row.apply(applied);
            }
        }
        for (request, why) in &self.outcome.record.faults {
            if let Some(sequence) = sequence_of(&mut self.sequences, &self.by_key, *request) {
                sequence.fail(why);
                log::failed(sequence.output());
            }
        }
        for pass in &self.outcome.record.passes {
            if let Some(sequence) = sequence_of(&mut self.sequences, &self.by_key, pass.request) {
                sequence.take_pass(pass);
            }
        }
        for (request, logprobs) in &self.outcome.record.logprobs {
            if let Some(sequence) = sequence_of(&mut self.sequences, &self.by_key, *request) {
                sequence.logprobs(logprobs);
            }
        }
        for logprobs in &self.outcome.record.prompt_logprobs {
            if let Some(sequence) = sequence_of(&mut self.sequences, &self.by_key, logprobs.request) {
                sequence.prompt_logprobs(logprobs);
            }
        }
        for (request, logits) in self.outcome.record.logits.drain(..) {
            if let Some(sequence) = sequence_of(&mut self.sequences, &self.by_key, request) {
                sequence.logits(logits);
            }
        }
        for (request, hidden) in self.outcome.record.hidden.drain(..) {
            if let Some(sequence) = sequence_of(&mut self.sequences, &self.by_key, request) {
                sequence.hidden(hidden);
            }
        }
        for applied in &self.applied {
            let Some(&id) = self.by_key.get(applied.request) else { continue };
            let Some(sequence) = self.sequences.get_mut(id.0) else { continue };
            let tokens = &self.outcome.tokens[applied.tokens.start as usize..applied.tokens.end as usize];
            let text = sequence.extend(tokens, applied.finish)?;
            if applied.finish.is_some() {
                sequence.note(self.scheduler.request(applied.request));
                log::ended(sequence.output());
            }
            report.emitted.push(Emitted { id, tokens: tokens.to_vec(), text, finish: applied.finish });
        }
        Ok(())
    }
}
