//! A guest that drops prompt tokens on the way up: behind a given layer only the half of a prompt's tokens with the largest
//! residual norm goes on. The engine (mixed batches, chunks, preemption, both scorers, every proposer, graphs) gives the bits
//! of the slow way, which computes the whole sequence anew for every token.

use std::collections::HashMap;
use std::sync::Arc;

use pagedraft_block_manager::{GroupId, KvGroup};
use pagedraft_model::CaptureSizes;
use pagedraft_scheduler::{
    Executor, KvView, RequestKey, RequestSpec, Scheduler, SchedulerConfig, SegmentKv, StepOutcome, StepPlan,
};
use pagedraft_spec_decode::proposer::{NgramProposer, Proposer, SyntheticProposer};
use pagedraft_spec_decode::sampling::SamplingParams;
use pagedraft_spec_decode::{ModelExecutor, Registered, Scorer, Thinning};

use crate::cut::{self, LIMITS, Slow, VOCAB};
use crate::stage::Dice;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    Nobody,
    Ngram,
    Synthetic,
    Draft,
}

/// How the engine runs.
#[derive(Clone, Copy, Debug)]
struct Way {
    num_blocks: u32,
    budget: u32,
    chunk: Option<u32>,
    scorer: Scorer,
    who: Who,
    graphs: bool,
    caching: bool,
}

const PLAIN: Way = Way {
    num_blocks: 200,
    budget: 256,
    chunk: None,
    scorer: Scorer::Mqa,
    who: Who::Nobody,
    graphs: false,
    caching: true,
};

struct Asked {
    prompt: Vec<u32>,
    thins: bool,
    sampling: SamplingParams,
    max_tokens: u32,
}

/// Prompts of all lengths, thinned ones and others.
fn asked(seed: u64, count: usize) -> Vec<Asked> {
    let mut dice = Dice::new(seed);
    (0..count)
        .map(|i| {
            let len = [1, 2, 15, 16, 17, 33, 40, 61][dice.below(8) as usize] + dice.below(3);
            // Few different tokens, so that look-ups find something.
            let prompt = dice.tokens(len, if i % 2 == 0 { 4 } else { VOCAB });
            let sampling = match i % 3 {
                0 => SamplingParams { temperature: 0.8, seed: i as u64, ..SamplingParams::default() },
                _ => SamplingParams::greedy(),
            };
            Asked { prompt, thins: i % 4 != 3, sampling, max_tokens: 1 + dice.below(14) }
        })
        .collect()
}

struct Ran {
    tokens: Vec<Vec<u32>>,
    logits: Vec<Vec<Vec<f32>>>,
    preemptions: u32,
    replays: u64,
    accepted: u64,
    /// Most requests that ran in a step.
    most_running: usize,
}

fn segments() -> Vec<SegmentKv> {
    let segment = |group, hold| SegmentKv { groups: vec![GroupId(group)], hold };
    vec![segment(0, Some(GroupId(2))), segment(1, None)]
}

fn kept(prompt: &[u32]) -> u32 {
    prompt.len().div_ceil(2) as u32
}

