//! What choosing draft lengths costs: `step` and `apply` with a control and without, and the difference.
//!
//! The goal is set on the decision: under 20 µs at 256 running requests.
#![allow(missing_docs, clippy::expect_used, reason = "criterion's macro makes public functions")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pagedraft_scheduler::fake::{FakeExecutor, Script};
use pagedraft_scheduler::{
    Applied, CostCurve, DraftControl, Executor, RequestSpec, Scheduler, SchedulerConfig, StepCosts,
    StepOutcome, StepPlan,
};

const PROMPT: u32 = 512;
const OUTPUT: u32 = 4096;
const MAX: u16 = 8;

struct Engine {
    scheduler: Scheduler,
    fake: FakeExecutor,
    plan: StepPlan,
    outcome: StepOutcome<()>,
    applied: Vec<Applied>,
    steps_left: u32,
}

/// A forward that is nearly free up to `flat` rows.
fn costs(flat: u32) -> StepCosts {
    let curve = |of: f64| CostCurve {
        points: vec![(1, of * 1e4), (flat, of * 1.2e4), (2 * flat, of * 2e4), (4 * flat, of * 4e4)],
        us_per_context: 0.001,
    };
    StepCosts {
        target: curve(1.0),
        draft: curve(0.05),
        draft_per_step_us: 50.0,
        overhead_us: 200.0,
        proposer_keeps_kv: true,
    }
}

impl Engine {
    fn new(running: u32, auto: bool) -> Self {
        let config = SchedulerConfig {
            num_blocks: running * (PROMPT + OUTPUT).div_ceil(16) + 64,
            max_num_seqs: running,
            max_num_batched_tokens: 16384,
            max_model_len: PROMPT + OUTPUT,
            num_speculative_tokens: MAX,
            ..SchedulerConfig::default()
        };
        let mut scheduler = Scheduler::new(config).expect("the configuration is valid");
        if auto {
            scheduler.set_draft_control(Some(DraftControl::new(MAX, &costs(4 * running))));
        }
        let mut engine = Self {
            scheduler,
            fake: FakeExecutor::new(),
            plan: StepPlan::default(),
            outcome: StepOutcome::default(),
            applied: Vec::new(),
            steps_left: 0,
        };
        for request in 0..running {
            let prompt = (0..PROMPT).map(|i| request * PROMPT + i).collect();
            let key = engine.scheduler.submit(RequestSpec::new(prompt, OUTPUT)).expect("the prompt fits");
            // Every request has an acceptance of its own, so that many groups are there to choose from.
            let accepted = (0..64u32).map(|i| (i.wrapping_mul(request + 7) % 97 % (1 + request % 9)) as u16);
            let script =
                Script { accepted: accepted.collect(), seed: u64::from(request), ..Script::default() };
            engine.fake.insert(key, PROMPT, script);
        }
        while engine.scheduler.stats().waiting > 0 {
            engine.step();
        }
        for _ in 0..100 {
            engine.step();
        }
        engine.steps_left = OUTPUT / (2 + u32::from(MAX)) - 120;
        engine
    }

    fn step(&mut self) -> Duration {
        let begin = Instant::now();
        self.scheduler.step(&mut self.plan);
        let planned = begin.elapsed();
        let Ok(()) = self.fake.execute(&self.plan, &self.scheduler, &mut self.outcome);
        self.scheduler.apply(&self.outcome, &mut self.applied).expect("the outcome answers the plan");
        planned
    }
}

fn times(engine: &mut Engine, running: u32, auto: bool, steps: u64) -> Vec<Duration> {
    (0..steps)
        .map(|_| {
            if engine.steps_left == 0 {
                *engine = Engine::new(running, auto);
            }
            engine.steps_left -= 1;
            engine.step()
        })
        .collect()
}

fn bench(c: &mut Criterion) {
    for (name, auto) in [("fixed", false), ("auto", true)] {
        let mut group = c.benchmark_group(format!("step/{name}"));
        for running in [64, 256, 1000] {
            let mut engine = Engine::new(running, auto);
            let mut each = times(&mut engine, running, auto, 1000);
            each.sort_unstable();
            println!(
                "running {running}, {name}: median {:?}, p99 {:?}",
                each[each.len() / 2],
                each[each.len() * 99 / 100]
            );
            group.bench_function(BenchmarkId::from_parameter(running), |b| {
                b.iter_custom(|steps| times(&mut engine, running, auto, steps).iter().sum());
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
