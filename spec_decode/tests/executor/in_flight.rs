//! What happens between draft and verify, and between verify and apply: aborts, and steps that come to nothing.

use std::collections::HashMap;

use pagedraft_block_manager::GroupId;
use pagedraft_model::{CaptureSizes, StepLimits};
use pagedraft_scheduler::{
    Executor, RequestKey, RequestSpec, Scheduler, SchedulerConfig, StepOutcome, StepPlan,
};
use pagedraft_spec_decode::sampling::SamplingParams;
use pagedraft_spec_decode::{ModelExecutor, Registered, Scorer};

use crate::stage::Dice;
use crate::tiny;

const BLOCKS: u32 = 40;
const OUTPUT: u32 = 24;

/// What befalls a step.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mishap {
    None,
    /// A request of the plan is aborted before the step is executed.
    AbortBefore,
    /// It is aborted when its drafts are verified, before that is applied.
    AbortAfter,
    /// The outcome is lost: every request of the step is preempted.
    Lost,
}

struct Engine {
    scheduler: Scheduler,
    executor: ModelExecutor<pagedraft_model::cpu::CpuDevice>,
}

fn engine(drafts: u16, scorer: Scorer, graphs: bool) -> Engine {
    let config = SchedulerConfig {
        num_blocks: BLOCKS,
        max_model_len: tiny::MAX_MODEL_LEN as u32,
        max_num_batched_tokens: 64,
        num_speculative_tokens: drafts,
        groups: tiny::groups(16),
        ..SchedulerConfig::default()
    };
    let mut scheduler = Scheduler::new(config).unwrap();
    scheduler.set_drafts_have_kv(drafts > 0);
    let arena = scheduler.blocks().arena();
    let limits = StepLimits { token_rows: 64, logit_rows: 64, max_model_len: tiny::MAX_MODEL_LEN };
    let mut runner = tiny::runner_in(arena, GroupId(0), 16, limits, 1);
    if graphs {
        runner.capture(&CaptureSizes::new(CaptureSizes::default_token_rows(64), (1..=6).collect())).unwrap();
    }
    let mut executor = ModelExecutor::new(runner, 16).unwrap();
    executor.set_scorer(scorer);
    if drafts > 0 {
        let setup =
            tiny::Setup { num_blocks: BLOCKS, token_rows: 64, catch_up: 64, graphs, ..Default::default() };
        let id = executor.add_proposer(Box::new(tiny::draft_model_in(arena, &setup)));
        executor.choose_proposer(Some(id));
    }
    Engine { scheduler, executor }
}

/// Runs the prompts; what each request gave, and which were aborted.
fn run(
    engine: &mut Engine,
    prompts: &[(Vec<u32>, SamplingParams)],
    dice: &mut Dice,
    percent: u32,
) -> Vec<Option<Vec<u32>>> {
    let Engine { scheduler, executor } = engine;
    let mut outputs: HashMap<RequestKey, Vec<u32>> = HashMap::new();
    let keys: Vec<RequestKey> = prompts
        .iter()
        .map(|(prompt, sampling)| {
            let key = scheduler.submit(RequestSpec::new(prompt.clone(), OUTPUT)).unwrap();
            let (sampling, prompt_len) = (sampling.clone(), prompt.len() as u32);
            executor.register(key, Registered { sampling, prompt_len, ..Registered::default() });
            outputs.insert(key, Vec::new());
            key
        })
        .collect();
    let mut aborted = Vec::new();
    let (mut plan, mut outcome, mut applied) = (StepPlan::default(), StepOutcome::default(), Vec::new());
    while scheduler.has_unfinished() {
        scheduler.step(&mut plan).unwrap();
        let mishap = match dice.percent(percent) {
            false => Mishap::None,
            true => [Mishap::AbortBefore, Mishap::AbortAfter, Mishap::Lost][dice.below(3) as usize],
        };
        let victim = plan.rows[dice.below(plan.rows.len() as u32) as usize].request;
        // Not everybody: somebody has to be left to compare.
        let may = aborted.len() * 2 < prompts.len();
        let mut abort = |scheduler: &mut Scheduler, when| {
            if mishap == when && may && scheduler.abort(victim).unwrap() {
                aborted.push(victim);
            }
        };
        abort(scheduler, Mishap::AbortBefore);
        executor.execute(&plan, &*scheduler, &mut outcome).unwrap();
        abort(scheduler, Mishap::AbortAfter);
        if mishap == Mishap::Lost {
            continue;
        }
        scheduler.apply(&outcome, &mut applied).unwrap();
        for one in &applied {
            let tokens = &outcome.tokens[one.tokens.start as usize..one.tokens.end as usize];
            outputs.get_mut(&one.request).unwrap().extend_from_slice(tokens);
        }
    }
    // The ends reach the executor, and the draft model with it.
    scheduler.step(&mut plan).unwrap();
    assert_eq!(scheduler.stats().pool.used, 0, "blocks are still held");
    keys.iter().map(|key| (!aborted.contains(key)).then(|| outputs.remove(key).unwrap())).collect()
}

#[test]
fn aborts_and_lost_steps_between_draft_and_verify_change_no_token_of_anybody_else() {
    let mut verified = 0;
    for seed in 0..12u64 {
        println!("seed {seed}");
        let mut dice = Dice::new(seed);
        let prompts: Vec<(Vec<u32>, SamplingParams)> = (0..6)
            .map(|i| {
                let len = 1 + dice.below(50);
                let tokens = dice.tokens(len, tiny::VOCAB);
                let sampling = match i % 2 {
                    0 => SamplingParams::greedy(),
                    _ => SamplingParams { temperature: 0.7, seed: 9 + i, ..SamplingParams::default() },
                };
                (tokens, sampling)
            })
            .collect();
        let plain = run(&mut engine(0, Scorer::Mqa, false), &prompts, &mut Dice::new(0), 0);
        for (scorer, graphs) in [(Scorer::Mqa, true), (Scorer::Mqa, false), (Scorer::BatchExpansion, true)] {
            let mut engine = engine(1 + (seed % 5) as u16, scorer, graphs);
            let found = run(&mut engine, &prompts, &mut dice, 25);
            for (i, (found, plain)) in found.iter().zip(&plain).enumerate() {
                if let Some(found) = found {
                    assert_eq!(
                        Some(found),
                        plain.as_ref(),
                        "seed {seed}, request {i}, {scorer}, graphs {graphs}"
                    );
                }
            }
            verified += engine.executor.take_metrics().num_accepted_tokens;
        }
    }
    assert!(verified > 1000, "only {verified} drafts were accepted");
}
