//! Runs a workload from a file through the scheduler, and traces its plans.

use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use pagedraft::exit::usage;
use pagedraft::memory_need::{books, ensure_fits};
use pagedraft_block_manager::KvJournal;
use pagedraft_scheduler::fake::{FakeExecutor, VOCABULARY};
use pagedraft_scheduler::{
    Applied, Executor, KvView, Scheduler, SchedulerConfig, StepId, StepOutcome, StepPlan,
};
use pagedraft_workloads::run::LineFormat;
use pagedraft_workloads::trace::{KvEvents, RequestNames, StepEvent, TimesUs, TraceWriter};
use serde_json::{Value, json};

use super::plan_inputs::PlanInputs;
use super::stated::{self, Coming};
use crate::cli::{Ended, interrupt};

/// The files of a workload run.
pub struct WorkloadRun<'a> {
    pub workload: &'a Path,
    pub config: &'a Path,
    pub directory: &'a Path,
}

impl WorkloadRun<'_> {
    /// Runs to the end of the last request or to Ctrl-C. Returns what to print, the figures, and which of
    /// the two it was.
    pub fn run(&self) -> anyhow::Result<(String, Value, Ended)> {
        let config: SchedulerConfig = stated::read(self.config)?;
        let blocks = format!("{}: num_blocks {}", self.config.display(), config.num_blocks);
        ensure_fits(&blocks, books(config.num_blocks, 1))?;
        let mut drive = Drive::new(&config)
            .with_context(|| format!("{} can't be used", self.config.display()))
            .map_err(usage)?;
        let mut coming = stated::arrivals(self.workload, &drive.scheduler)?;
        let requests = coming.len();
        let flags = serde_json::to_value(&config).context("can't write the configuration")?;
        let mut writer = TraceWriter::create(self.directory, &with_origin(flags), LineFormat::Jsonl)
            .map_err(|e| usage(e.into()))?;
        let mut next = 0;
        let (mut steps, mut preemptions, mut tokens) = (0u64, 0, 0);
        interrupt::listen()?;
        while !interrupt::pressed() {
            if !drive.scheduler.has_unfinished() {
                let Some(first) = coming.front() else { break };
                next = next.max(first.step);
                drive.scheduler.skip_to(StepId(next));
            }
            while coming.front().is_some_and(|one| one.step <= next) {
                let Some(one) = coming.pop_front() else { break };
                drive.submit(one)?;
            }
            drive.step(&mut writer)?;
            next += 1;
            steps += 1;
            preemptions += drive.plan.preempted.len();
            tokens += drive.outcome.tokens.len();
        }
        let ended = if drive.scheduler.has_unfinished() || !coming.is_empty() {
            Ended::Interrupted
        } else {
            Ended::Done
        };
        let summary = json!({"command": "bench scheduler", "requests": requests, "steps": steps,
            "preemptions": preemptions, "output_tokens": tokens});
        writer.finish(&summary)?;
        let text = format!(
            "{requests} requests in {steps} steps, {tokens} tokens, {preemptions} preemptions; trace in {}\n",
            self.directory.display()
        );
        Ok((text, summary, ended))
    }
}

fn with_origin(mut config: Value) -> Value {
    config["model_id"] = json!("fake");
    config["revision"] = json!(pagedraft::REVISION);
    config
}

struct Drive {
    scheduler: Scheduler,
    fake: FakeExecutor,
    inputs: PlanInputs,
    plan: StepPlan,
    outcome: StepOutcome<()>,
    applied: Vec<Applied>,
    names: RequestNames,
    /// What entered and left the prefix cache in the step.
    journal: KvJournal,
    tokens: Vec<u32>,
    positions: Vec<u32>,
}

impl Drive {
    fn new(config: &SchedulerConfig) -> anyhow::Result<Self> {
        let mut scheduler = Scheduler::new(config.clone())?;
        scheduler.keep_journal(true);
        Ok(Self {
            scheduler,
            fake: FakeExecutor::new(),
            inputs: PlanInputs::new(config.block_size)?,
            plan: StepPlan::default(),
            outcome: StepOutcome::default(),
            applied: Vec::new(),
            names: RequestNames::default(),
            journal: KvJournal::default(),
            tokens: Vec::new(),
            positions: Vec::new(),
        })
    }

    fn submit(&mut self, one: Coming) -> anyhow::Result<()> {
        let Coming { name, spec, script, .. } = one;
        let length = spec.prompt.len() as u32;
        let key = self
            .scheduler
            .submit(spec)
            .with_context(|| format!("request {name:?} is refused"))
            .map_err(usage)?;
        self.fake.insert(key, length, script);
        self.names.insert(key, name);
        Ok(())
    }

    fn step(&mut self, writer: &mut TraceWriter) -> anyhow::Result<()> {
        let start = Instant::now();
        self.scheduler.step(&mut self.plan)?;
        let planned = Instant::now();
        self.inputs.build(&self.plan, &self.scheduler)?;
        let built = Instant::now();
        self.fake.execute(&self.plan, &self.scheduler, &mut self.outcome)?;
        self.gather();
        self.scheduler.apply(&self.outcome, &mut self.applied)?;
        self.names.note(&self.plan, &self.applied);
        let metadata = self.inputs.builder.finish();
        self.scheduler.drain_journal(&mut self.journal);
        writer.write(&StepEvent {
            first_step: 0,
            replica: None,
            plan: &self.plan,
            outcome: &self.outcome.rows,
            tokens: &self.outcome.tokens,
            applied: &self.applied,
            names: &self.names,
            finished: self.names.finished(),
            time_us: TimesUs {
                schedule: (planned - start).as_secs_f64() * 1e6,
                metadata: (built - planned).as_secs_f64() * 1e6,
                ..TimesUs::default()
            },
            mode: "eager",
            graph_key: None::<&()>,
            input_tokens: &self.tokens,
            input_positions: &self.positions,
            plan_rows: &self.inputs.order,
            metadata,
            groups: None::<&()>,
            pool: self.scheduler.stats().pool.into(),
            by_group: None,
            kv_events: KvEvents { journal: &self.journal, groups: self.scheduler.blocks().groups() },
        })?;
        Ok(())
    }

    /// The inputs of the step: known tokens, and drafts that are right as far as they will be accepted.
    fn gather(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        for &i in &self.inputs.order {
            let (row, outcome) = (&self.plan.rows[i as usize], &self.outcome.rows[i as usize]);
            let known = self.scheduler.tokens(row.request);
            self.tokens.extend_from_slice(&known[row.tokens.start as usize..row.tokens.end as usize]);
            let emitted = &self.outcome.tokens[outcome.tokens.start as usize..outcome.tokens.end as usize];
            self.tokens.extend((0..outcome.num_drafts).map(|draft| match emitted.get(usize::from(draft)) {
                Some(&right) if draft < outcome.num_accepted => right,
                right => (right.copied().unwrap_or(0) + 1) % VOCABULARY,
            }));
            self.positions.extend(row.tokens.start..row.tokens.end + u32::from(outcome.num_drafts));
        }
    }
}
