//! A draft model proposes what the slow way does, whatever happened before; and leaves nothing of what was rejected.

use std::collections::HashMap;

use pagedraft_model::StepLimits;
use pagedraft_scheduler::RequestKey;
use pagedraft_spec_decode::proposer::{
    DraftCounts, DraftModel, DraftOptions, GroupStep, Proposer, ProposerError,
};
use pagedraft_spec_decode::sampling::{Noise, Purpose, Sampler, SamplingParams, distribution};
use pagedraft_spec_decode::{Drafts, Registered};

use crate::shadow::Shadow;
use crate::stage::{Dice, Stage};
use crate::tiny::{self, MAX_MODEL_LEN, Reference, Setup, VOCAB};

/// What the slow way says, remembered.
#[derive(Default)]
struct Slow {
    reference: Option<Reference>,
    logits: HashMap<Vec<u32>, Vec<f32>>,
}

impl Slow {
    fn logits(&mut self, tokens: &[u32]) -> &[f32] {
        let Self { reference, logits } = self;
        let fresh = || reference.get_or_insert_with(Reference::new).logits(tokens);
        logits.entry(tokens.to_vec()).or_insert_with(fresh)
    }

    fn check(
        &mut self,
        tokens: &[u32],
        params: &SamplingParams,
        drafts: &[u32],
        q: Option<&[f64]>,
        what: &str,
    ) {
        let mut tokens = tokens.to_vec();
        for (j, &draft) in drafts.iter().enumerate() {
            let position = tokens.len() as u32;
            let logits = self.logits(&tokens);
            let expected = match q {
                None => Sampler::default().choose(logits, params, position).unwrap(),
                Some(q) => {
                    let slow = distribution(logits, params).unwrap();
                    let q = &q[j * VOCAB as usize..(j + 1) * VOCAB as usize];
                    assert!(
                        slow.iter().map(|p| p.to_bits()).eq(q.iter().map(|p| p.to_bits())),
                        "{what}: q {j}"
                    );
                    let u = Noise::new(params, position).uniform(Purpose::Proposal, 0);
                    let below = |token: usize| slow[..=token].iter().sum::<f64>();
                    (0..VOCAB).find(|&token| below(token as usize) > u).unwrap()
                }
            };
            assert_eq!(draft, expected, "{what}: draft {j} behind {} tokens", position);
            tokens.push(draft);
        }
    }
}

/// Everything that a run proposed, and what it looked like inside.
#[derive(Default)]
struct Seen {
    drafts: Vec<Vec<Vec<u32>>>,
    records: Vec<GroupStep>,
    counts: DraftCounts,
    published: usize,
    without: u64,
}

