//! Measures what a step of decoding sequences costs without a model.

use std::collections::HashMap;
use std::time::Instant;

use anyhow::{anyhow, ensure};
use pagedraft::exit::usage;
use pagedraft::memory_need::{books, ensure_fits};
use pagedraft_scheduler::fake::{FakeExecutor, Script};
use pagedraft_scheduler::{
    Applied, Executor, RequestKey, RequestSpec, Scheduler, SchedulerConfig, StepOutcome, StepPlan,
};
use serde_json::{Value, json};

use super::plan_inputs::PlanInputs;
use super::samples::Samples;
use crate::allocations::counted;
use crate::cli::{Ended, interrupt};

/// The number of prompt tokens of a request.
const PROMPT: u32 = 512;
/// The number of steps in decode before those that are timed, in which buffers grow.
const WARM_UP: u32 = 64;
/// With `--churn`, a request lasts 64 to 319 steps, evenly spread. Requests that are there when the
/// measurement begins have 1 to 256 steps left. So about one in 192 ends in each step, whatever their
/// number and their drafts.
const LIFE: (u32, u32) = (64, 256);
/// The number of prompt tokens per step and sequence that this needs: somewhat more than twice 512 / 192.
const CHURN_BUDGET: u32 = 6;
/// The most tokens of all sequences together. Their ids alone then take 16 GiB.
const MOST_TOKENS: u64 = 1 << 32;
/// The most tokens of one sequence.
const LONGEST: u64 = 1 << 22;

/// The options of the measurement.
pub struct Steady {
    pub running: u32,
    pub steps: u32,
    pub drafts: u16,
    pub block_size: u32,
    pub churn: bool,
}

struct Bench<'a> {
    asked: &'a Steady,
    /// The number of output tokens of a request.
    output: u32,
    scheduler: Scheduler,
    fake: FakeExecutor,
    inputs: PlanInputs,
    plan: StepPlan,
    outcome: StepOutcome<()>,
    applied: Vec<Applied>,
    submitted: u32,
    /// The number of steps of the measurement so far; `None` before it begins.
    measured: Option<u64>,
    /// With `--churn`, the step of the measurement in which each request ends.
    last_step: HashMap<RequestKey, u64>,
    /// The number of requests that ended in the measurement.
    gone: u64,
}

impl Steady {
    /// Runs the measurement to its last step or to Ctrl-C.
    pub fn run(&self) -> anyhow::Result<(String, Value, Ended)> {
        let mut bench = Bench::new(self)?;
        interrupt::listen()?;
        let mut warm_up = (Samples::new(0), 0);
        let (mut together, mut steps) = (0, 0);
        while together < WARM_UP && !interrupt::pressed() {
            ensure!(
                steps < self.filling() + WARM_UP,
                "the {} sequences never all came to decode",
                self.running
            );
            bench.step(&mut warm_up.0, &mut warm_up.1)?;
            let all = bench.plan.rows.len() == self.running as usize
                && bench.plan.rows.iter().all(|row| row.samples);
            together += u32::from(all);
            steps += 1;
        }
        bench.measured = Some(0);
        let (mut times, mut allocations) = (Samples::new(self.steps), 0);
        for _ in 0..self.steps {
            if interrupt::pressed() {
                break;
            }
            bench.step(&mut times, &mut allocations)?;
        }
        let (text, json) = self.report(&times, allocations, &bench);
        let whole = times.count() == u64::from(self.steps);
        Ok((text, json, if whole { Ended::Done } else { Ended::Interrupted }))
    }

    fn report(&self, times: &Samples, allocations: u64, bench: &Bench<'_>) -> (String, Value) {
        let per_step = allocations as f64 / times.count().max(1) as f64;
        let mut text = format!(
            "{} running, {} steps, {} drafts, blocks of {}{}\n{:<14}{:>10}{:>10}{:>10}\n",
            self.running,
            times.count(),
            self.drafts,
            self.block_size,
            if self.churn { format!(", {} requests came and went", bench.gone) } else { String::new() },
            "us a step",
            "mean",
            "p50",
            "p99",
        );
        let mut json = json!({
            "running": self.running,
            "steps": times.count(),
            "num_speculative_tokens": self.drafts,
            "block_size": self.block_size,
            "churn": self.churn,
            "requests_ended": bench.gone,
            "warm_up_steps": WARM_UP,
            "heap_allocations_per_step": per_step,
            "revision": pagedraft::REVISION,
        });
        for (name, [mean, p50, p99]) in times.figures() {
            text.push_str(&format!("{name:<14}{mean:>10.2}{p50:>10.2}{p99:>10.2}\n"));
            json[format!("{name}_us")] = json!({"mean": mean, "p50": p50, "p99": p99});
        }
        text.push_str(&format!("heap allocations a step: {per_step:.3}\n"));
        (text, json)
    }
}

impl Steady {
    fn prefill_budget(&self) -> u64 {
        2048 + if self.churn { u64::from(self.running) * u64::from(CHURN_BUDGET) } else { 0 }
    }

