//! What choosing draft lengths costs: `step`, `apply` and `observe` with a control and without, and the difference.
//!
//! `auto` is to be compared with `fixed` (drafts), `auto-off` (drafts never pay) with `none`. The goals: a decision
//! takes under 20 µs at 256 running requests; all that a control costs in a step is 1.5 µs at one, 3 µs at 16.
#![allow(missing_docs, clippy::expect_used, reason = "criterion's macro makes public functions")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pagedraft_scheduler::fake::{FakeExecutor, Script};
use pagedraft_scheduler::{
    Applied, CostCurve, DraftControl, Executor, RequestSpec, Scheduler, SchedulerConfig, StepCosts,
    StepOutcome, StepPlan, StepTimes,
};

const PROMPT: u32 = 512;
const OUTPUT: u32 = 4096;
const MAX: u16 = 8;
/// Below so many running requests the caches are cold.
const COLD: u32 = 64;

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    None,
    Fixed,
    Auto,
    AutoOff,
}

struct Engine {
    scheduler: Scheduler,
    fake: FakeExecutor,
    plan: StepPlan,
    outcome: StepOutcome<()>,
    applied: Vec<Applied>,
    steps_left: u32,
    dice: u32,
    /// Read between steps, as a model's weights are: the caches forget the scheduler.
    weights: Vec<u64>,
}

/// What a step took: planning it, and everything that is the scheduler's.
struct Times {
    planned: Duration,
    all: Duration,
}

/// A forward that is nearly free up to `flat` rows.
fn costs(flat: u32, draft: f64) -> StepCosts {
    let curve = |of: f64| CostCurve {
        points: vec![(1, of * 1e4), (flat, of * 1.2e4), (2 * flat, of * 2e4), (4 * flat, of * 4e4)],
        us_per_context: 0.0001,
        us_per_read: 0.0,
    };
    StepCosts {
        target: curve(1.0),
        draft: curve(draft),
        draft_per_step_us: 50.0,
        overhead_us: 200.0,
        proposer_keeps_kv: true,
    }
}

impl Engine {
    fn new(running: u32, mode: Mode) -> Self {
        let config = SchedulerConfig {
            num_blocks: running * (PROMPT + OUTPUT).div_ceil(16) + 64,
            max_num_seqs: running,
            max_num_batched_tokens: 16384,
            max_model_len: PROMPT + OUTPUT,
            num_speculative_tokens: if mode == Mode::None { 0 } else { MAX },
            ..SchedulerConfig::default()
        };
        let mut scheduler = Scheduler::new(config).expect("the configuration is valid");
        if matches!(mode, Mode::Auto | Mode::AutoOff) {
            let costs = costs(4 * running, if mode == Mode::Auto { 0.02 } else { 2.0 });
            scheduler.set_draft_control(Some(DraftControl::new(MAX, &costs)));
        }
        let mut engine = Self {
            scheduler,
            fake: FakeExecutor::new(),
            plan: StepPlan::default(),
            outcome: StepOutcome::default(),
            applied: Vec::new(),
            steps_left: 0,
            dice: 1,
            weights: if running < COLD { vec![1; 1 << 20] } else { Vec::new() },
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

    fn step(&mut self) -> Times {
        let begin = Instant::now();
        self.scheduler.step(&mut self.plan).expect("a plan");
        let planned = begin.elapsed();
        let Ok(()) = self.fake.execute(&self.plan, &self.scheduler, &mut self.outcome);
        self.dice = self.dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let noise = 0.95 + 0.1 * f64::from(self.dice) / f64::from(u32::MAX);
        let (propose_us, execute_us) = (1500.0 * noise, 12_000.0 * noise);
        let times = StepTimes { propose_us, execute_us, total_us: propose_us + execute_us + 200.0 };
        black_box(self.weights.iter().sum::<u64>());
        let begin = Instant::now();
        self.scheduler.apply(&self.outcome, &mut self.applied).expect("the outcome answers the plan");
        self.scheduler.observe(&times);
        let all = planned + begin.elapsed();
        black_box(self.weights.iter().sum::<u64>());
        Times { planned, all }
    }
}

fn times(engine: &mut Engine, running: u32, mode: Mode, steps: u64) -> Vec<Times> {
    (0..steps)
        .map(|_| {
            if engine.steps_left == 0 {
                *engine = Engine::new(running, mode);
            }
            engine.steps_left -= 1;
            engine.step()
        })
        .collect()
}

/// Median and mean, in microseconds.
fn of(each: &[Times], time: impl Fn(&Times) -> Duration) -> (f64, f64) {
    let mut each: Vec<f64> = each.iter().map(|one| time(one).as_secs_f64() * 1e6).collect();
    each.sort_by(f64::total_cmp);
    // The machine's interruptions are left out of the mean.
    let kept = &each[..each.len() * 99 / 100];
    (each[each.len() / 2], kept.iter().sum::<f64>() / kept.len() as f64)
}

fn bench(c: &mut Criterion) {
    let modes =
        [("none", Mode::None), ("auto-off", Mode::AutoOff), ("fixed", Mode::Fixed), ("auto", Mode::Auto)];
    for running in [1, 4, 16, 64, 256, 1000] {
        let mut group = c.benchmark_group(format!("step/{running}"));
        for (name, mode) in modes {
            let mut engine = Engine::new(running, mode);
            let each = times(&mut engine, running, mode, if running < COLD { 2000 } else { 1000 });
            let (planned, all) = (of(&each, |one| one.planned), of(&each, |one| one.all));
            let mean = engine.scheduler.draft_control().map_or(0.0, |control| control.report().last_mean);
            println!(
                "running {running}, {name} ({mean:.1} drafts): median (mean) step {:.2} ({:.2}) us, with apply and observe {:.2} ({:.2}) us",
                planned.0, planned.1, all.0, all.1
            );
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter_custom(|steps| {
                    times(&mut engine, running, mode, steps).iter().map(|one| one.all).sum()
                });
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