/// A random history: requests come with prompts that may be shared, step or skip, have any number of drafts accepted, fail,
/// are preempted, end.
fn play(setup: &Setup, seed: u64, steps: usize, slow: &mut Slow) -> Seen {
    let mut model = tiny::draft_model(setup);
    model.keep_record(true);
    let (mut dice, mut drafts) = (Dice::new(seed), Drafts::default());
    let mut stage = Stage::with(tiny::blocks(setup));
    let ids = stage.blocks.as_ref().unwrap().arena().group(tiny::DRAFT).unwrap().num_blocks;
    let mut shadow = Shadow::new(setup.block_size, ids);
    let mut seen = Seen::default();
    let shared = [dice.tokens(70, VOCAB), dice.tokens(40, VOCAB)];
    let mut live: Vec<RequestKey> = Vec::new();
    for at in 0..steps {
        let what = format!("seed {seed}, step {at}, {setup:?}");
        while live.len() < 5 {
            let mut prompt = Vec::new();
            if dice.percent(60) {
                let of = &shared[dice.below(2) as usize];
                prompt.extend_from_slice(&of[..1 + dice.below(of.len() as u32) as usize]);
            }
            let more = 1 + dice.below(30);
            prompt.extend(dice.tokens(more, VOCAB));
            let temperature = [0.0, 0.02, 1.0][dice.below(3) as usize];
            let top_k = dice.percent(30).then_some(7);
            let sampling = SamplingParams {
                temperature,
                top_k,
                seed: dice.below(9).into(),
                ..SamplingParams::default()
            };
            let prompt_len = prompt.len() as u32;
            shadow.accept(&prompt);
            live.push(stage.enter(prompt, Registered { sampling, prompt_len, ..Registered::default() }));
        }
        let mut rows = Vec::new();
        for &request in &live {
            if dice.percent(70) {
                rows.push((request, 1 + dice.below(5) as u16));
            }
        }
        stage.propose(&mut model, &rows, &mut drafts);

        let given: Vec<&[u32]> = (0..rows.len()).map(|i| drafts.row(i)).collect();
        for (i, &(request, max)) in rows.iter().enumerate() {
            let tokens = &stage.tokens[&request];
            let max = usize::from(max).min(MAX_MODEL_LEN + 1 - tokens.len());
            assert!(
                given[i].is_empty() || given[i].len() == max,
                "{what}: {} of {max} drafts",
                given[i].len()
            );
            seen.without += u64::from(given[i].is_empty());
            let params = &stage.requests.get(request).unwrap().sampling;
            slow.check(tokens, params, given[i], drafts.probabilities(i), &what);
        }
        let record = model.record().unwrap();
        let known: Vec<&[u32]> = rows.iter().map(|(request, _)| &stage.tokens[request][..]).collect();
        shadow.step(record, &known, &given);
        seen.records.push(record.clone());
        seen.drafts.push(given.iter().map(|drafts| drafts.to_vec()).collect());

        // What became of it: all rows, or none when the step failed.
        if !dice.percent(10) {
            let mut accepted = Vec::new();
            for (i, (request, _)) in rows.iter().enumerate() {
                let n = given[i].len() as u32;
                let a = if dice.percent(50) { n } else { dice.below(n + 1) };
                let tokens = stage.tokens.get_mut(request).unwrap();
                tokens.extend_from_slice(&given[i][..a as usize]);
                let next = dice.below(VOCAB);
                let missed = given[i].get(a as usize) == Some(&next);
                tokens.push((next + u32::from(missed)) % VOCAB);
                shadow.accept(tokens);
                accepted.push(a as u16);
            }
            stage.verified(&mut model, &accepted);
        } else {
            // A step that failed: its requests lose their KV.
            stage.took(&mut model, &vec![0; rows.len()]);
            rows.iter().for_each(|row| stage.forget(row.0));
        }
        seen.published += shadow.check(stage.blocks.as_ref().unwrap());
        // Who had no row may go on without drafts.
        for &request in &live {
            if !rows.iter().any(|row| row.0 == request) {
                let tokens = stage.tokens.get_mut(&request).unwrap();
                let more = dice.below(4);
                tokens.extend(dice.tokens(more, VOCAB));
                shadow.accept(tokens);
            }
        }
        live.retain(|&request| {
            let ends = stage.tokens[&request].len() + 6 > MAX_MODEL_LEN || dice.percent(4);
            if ends || dice.percent(4) {
                model.forget(request);
                stage.forget(request);
            }
            if ends {
                stage.leave(request);
            }
            !ends
        });
        let stats = stage.blocks.as_ref().unwrap().stats();
        assert_eq!(stats.used + stats.free, stats.num_blocks, "{what}");
    }
    live.iter().for_each(|&request| stage.forget(request));
    assert_eq!(stage.used(), 0, "seed {seed}: blocks are left");
    seen.counts = model.counts().clone();
    // A row without drafts has a reason.
    assert_eq!(seen.without, seen.counts.rows_behind + seen.counts.rows_without_room, "seed {seed}");
    assert_eq!(seen.counts.drafts, seen.drafts.iter().flatten().map(|row| row.len() as u64).sum::<u64>());
    seen
}