fn run(way: Way, asked: &[Asked], slow: &mut Slow) -> Ran {
    let mut groups: Vec<KvGroup> = cut::groups();
    groups.push(cut::draft_group(GroupId(3)));
    let config = SchedulerConfig {
        num_blocks: way.num_blocks,
        max_num_batched_tokens: way.budget,
        max_model_len: LIMITS.max_model_len as u32,
        max_num_seqs: 16,
        prefill_chunk: way.chunk,
        enable_prefix_caching: way.caching,
        num_speculative_tokens: if way.who == Who::Nobody { 0 } else { 3 },
        groups,
        segments: segments(),
        ..SchedulerConfig::default()
    };
    let mut scheduler = Scheduler::new(config).unwrap();
    scheduler.set_drafts_have_kv(way.who == Who::Draft);
    let arena = scheduler.blocks().arena().clone();
    let mut runner = cut::runner(&arena);
    if way.graphs {
        runner.capture(&CaptureSizes::new(CaptureSizes::default_token_rows(32), vec![1, 2, 3, 4])).unwrap();
    }
    let mut executor = ModelExecutor::with_segments(runner, 16, segments()).unwrap();
    executor.set_scorer(way.scorer);
    executor.keep_logits(true);
    let proposer: Option<Box<dyn Proposer + Send>> = match way.who {
        Who::Nobody => None,
        Who::Ngram => Some(Box::new(NgramProposer::new(1, 3).unwrap())),
        Who::Synthetic => Some(Box::new(SyntheticProposer::new(0.6, VOCAB).unwrap())),
        Who::Draft => Some(Box::new(cut::draft_model(&arena, GroupId(3)))),
    };
    if let Some(proposer) = proposer {
        let id = executor.add_proposer(proposer);
        executor.choose_proposer(Some(id));
    }
    let rule: Arc<dyn pagedraft_spec_decode::Thin> = Arc::new(cut::LargestHalf);
    let keys: Vec<RequestKey> = asked
        .iter()
        .map(|one| {
            let kept = if one.thins { vec![kept(&one.prompt)] } else { vec![] };
            let thinning =
                one.thins.then(|| Thinning { rule: Arc::clone(&rule), kept: kept.clone(), compact: false });
            let spec = RequestSpec { kept, ..RequestSpec::new(one.prompt.clone(), one.max_tokens) };
            let key = scheduler.submit(spec).unwrap();
            let recorded = Some(slow.tokens(&one.prompt, one.thins, &one.sampling, one.max_tokens).into());
            let (sampling, prompt_len) = (one.sampling.clone(), one.prompt.len() as u32);
            let known = Registered { sampling, prompt_len, recorded, thinning, ..Registered::default() };
            executor.register(key, known);
            key
        })
        .collect();
    let place: HashMap<RequestKey, usize> = keys.iter().enumerate().map(|(i, &key)| (key, i)).collect();
    let mut ran = Ran {
        tokens: vec![vec![]; keys.len()],
        logits: vec![vec![]; keys.len()],
        preemptions: 0,
        replays: 0,
        accepted: 0,
        most_running: 0,
    };
    let (mut plan, mut outcome, mut applied) = (StepPlan::default(), StepOutcome::default(), Vec::new());
    let mut steps = 0;
    while scheduler.has_unfinished() {
        steps += 1;
        assert!(steps < 4000, "livelock: {way:?}");
        scheduler.step(&mut plan).unwrap();
        ran.preemptions += plan.preempted.len() as u32;
        executor.execute(&plan, &scheduler, &mut outcome).unwrap();
        assert_eq!(outcome.record.faults, []);
        scheduler.apply(&outcome, &mut applied).unwrap();
        ran.most_running = ran.most_running.max(plan.rows.len());
        for (request, logits) in outcome.record.logits.drain(..) {
            ran.logits[place[&request]].push(logits);
        }
        for one in &applied {
            let i = place[&one.request];
            let tokens = &outcome.tokens[one.tokens.start as usize..one.tokens.end as usize];
            ran.tokens[i].extend_from_slice(tokens);
            ran.accepted += u64::from(one.num_accepted);
            // What a thinned request holds behind the cut follows from its counts, to the block.
            let info = scheduler.request(one.request).unwrap();
            if asked[i].thins && one.finish.is_none() && info.num_computed_tokens > 0 {
                let slots = kept(&asked[i].prompt) + (info.num_computed_tokens - info.num_prompt_tokens);
                assert_eq!(scheduler.lengths(one.request, GroupId(1)).physical, slots);
                let least = slots.div_ceil(16) as usize;
                let held = scheduler.block_table(one.request, GroupId(1)).len();
                assert!((least..=least + 1).contains(&held), "{held} blocks for {slots} slots");
                assert!(scheduler.block_table(one.request, GroupId(2)).is_empty(), "rows still wait");
            }
        }
        let pool = scheduler.stats().pool;
        assert_eq!(pool.bytes_used + pool.bytes_free, pool.bytes_total);
    }
    assert_eq!(scheduler.stats().pool.bytes_used, 0, "{way:?}");
    ran.replays = executor.counts().0.replays;
    ran
}

/// Every token and every bit of every logit is the slow way's.
fn check(way: Way, seed: u64, count: usize, slow: &mut Slow) -> Ran {
    let asked = asked(seed, count);
    let ran = run(way, &asked, slow);
    for (i, one) in asked.iter().enumerate() {
        let (tokens, logits) = slow.run(&one.prompt, one.thins, &one.sampling, one.max_tokens);
        assert_eq!(ran.tokens[i], tokens, "request {i} of seed {seed}, {way:?}");
        for (at, (found, want)) in ran.logits[i].iter().zip(&logits).enumerate() {
            let same = found.iter().map(|x| x.to_bits()).eq(want.iter().map(|x| x.to_bits()));
            assert!(same, "logits of token {at} of request {i}, seed {seed}, {way:?}");
        }
    }
    ran
}

#[test]
fn a_thinned_request_gives_the_bits_of_the_slow_way_in_any_company() {
    let mut slow = Slow::new();
    for seed in 0..4 {
        println!("seed {seed}");
        check(PLAIN, seed, 12, &mut slow);
        check(Way { caching: false, ..PLAIN }, seed, 12, &mut slow);
    }
}

#[test]
fn chunks_change_nothing_since_the_whole_prompt_is_scored_before_any_of_it_is_dropped() {
    let mut slow = Slow::new();
    for (seed, chunk, budget) in [(10, 1, 64), (11, 7, 64), (12, 64, 64), (13, 5, 17), (14, 16, 20)] {
        check(Way { chunk: Some(chunk), budget, ..PLAIN }, seed, 12, &mut slow);
    }
}

