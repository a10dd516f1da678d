use std::collections::HashMap;

use pagedraft_scheduler::fake::{FakeExecutor, Script};
use pagedraft_scheduler::{Applied, Executor, Kind, RequestSpec, Scheduler, StepOutcome, StepPlan};

use crate::world::{Stream, options, random_stream, run};

/// A row: request, kind, context after it, tokens given.
type Row = (u64, bool, u32, u16);

/// A step: number, beginning, end, rows, preempted.
type Step = (u64, u64, u64, Vec<Row>, u32);

const STEP_NS: u64 = 1_000_000;

/// The loop of a live engine, driven by hand: arrivals that are due, a step, and again.
fn by_hand(stream: &Stream, options: &pagedraft_workloads::sim::SimOptions) -> Vec<Step> {
    let mut scheduler = Scheduler::new(options.scheduler.clone()).unwrap();
    let mut executor = FakeExecutor::new();
    let (mut plan, mut outcome, mut applied) =
        (StepPlan::default(), StepOutcome::default(), Vec::<Applied>::new());
    let (mut now, mut next, mut steps, mut indices) = (0, 0, Vec::new(), HashMap::new());
    while next < stream.len() || scheduler.has_unfinished() {
        if !scheduler.has_unfinished() {
            now = now.max(stream[next].arrival_ns.unwrap());
        }
        while next < stream.len() && stream[next].arrival_ns.unwrap() <= now {
            let request = &stream[next];
            let spec = RequestSpec::new(request.prompt.clone(), request.max_tokens);
            let key = scheduler.submit(spec).unwrap();
            executor.insert(
                key,
                request.prompt.len() as u32,
                Script { seed: request.index, ..Script::default() },
            );
            indices.insert(key, request.index);
            next += 1;
        }
        scheduler.step(&mut plan).unwrap();
        executor.execute(&plan, &scheduler, &mut outcome).unwrap();
        scheduler.apply(&outcome, &mut applied).unwrap();
        let rows = plan.rows.iter().zip(&applied).map(|(row, one)| {
            let prefills = row.kind == Kind::Prefill;
            (indices[&row.request], prefills, row.tokens.end, one.tokens.len() as u16)
        });
        steps.push((plan.id.0, now, now + STEP_NS, rows.collect(), plan.preempted.len() as u32));
        now += STEP_NS;
    }
    steps
}

#[test]
fn steps_are_those_of_an_engine_that_is_driven_by_hand() {
    let mut preempted = 0;
    for seed in 0..12 {
        let mut options = options();
        options.scheduler.num_blocks = 14 + 2 * seed as u32;
        options.scheduler.max_num_seqs = 5 + seed as u32;
        options.scheduler.max_num_batched_tokens = 30 + 5 * seed as u32;
        options.scheduler.prefill_chunk = (seed % 2 == 0).then_some(24);
        let stream = random_stream(seed, 80, 1_500_000, 130, 40);
        let expected = by_hand(&stream, &options);
        let outcome = run(stream, &options);
        assert_eq!(outcome.seen.steps.len(), expected.len(), "seed {seed}");
        // A ticket is the recorder's: whose row it is shows in the context and the tokens, and in when it ends.
        for (step, (number, start, end, rows, gone)) in outcome.seen.steps.iter().zip(&expected) {
            assert_eq!((step.step, step.start_ns, step.end_ns), (*number, *start, *end), "seed {seed}");
            let found: Vec<_> = step.rows.iter().map(|row| (row.context, row.new_tokens)).collect();
            let wanted: Vec<_> = rows.iter().map(|row| (row.2, row.3)).collect();
            assert_eq!(found, wanted, "seed {seed}, step {number}");
            assert_eq!(step.preempted, *gone, "seed {seed}, step {number}");
            assert_eq!(step.decode_rows as usize, rows.iter().filter(|row| !row.1).count());
            preempted += gone;
        }
        let first = |index| expected.iter().find(|s| s.3.iter().any(|r| r.0 == index && r.3 > 0)).unwrap().2;
        for index in 0..80 {
            let found = outcome.line(index).first_token_s.unwrap();
            assert!((found - first(index) as f64 * 1e-9).abs() < 1e-12, "seed {seed}, request {index}");
        }
    }
    assert!(preempted > 10, "only {preempted} were preempted: make the pool smaller");
}
