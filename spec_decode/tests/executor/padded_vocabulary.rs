//! A draft model whose embedding is padded to another size than the target's proposes only ids that both have, from the
//! distributions that say so.

use pagedraft_model::StepLimits;
use pagedraft_spec_decode::proposer::{DraftModel, DraftOptions, Proposer};
use pagedraft_spec_decode::sampling::{Sampler, SamplingParams, distribution};
use pagedraft_spec_decode::{Drafts, Registered};

use crate::stage::{Dice, Stage};
use crate::tiny::{self, MAX_MODEL_LEN, Reference, Setup, VOCAB};

const DRAFTS: u16 = 4;

fn ways() -> Vec<SamplingParams> {
    let mut ways = vec![SamplingParams::greedy()];
    for seed in 0..12 {
        ways.push(SamplingParams { seed, ..SamplingParams::default() });
        ways.push(SamplingParams { seed, temperature: 3.0, top_k: Some(20), ..SamplingParams::default() });
    }
    ways
}

/// What the draft model of 50 tokens proposes behind `prompt` to a target of `target` tokens.
fn propose(
    target: usize,
    keep: bool,
    prompt: &[u32],
    sampling: SamplingParams,
) -> (Vec<u32>, Option<Vec<f64>>) {
    let setup = Setup::default();
    let limits = StepLimits { token_rows: 64, logit_rows: 8, max_model_len: MAX_MODEL_LEN };
    let blocks = tiny::blocks(&setup);
    let runner = tiny::runner_in(blocks.arena(), tiny::DRAFT, setup.block_size, limits, 1);
    let options = DraftOptions { target_vocab: target, ..tiny::options(&setup) };
    let mut model = DraftModel::new(runner, options).unwrap();
    model.keep_probabilities(keep);
    let mut stage = Stage::with(blocks);
    let prompt_len = prompt.len() as u32;
    let request = stage.enter(prompt.to_vec(), Registered { sampling, prompt_len, ..Registered::default() });
    let mut drafts = Drafts::default();
    stage.propose(&mut model, &[(request, DRAFTS)], &mut drafts);
    (drafts.row(0).to_vec(), drafts.probabilities(0).map(<[f64]>::to_vec))
}

#[test]
fn ids_beyond_the_targets_vocabulary_are_never_proposed() {
    let (mut slow, target) = (Reference::new(), 20);
    let prompt = Dice::new(1).tokens(12, target as u32);
    let mut cut = 0;
    for params in ways() {
        let (drafts, _) = propose(target, false, &prompt, params.clone());
        assert_eq!(drafts.len(), usize::from(DRAFTS));
        let mut tokens = prompt.clone();
        for draft in drafts {
            let logits = slow.logits(&tokens);
            let position = tokens.len() as u32;
            let choose = |logits: &[f32]| Sampler::default().choose(logits, &params, position).unwrap();
            assert_eq!(draft, choose(&logits[..target]), "{params:?}");
            cut += u32::from(choose(&logits) >= target as u32);
            tokens.push(draft);
        }
    }
    assert!(cut > 20, "hardly a row chose one of the ids that the target lacks: {cut}");
}

#[test]
fn the_distributions_of_drafts_are_as_long_as_the_targets_vocabulary() {
    let mut slow = Reference::new();
    for target in [20usize, 50, 64] {
        let shared = target.min(VOCAB as usize);
        let prompt = Dice::new(2).tokens(9, shared as u32);
        for params in ways() {
            let (drafts, q) = propose(target, true, &prompt, params.clone());
            let q = q.unwrap();
            assert_eq!(q.len(), target * drafts.len(), "target {target}");
            let mut tokens = prompt.clone();
            for (&draft, q) in drafts.iter().zip(q.chunks(target)) {
                let slow = distribution(&slow.logits(&tokens)[..shared], &params).unwrap();
                assert_eq!(q[..shared], slow, "target {target}, {params:?}");
                assert!(q[shared..].iter().all(|&p| p == 0.0), "target {target}, {params:?}");
                assert!(q[draft as usize] > 0.0, "target {target}, {params:?}");
                tokens.push(draft);
            }
        }
    }
}

#[test]
fn a_known_token_that_the_draft_lacks_is_shown_to_it_as_its_last_id() {
    let shown = [3, 49, 7, 49, 1];
    for (prompt, keep) in [([3, 50, 7, 63, 1], false), ([3, 60, 7, 51, 1], true)] {
        for params in ways() {
            let found = propose(64, keep, &prompt, params.clone());
            assert_eq!(found, propose(64, keep, &shown, params));
        }
    }
}
