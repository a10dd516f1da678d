//! A step that fails leaves no trace in the metrics, and forgets who ended; time spent looking for drafts is counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pagedraft_model::StepLimits;
use pagedraft_model::cpu::CpuDevice;
use pagedraft_scheduler::{
    Executor, RequestKey, RequestSpec, Scheduler, SchedulerConfig, StepOutcome, StepPlan,
};
use pagedraft_spec_decode::metrics::SpeculationMetrics;
use pagedraft_spec_decode::proposer::{NgramProposer, Proposer, Proposing};
use pagedraft_spec_decode::sampling::SamplingParams;
use pagedraft_spec_decode::{Drafts, ExecuteError, ExecutionRecord, ModelExecutor, Registered};

use crate::tiny;

struct Engine {
    executor: ModelExecutor<CpuDevice>,
    scheduler: Scheduler,
    plan: StepPlan,
    outcome: StepOutcome<ExecutionRecord>,
}

impl Engine {
    fn new(proposer: impl Proposer + Send + 'static) -> Self {
        let limits = StepLimits { token_rows: 256, logit_rows: 64, max_model_len: tiny::MAX_MODEL_LEN };
        let mut executor = ModelExecutor::new(tiny::runner(16, 64, limits, 1), 16).unwrap();
        let id = executor.add_proposer(Box::new(proposer));
        executor.choose_proposer(Some(id));
        let config =
            SchedulerConfig { num_blocks: 64, num_speculative_tokens: 4, ..SchedulerConfig::default() };
        let scheduler = Scheduler::new(config).unwrap();
        Self { executor, scheduler, plan: StepPlan::default(), outcome: StepOutcome::default() }
    }

    fn submit(&mut self, prompt: &[u32], max_tokens: u32) -> RequestKey {
        let key = self.scheduler.submit(RequestSpec::new(prompt.to_vec(), max_tokens)).unwrap();
        self.register(key, prompt.len() as u32);
        key
    }

    fn register(&mut self, key: RequestKey, prompt_len: u32) {
        let sampling = SamplingParams::greedy();
        self.executor.register(key, Registered { sampling, prompt_len, ..Registered::default() });
    }

    fn execute(&mut self) -> Result<(), ExecuteError> {
        self.executor.execute(&self.plan, &self.scheduler, &mut self.outcome)
    }

    fn step(&mut self) {
        self.scheduler.step(&mut self.plan).unwrap();
        self.execute().unwrap();
        self.scheduler.apply(&self.outcome, &mut Vec::new()).unwrap();
    }
}

/// Proposes token 1, unless it fails.
struct Failing(Arc<AtomicBool>);

impl Proposer for Failing {
    fn name(&self) -> &'static str {
        "failing"
    }

    fn propose(&mut self, step: &Proposing<'_>, drafts: &mut Drafts) -> Result<(), ExecuteError> {
        if self.0.load(Ordering::Relaxed) {
            return Err(ExecuteError::Plan { request: RequestKey::default(), what: "it was to fail" });
        }
        (0..step.len()).for_each(|row| drafts.set(row, &[1]));
        Ok(())
    }
}

#[test]
fn who_ended_is_forgotten_though_the_proposer_failed() {
    let fails = Arc::new(AtomicBool::new(false));
    let mut engine = Engine::new(Failing(Arc::clone(&fails)));
    engine.submit(&[1, 2, 3], 9);
    let second = engine.submit(&[4, 5], 9);
    engine.step();
    engine.scheduler.step(&mut engine.plan).unwrap();
    // As if it had ended: it has a row, which tells whether its parameters are still there.
    engine.plan.finished.push(second);
    fails.store(true, Ordering::Relaxed);
    assert!(matches!(engine.execute(), Err(ExecuteError::Plan { .. })));
    engine.plan.finished.clear();
    fails.store(false, Ordering::Relaxed);
    assert!(matches!(engine.execute(), Err(ExecuteError::Unregistered { request }) if request == second));
}

#[test]
fn a_step_that_failed_counts_nowhere() {
    let mut engine = Engine::new(Failing(Arc::default()));
    engine.submit(&[1, 2, 3], 9);
    let second = engine.submit(&[4, 5], 9);
    engine.step();
    assert_eq!(engine.executor.metrics(), &SpeculationMetrics::default());
    engine.scheduler.step(&mut engine.plan).unwrap();
    assert!(engine.plan.rows.iter().all(|row| row.drafts_max > 0));
    // The first row is verified by the time that the second turns out to be unknown.
    engine.plan.finished.push(second);
    assert!(matches!(engine.execute(), Err(ExecuteError::Unregistered { request }) if request == second));
    assert_eq!(engine.executor.metrics(), &SpeculationMetrics::default());
    engine.plan.finished.clear();
    engine.register(second, 2);
    engine.execute().unwrap();
    let metrics = engine.executor.metrics();
    assert_eq!((metrics.num_steps, metrics.num_verify_rows, metrics.num_draft_tokens), (1, 2, 2));
}

#[test]
fn looking_for_drafts_in_vain_takes_time() {
    let mut engine = Engine::new(NgramProposer::new(40, 50).unwrap());
    engine.submit(&[1, 2, 3], 4);
    engine.step();
    assert_eq!(engine.executor.metrics().propose_idle_us, 0.0, "nobody was asked");
    engine.step();
    let metrics = engine.executor.metrics();
    assert!(metrics.propose_idle_us > 0.0, "{metrics:?}");
    assert_eq!(
        metrics,
        &SpeculationMetrics { propose_idle_us: metrics.propose_idle_us, ..Default::default() }
    );
}