#[test]
fn drafts_are_those_of_the_slow_way_over_any_history() {
    let roomy = Setup::default();
    let setups = [
        roomy,
        Setup { caching: false, threads: 2, ..roomy },
        Setup { block_size: 32, num_blocks: 40, ..roomy },
        // More than two pieces of every pass, and logits a few at a time.
        Setup { token_rows: 3, logit_rows: 2, ..roomy },
        Setup { catch_up: 20, ..roomy },
        Setup { catch_up: 9, token_rows: 5, ..roomy },
        Setup { graphs: true, ..roomy },
    ];
    let mut slow = Slow::default();
    for setup in setups {
        let (mut all, mut published) = (DraftCounts::default(), 0);
        for seed in 0..6 {
            let seen = play(&setup, seed, 60, &mut slow);
            let counts = seen.counts;
            assert_eq!(counts.rows_without_room, 0, "seed {seed}, {setup:?}");
            all.drafts += counts.drafts;
            all.hit_tokens += counts.hit_tokens;
            all.rows_behind += counts.rows_behind;
            all.catch_up_tokens += counts.catch_up_tokens;
            all.replays += counts.replays;
            published += seen.published;
        }
        assert_eq!(published > 0, setup.caching, "{setup:?}");
        let least = if setup.catch_up < 10 { 200 } else { 1000 };
        assert!(all.drafts > least && all.catch_up_tokens > 1000, "{setup:?}: {all:?}");
        assert_eq!(all.hit_tokens > 0, setup.caching, "{setup:?}: {all:?}");
        assert_eq!(all.rows_behind > 0, setup.catch_up < 256, "{setup:?}: {all:?}");
        assert_eq!(all.replays > 0, setup.graphs, "{setup:?}: {all:?}");
    }
}

#[test]
fn distributions_are_bit_by_bit_those_of_the_slow_way() {
    let mut slow = Slow::default();
    for (seed, graphs) in [(20, false), (21, true), (22, false)] {
        let setup = Setup { probabilities: true, graphs, catch_up: 40, threads: 2, ..Setup::default() };
        assert!(play(&setup, seed, 60, &mut slow).counts.drafts > 100);
    }
}

#[test]
fn a_tiny_pool_costs_drafts_and_nothing_else() {
    let mut slow = Slow::default();
    // Five requests of up to 160 tokens.
    for (num_blocks, caching) in [(11, true), (11, false), (16, true), (24, true)] {
        let setup = Setup { num_blocks, caching, ..Setup::default() };
        let (mut without, mut drafts) = (0, 0);
        for seed in 40..46 {
            let counts = play(&setup, seed, 80, &mut slow).counts;
            without += counts.rows_without_room;
            drafts += counts.drafts;
        }
        assert!(without > 0 && drafts > 200, "{setup:?}: {without} rows without, {drafts} drafts");
    }
}

#[test]
fn graphs_change_nothing_that_is_on_record() {
    let mut slow = Slow::default();
    for seed in 60..64 {
        let eager = play(&Setup::default(), seed, 60, &mut slow);
        let graphs = play(&Setup { graphs: true, ..Setup::default() }, seed, 60, &mut slow);
        assert!(eager.drafts == graphs.drafts && eager.records == graphs.records, "seed {seed}");
        let counts = graphs.counts;
        assert_eq!(counts.forwards, counts.replays + counts.fallbacks.values().sum::<u64>());
        assert!(counts.replays > counts.forwards / 2, "seed {seed}: {counts:?}");
        assert_eq!(eager.counts, DraftCounts { replays: 0, fallbacks: Default::default(), ..counts });
    }
}

/// A stage with one greedy request of `len` tokens.
fn one(len: u32) -> (Stage, RequestKey) {
    of(len, &Setup::default())
}

fn of(len: u32, setup: &Setup) -> (Stage, RequestKey) {
    let mut stage = Stage::with(tiny::blocks(setup));
    let tokens = Dice::new(5).tokens(len, VOCAB);
    let registered = Registered { prompt_len: len, ..Registered::default() };
    let request = stage.enter(tokens, registered);
    (stage, request)
}

#[test]
fn k_drafts_are_k_passes_whatever_was_accepted_before() {
    let setup = Setup { graphs: true, ..Setup::default() };
    let mut model = tiny::draft_model(&setup);
    let mut drafts = Drafts::default();
    let (mut stage, request) = one(10);
    let mut before = 0;
    for (step, accepted) in [4u16, 4, 0, 2, 4, 0, 4].into_iter().enumerate() {
        stage.propose(&mut model, &[(request, 4)], &mut drafts);
        assert_eq!(model.counts().forwards, before + 4);
        before += 4;
        // But for the prompt all are replayed: a row lacks one token or two.
        assert_eq!(model.counts().replays + 1, before);
        let tokens = stage.tokens.get_mut(&request).unwrap();
        tokens.extend_from_slice(&drafts.row(0)[..usize::from(accepted)]);
        let next = drafts.row(0).get(usize::from(accepted)).copied().unwrap_or(step as u32);
        tokens.push((next + 1) % VOCAB);
        stage.verified(&mut model, &[accepted]);
    }
    // Nine known tokens of the prompt, and one after each of the first three steps that accepted everything.
    assert_eq!(model.counts().catch_up_tokens, 9 + 3);
}

