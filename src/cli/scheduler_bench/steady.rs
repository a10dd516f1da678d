//! Sequences in decode, and what a step of them costs without a model.

use std::time::Instant;

use anyhow::ensure;
use pagedraft_scheduler::fake::{FakeExecutor, Script};
use pagedraft_scheduler::{
    Applied, Executor, RequestSpec, Scheduler, SchedulerConfig, StepOutcome, StepPlan,
};
use pagedraft_workloads::latency::Spread;
use serde_json::{Value, json};

use super::plan_inputs::PlanInputs;
use crate::allocations::counted;

/// Prompt tokens of a request.
const PROMPT: u32 = 512;
/// Steps in decode before those that are timed, so that buffers have grown.
const WARM_UP: u32 = 64;
/// Output tokens of a request where requests end: 64 to 319, evenly spread, so that some end in every few steps.
const CHURN_OUTPUT: (u32, u32) = (64, 256);

/// What is measured.
pub struct Steady {
    pub running: u32,
    pub steps: u32,
    pub drafts: u16,
    pub block_size: u32,
    pub churn: bool,
}

struct Bench<'a> {
    asked: &'a Steady,
    scheduler: Scheduler,
    fake: FakeExecutor,
    inputs: PlanInputs,
    plan: StepPlan,
    outcome: StepOutcome<()>,
    applied: Vec<Applied>,
    submitted: u32,
}

/// Seconds of each part, step by step.
#[derive(Default)]
struct Times {
    schedule: Vec<f64>,
    metadata: Vec<f64>,
    apply: Vec<f64>,
    allocations: u64,
}

impl Steady {
    pub fn run(&self) -> anyhow::Result<(String, Value)> {
        let mut bench = Bench::new(self)?;
        let mut warm_up = Times::with_capacity(self.steps);
        let mut decoding = 0;
        let most = 1000 + self.running.div_ceil(8);
        for step in 0.. {
            ensure!(step < most, "the {} sequences never all came to decode", self.running);
            bench.step(&mut warm_up)?;
            let all = bench.plan.rows.len() == self.running as usize
                && (self.churn || bench.plan.rows.iter().all(|row| row.samples));
            decoding += u32::from(all);
            if decoding >= WARM_UP {
                break;
            }
        }
        let mut times = Times::with_capacity(self.steps);
        for _ in 0..self.steps {
            bench.step(&mut times)?;
        }
        Ok(self.report(&times, bench.submitted))
    }

    fn report(&self, times: &Times, requests: u32) -> (String, Value) {
        let per_step = times.allocations as f64 / f64::from(self.steps);
        let mut text = format!(
            "{} running, {} steps, {} drafts, blocks of {}{}\n{:<14}{:>10}{:>10}{:>10}\n",
            self.running,
            self.steps,
            self.drafts,
            self.block_size,
            if self.churn { format!(", {requests} requests came and went") } else { String::new() },
            "us a step",
            "mean",
            "p50",
            "p99",
        );
        let mut json = json!({
            "running": self.running,
            "steps": self.steps,
            "num_speculative_tokens": self.drafts,
            "block_size": self.block_size,
            "churn": self.churn,
            "warm_up_steps": WARM_UP,
            "heap_allocations_per_step": per_step,
            "revision": pagedraft::REVISION,
        });
        let total: Vec<f64> =
            (0..times.apply.len()).map(|i| times.schedule[i] + times.metadata[i] + times.apply[i]).collect();
        let parts = [
            ("schedule", &times.schedule),
            ("apply", &times.apply),
            ("metadata", &times.metadata),
            ("total", &total),
        ];
        for (name, seconds) in parts {
            let Some(spread) = Spread::of(seconds) else { continue };
            let [mean, p50, p99] = [spread.mean(), spread.median(), spread.percentile(99.0)].map(|s| s * 1e6);
            text.push_str(&format!("{name:<14}{mean:>10.2}{p50:>10.2}{p99:>10.2}\n"));
            json[format!("{name}_us")] = json!({"mean": mean, "p50": p50, "p99": p99});
        }
        text.push_str(&format!("heap allocations a step: {per_step:.3}\n"));
        (text, json)
    }
}

impl<'a> Bench<'a> {
    fn new(asked: &'a Steady) -> anyhow::Result<Self> {
        let tokens_a_step = u32::from(asked.drafts) + 1;
        let output = if asked.churn { CHURN_OUTPUT.0 + CHURN_OUTPUT.1 } else { asked.endless() };
        let longest = PROMPT + output + tokens_a_step;
        let scheduler = Scheduler::new(SchedulerConfig {
            block_size: asked.block_size,
            num_blocks: asked.running * (longest.div_ceil(asked.block_size) + 1),
            max_num_seqs: asked.running,
            max_num_batched_tokens: (asked.running * tokens_a_step).max(2048) + 2048,
            max_model_len: longest,
            num_speculative_tokens: asked.drafts,
            ..SchedulerConfig::default()
        })?;
        let mut bench = Self {
            asked,
            scheduler,
            fake: FakeExecutor::new(),
            inputs: PlanInputs::new(asked.block_size)?,
            plan: StepPlan::default(),
            outcome: StepOutcome::default(),
            applied: Vec::new(),
            submitted: 0,
        };
        for _ in 0..asked.running {
            bench.submit()?;
        }
        Ok(bench)
    }

    fn submit(&mut self) -> anyhow::Result<()> {
        let number = self.submitted;
        self.submitted += 1;
        // Prompts that share nothing.
        let script =
            Script { seed: u64::from(number), accepted: vec![self.asked.drafts / 2], ..Script::default() };
        let prompt: Vec<u32> = (0..PROMPT).map(|i| script.token(1_000_000 + i)).collect();
        let output = if self.asked.churn {
            CHURN_OUTPUT.0 + number.wrapping_mul(97) % CHURN_OUTPUT.1
        } else {
            self.asked.endless()
        };
        let key = self.scheduler.submit(RequestSpec::new(prompt, output))?;
        self.fake.insert(key, PROMPT, script);
        Ok(())
    }

    fn step(&mut self, times: &mut Times) -> anyhow::Result<()> {
        let allocations = &mut times.allocations;
        let start = Instant::now();
        counted(allocations, || self.scheduler.step(&mut self.plan));
        let planned = Instant::now();
        counted(allocations, || self.inputs.build(&self.plan, &self.scheduler))?;
        let built = Instant::now();
        self.fake.execute(&self.plan, &self.scheduler, &mut self.outcome)?;
        let executed = Instant::now();
        counted(allocations, || self.scheduler.apply(&self.outcome, &mut self.applied))?;
        times.apply.push(executed.elapsed().as_secs_f64());
        times.schedule.push((planned - start).as_secs_f64());
        times.metadata.push((built - planned).as_secs_f64());
        let ended = self.applied.iter().filter(|applied| applied.finish.is_some()).count();
        for _ in 0..ended {
            self.submit()?;
        }
        Ok(())
    }
}

impl Steady {
    /// Output tokens that no request comes to the end of.
    fn endless(&self) -> u32 {
        let tokens_a_step = u32::from(self.drafts / 2) + 1;
        // Prefill takes some steps more, in which the first sequences decode already.
        (self.steps + WARM_UP + 1000 + self.running.div_ceil(8)) * tokens_a_step
    }
}

impl Times {
    fn with_capacity(steps: u32) -> Self {
        let times = || Vec::with_capacity(steps as usize + 1024);
        Self { schedule: times(), metadata: times(), apply: times(), allocations: 0 }
    }
}