    /// A generous bound on the number of steps in which all prompts are computed.
    fn filling(&self) -> u32 {
        let prompts = u64::from(self.running) * u64::from(PROMPT);
        1000 + u32::try_from(prompts.div_ceil(self.prefill_budget())).unwrap_or(u32::MAX / 4)
    }

    /// A number of output tokens that no request reaches.
    fn endless(&self) -> u64 {
        let measured = if self.churn { LIFE.0 + LIFE.1 } else { self.steps };
        let steps = u64::from(measured) + u64::from(self.filling()) + u64::from(WARM_UP);
        steps * (u64::from(self.drafts / 2) + 1)
    }

    /// The configuration, and the number of output tokens of a request.
    fn config(&self) -> anyhow::Result<(SchedulerConfig, u32)> {
        let (running, tokens_a_step) = (u64::from(self.running), u64::from(self.drafts) + 1);
        let longest = u64::from(PROMPT) + self.endless() + tokens_a_step;
        let num_blocks = running * (longest.div_ceil(u64::from(self.block_size)) + 1);
        let fits = longest <= LONGEST && running * longest <= MOST_TOKENS;
        let fitting = [num_blocks, longest, running * tokens_a_step + self.prefill_budget(), self.endless()]
            .map(|n| u32::try_from(n).ok().filter(|_| fits));
        let [Some(num_blocks), Some(max_model_len), Some(max_num_batched_tokens), Some(output)] = fitting
        else {
            let advice = if self.churn { "ask for fewer" } else { "ask for fewer steps, or for --churn" };
            return Err(usage(anyhow!(
                "{running} sequences would come to {longest} tokens each in {} steps; {LONGEST} each, and {MOST_TOKENS} \
                 in all, are the most: {advice}",
                self.steps
            )));
        };
        let bytes = 4 * u128::from(running) * u128::from(longest) + books(num_blocks, 1);
        ensure_fits(&format!("--running {running} with {longest} tokens each"), bytes)?;
        let config = SchedulerConfig {
            block_size: self.block_size,
            num_blocks,
            max_num_seqs: self.running,
            max_num_batched_tokens,
            max_model_len,
            num_speculative_tokens: self.drafts,
            ..SchedulerConfig::default()
        };
        Ok((config, output))
    }
}

impl<'a> Bench<'a> {
    fn new(asked: &'a Steady) -> anyhow::Result<Self> {
        let (config, output) = asked.config()?;
        let mut bench = Self {
            asked,
            output,
            scheduler: Scheduler::new(config)?,
            fake: FakeExecutor::new(),
            inputs: PlanInputs::new(asked.block_size)?,
            plan: StepPlan::default(),
            outcome: StepOutcome::default(),
            applied: Vec::new(),
            submitted: 0,
            measured: None,
            last_step: HashMap::new(),
            gone: 0,
        };
        for _ in 0..asked.running {
            bench.submit()?;
        }
        Ok(bench)
    }

    fn submit(&mut self) -> anyhow::Result<()> {
        let number = self.submitted;
        self.submitted = number.wrapping_add(1);
        // The prompts share nothing.
        let script =
            Script { seed: u64::from(number), accepted: vec![self.asked.drafts / 2], ..Script::default() };
        let prompt: Vec<u32> = (0..PROMPT).map(|i| script.token(1_000_000 + i)).collect();
        let key = self.scheduler.submit(RequestSpec::new(prompt, self.output))?;
        self.fake.insert(key, PROMPT, script);
        if self.asked.churn {
            let spread = u64::from(number.wrapping_mul(97) % LIFE.1);
            let last = match self.measured {
                None => spread,
                Some(now) => now + u64::from(LIFE.0) + spread,
            };
            self.last_step.insert(key, last);
        }
        Ok(())
    }

    fn step(&mut self, times: &mut Samples, allocations: &mut u64) -> anyhow::Result<()> {
        let start = Instant::now();
        counted(allocations, || self.scheduler.step(&mut self.plan))?;
        let planned = Instant::now();
        counted(allocations, || self.inputs.build(&self.plan, &self.scheduler))?;
        let built = Instant::now();
        self.fake.execute(&self.plan, &self.scheduler, &mut self.outcome)?;
        self.stop();
        let executed = Instant::now();
        counted(allocations, || self.scheduler.apply(&self.outcome, &mut self.applied))?;
        let apply = executed.elapsed().as_secs_f64();
        times.push((planned - start).as_secs_f64(), apply, (built - planned).as_secs_f64());
        if let Some(measured) = &mut self.measured {
            *measured += 1;
        }
        for i in 0..self.applied.len() {
            if self.applied[i].finish.is_some() {
                self.last_step.remove(&self.applied[i].request);
                self.gone += 1;
                self.submit()?;
            }
        }
        Ok(())
    }

    /// Ends the requests whose last step of the measurement this is, as a stop string would.
    fn stop(&mut self) {
        let Some(now) = self.measured.filter(|_| self.asked.churn) else { return };
        for row in &mut self.outcome.rows {
            let ends = self.last_step.get(&row.request).is_some_and(|&last| last <= now);
            // A prompt that is still being computed goes on to its first token.
            row.stop = ends && !row.tokens.is_empty();
        }
    }
}