#[test]
fn a_step_that_was_never_applied_commits_nothing() {
    let mut slow = Slow::default();
    for len in [12, 31, 32, 40] {
        let mut model = tiny::draft_model(&Setup { probabilities: true, ..Setup::default() });
        model.keep_record(true);
        let mut drafts = Drafts::default();
        // The distribution tells one bit of the KV, where the greedy choice may not.
        let sampling = SamplingParams { seed: 4, ..SamplingParams::default() };
        let mut stage = Stage::with(tiny::blocks(&Setup::default()));
        let registered = Registered { sampling: sampling.clone(), prompt_len: len, ..Registered::default() };
        let request = stage.enter(Dice::new(5).tokens(len, VOCAB), registered);
        for step in 0..3 {
            stage.propose(&mut model, &[(request, 5)], &mut drafts);
            assert_eq!(model.record().unwrap().context_lens, [0], "step {step}");
            let tokens = &stage.tokens[&request];
            slow.check(tokens, &sampling, drafts.row(0), drafts.probabilities(0), "the same tokens");
            // It is verified, and then fails: nobody commits what it says it holds.
            let took = stage.took(&mut model, &[step]);
            assert_eq!(took.row(0)[1], len + u32::from(step));
        }
        // A verdict counts once.
        assert_eq!(stage.took(&mut model, &[3]).row(0)[1], 0);
        // It is verified and applied; then it goes on from what was accepted.
        stage.propose(&mut model, &[(request, 5)], &mut drafts);
        let tokens = stage.tokens.get_mut(&request).unwrap();
        tokens.extend([drafts.row(0)[0], (drafts.row(0)[1] + 1) % VOCAB]);
        stage.verified(&mut model, &[1]);
        stage.propose(&mut model, &[(request, 5)], &mut drafts);
        assert_eq!(model.record().unwrap().context_lens, [len + 1]);
        slow.check(&stage.tokens[&request], &sampling, drafts.row(0), drafts.probabilities(0), "one more");
        stage.forget(request);
        assert_eq!(stage.used(), 0);
    }
}

#[test]
fn a_prompt_that_the_cache_has_whole_still_runs_its_last_token() {
    let mut model = tiny::draft_model(&Setup::default());
    let mut drafts = Drafts::default();
    let (mut stage, first) = one(32);
    stage.propose(&mut model, &[(first, 2)], &mut drafts);
    let drafted = drafts.row(0).to_vec();
    stage.verified(&mut model, &[0]);
    let registered = Registered { prompt_len: 32, ..Registered::default() };
    let second = stage.enter(stage.tokens[&first].clone(), registered);
    stage.propose(&mut model, &[(second, 2)], &mut drafts);
    assert_eq!(drafts.row(0), drafted);
    assert_eq!(model.counts().hit_tokens, 16);
}

#[test]
fn drafts_end_where_the_positions_of_the_model_end() {
    let mut model = tiny::draft_model(&Setup::default());
    let mut drafts = Drafts::default();
    for (len, given) in
        [(MAX_MODEL_LEN - 2, 3), (MAX_MODEL_LEN, 1), (MAX_MODEL_LEN + 1, 0), (MAX_MODEL_LEN + 9, 0)]
    {
        let (mut stage, request) = one(len as u32);
        stage.propose(&mut model, &[(request, 5)], &mut drafts);
        assert_eq!(drafts.row(0).len(), given, "{len} tokens");
    }
}

#[test]
fn options_that_no_draft_model_can_have_are_refused() {
    let limits = StepLimits { token_rows: 8, logit_rows: 8, max_model_len: MAX_MODEL_LEN };
    let of = |change: fn(&mut DraftOptions)| {
        let mut options = tiny::options(&Setup::default());
        change(&mut options);
        DraftModel::new(tiny::runner(16, 80, limits, 1), options).map(|_| ())
    };
    assert!(of(|_| ()).is_ok());
    assert!(matches!(of(|o| o.target_vocab = 0), Err(ProposerError::NoVocab)));
    assert!(matches!(of(|o| o.catch_up_tokens = 0), Err(ProposerError::CatchUp)));
    assert!(of(|o| o.block_size = 8).is_err());
}