#[test]
fn speculation_scorers_and_graphs_change_nothing() {
    let mut slow = Slow::new();
    for who in [Who::Ngram, Who::Synthetic, Who::Draft] {
        for scorer in [Scorer::Mqa, Scorer::BatchExpansion] {
            for graphs in [false, true] {
                let way = Way { who, scorer, graphs, chunk: Some(9), ..PLAIN };
                let ran = check(way, 20, 12, &mut slow);
                assert!(ran.accepted > 0, "{way:?}: nothing was accepted");
                assert_eq!(ran.replays > 0, graphs, "{way:?}");
            }
        }
    }
}

#[test]
fn preempted_requests_are_thinned_again_to_the_same_tokens() {
    let mut slow = Slow::new();
    let mut preemptions = 0;
    for (seed, who) in [(30, Who::Nobody), (31, Who::Ngram), (32, Who::Draft), (33, Who::Synthetic)] {
        let way = Way { num_blocks: 9, budget: 24, who, chunk: Some(11), ..PLAIN };
        preemptions += check(way, seed, 12, &mut slow).preemptions;
    }
    assert!(preemptions > 10, "{preemptions} preemptions");
}

#[test]
fn memory_that_thinning_frees_serves_others_at_once() {
    let mut slow = Slow::new();
    let all = |thins: bool| -> Vec<Asked> {
        let one = |i: u32| Asked {
            prompt: Dice::new(u64::from(i)).tokens(64, VOCAB),
            thins,
            sampling: SamplingParams::greedy(),
            max_tokens: 8,
        };
        (0..12).map(one).collect()
    };
    // Six requests of 64 + 8 tokens take 5 blocks each of all layers.
    let way = Way { num_blocks: 30, ..PLAIN };
    let dense = run(way, &all(false), &mut slow);
    let thinned = run(way, &all(true), &mut slow);
    assert_eq!((dense.most_running, dense.preemptions), (6, 0));
    // Behind the cut lie two thirds of the layers, and there a thinned request takes 3 blocks in place of 5.
    assert!(thinned.most_running >= 8, "{} thinned requests ran at once", thinned.most_running);
}

#[test]
fn a_rule_that_gives_up_ends_its_request_alone() {
    let mut slow = Slow::new();
    let asked = asked(40, 4);
    let config = SchedulerConfig {
        max_model_len: LIMITS.max_model_len as u32,
        max_num_batched_tokens: 256,
        groups: cut::groups(),
        segments: segments(),
        ..SchedulerConfig::default()
    };
    let mut scheduler = Scheduler::new(config).unwrap();
    let runner = cut::runner(scheduler.blocks().arena());
    let mut executor = ModelExecutor::with_segments(runner, 16, segments()).unwrap();
    let keys: Vec<RequestKey> = (asked.iter().enumerate())
        .map(|(i, one)| {
            let kept = vec![kept(&one.prompt)];
            let spec =
                RequestSpec { kept: kept.clone(), ..RequestSpec::new(one.prompt.clone(), one.max_tokens) };
            let key = scheduler.submit(spec).unwrap();
            let rule: Arc<dyn pagedraft_spec_decode::Thin> =
                if i == 1 { Arc::new(cut::GivesUp) } else { Arc::new(cut::LargestHalf) };
            let thinning = Some(Thinning { rule, kept, compact: false });
            let (sampling, prompt_len) = (one.sampling.clone(), one.prompt.len() as u32);
            executor.register(key, Registered { sampling, prompt_len, thinning, ..Registered::default() });
            key
        })
        .collect();
    let (mut plan, mut outcome, mut applied) = (StepPlan::default(), StepOutcome::default(), Vec::new());
    let mut tokens: HashMap<RequestKey, Vec<u32>> = HashMap::new();
    let mut faults = Vec::new();
    while scheduler.has_unfinished() {
        scheduler.step(&mut plan).unwrap();
        executor.execute(&plan, &scheduler, &mut outcome).unwrap();
        faults.append(&mut outcome.record.faults);
        scheduler.apply(&outcome, &mut applied).unwrap();
        for one in &applied {
            let range = one.tokens.start as usize..one.tokens.end as usize;
            tokens.entry(one.request).or_default().extend(&outcome.tokens[range]);
        }
    }
    assert_eq!(faults.len(), 1);
    assert_eq!(faults[0].0, keys[1]);
    assert!(faults[0].1.contains("segment 0") && faults[0].1.contains("no score"), "{}", faults[0].1);
    assert!(tokens[&keys[1]].is_empty());
    for i in [0, 2, 3] {
        let one = &asked[i];
        let want = slow.tokens(&one.prompt, true, &one.sampling, one.max_tokens);
        assert_eq!(tokens[&keys[i]], want, "request {i}");
    }
    assert_eq!(scheduler.stats().pool.bytes_used, 0);
}
