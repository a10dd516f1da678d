//! What a step costs without a model: `step` and `apply` at 64, 256 and 1,000 decoding requests.
//!
//! A model of two KV groups, one of them with a window, is measured beside one of a single group: it may cost half as
//! much again at most.
//!
//! Besides criterion's estimate each case prints the median and the 99th percentile of single steps, which the
//! goals are set in: p99 of 50 µs at 256, of 200 µs at 1,000.
#![allow(missing_docs, clippy::expect_used, reason = "criterion's macro makes public functions")]

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use pagedraft_block_manager::{GroupId, KvGroup};
use pagedraft_scheduler::fake::{FakeExecutor, Script};
use pagedraft_scheduler::{
    Applied, Executor, RequestSpec, Scheduler, SchedulerConfig, StepOutcome, StepPlan,
};

const PROMPT: u32 = 512;
const OUTPUT: u32 = 2048;

/// Tokens that the windowed group of the model of two groups sees.
const WINDOW: u32 = 256;

#[derive(Clone, Copy)]
struct Case {
    running: u32,
    drafts: u16,
    two_groups: bool,
}

impl Case {
    fn groups(self) -> Vec<KvGroup> {
        let full = KvGroup::dense(4, 64);
        let window =
            KvGroup { id: GroupId(1), name: "window".to_owned(), window: Some(WINDOW), ..full.clone() };
        if self.two_groups { vec![full, window] } else { vec![full] }
    }
}

struct Engine {
    scheduler: Scheduler,
    fake: FakeExecutor,
    plan: StepPlan,
    outcome: StepOutcome<()>,
    applied: Vec<Applied>,
    steps_left: u32,
}

impl Engine {
    /// `running` requests, all of them decoding.
    fn new(case: Case) -> Self {
        let Case { running, drafts, .. } = case;
        let config = SchedulerConfig {
            num_blocks: running * (PROMPT + OUTPUT).div_ceil(16) + 64,
            max_num_seqs: running,
            max_num_batched_tokens: 8192,
            max_model_len: PROMPT + OUTPUT,
            num_speculative_tokens: drafts,
            groups: case.groups(),
            ..SchedulerConfig::default()
        };
        let scheduler = Scheduler::new(config).expect("the configuration is valid");
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
            let spec = RequestSpec::new(prompt, OUTPUT);
            let key = engine.scheduler.submit(spec).expect("the prompt fits");
            let script = Script { accepted: vec![drafts / 2], seed: u64::from(request), ..Script::default() };
            engine.fake.insert(key, PROMPT, script);
        }
        while engine.scheduler.stats().waiting > 0 {
            engine.step();
        }
        engine.steps_left = (OUTPUT / 2) / (1 + u32::from(drafts / 2));
        engine
    }

    fn step(&mut self) -> Duration {
        let begin = Instant::now();
        self.scheduler.step(&mut self.plan).expect("a plan");
        let planned = begin.elapsed();
        let Ok(()) = self.fake.execute(&self.plan, &self.scheduler, &mut self.outcome);
        let begin = Instant::now();
        self.scheduler.apply(&self.outcome, &mut self.applied).expect("the outcome answers the plan");
        planned + begin.elapsed()
    }
}

/// The time of each of `steps` steps.
fn times(engine: &mut Engine, case: Case, steps: u64) -> Vec<Duration> {
    (0..steps)
        .map(|_| {
            if engine.steps_left == 0 {
                *engine = Engine::new(case);
            }
            engine.steps_left -= 1;
            engine.step()
        })
        .collect()
}

fn bench(c: &mut Criterion) {
    for (drafts, two_groups) in [(0, false), (4, false), (0, true), (4, true)] {
        let groups = if two_groups { "/2_groups" } else { "" };
        let mut group = c.benchmark_group(format!("step+apply{groups}/{drafts}_drafts"));
        for running in [64, 256, 1000] {
            let case = Case { running, drafts, two_groups };
            let mut engine = Engine::new(case);
            let mut each = times(&mut engine, case, 4000);
            each.sort_unstable();
            println!(
                "running {running}{groups}, drafts {drafts}: median {:?}, p99 {:?}",
                each[each.len() / 2],
                each[each.len() * 99 / 100]
            );
            group.bench_function(BenchmarkId::from_parameter(running), |b| {
                b.iter_custom(|steps| times(&mut engine, case, steps).iter().sum());
            });
        }
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
