//! Synthetic drafts: how many are wrong, which, and what they take.

use std::time::Duration;

use pagedraft_scheduler::RequestKey;
use pagedraft_spec_decode::proposer::{Proposer, ProposerError, SyntheticProposer};
use pagedraft_spec_decode::sampling::SamplingParams;
use pagedraft_spec_decode::{Drafts, Registered};

use crate::stage::{Dice, Stage};

const VOCAB: u32 = 100;

fn enter(stage: &mut Stage, dice: &mut Dice, len: u32, seed: u64) -> (RequestKey, Vec<u32>) {
    let recorded = dice.tokens(len, VOCAB);
    let registered = Registered {
        sampling: SamplingParams { seed, ..SamplingParams::default() },
        prompt_len: 3,
        recorded: Some(recorded.clone().into()),
        ..Registered::default()
    };
    (stage.enter(vec![1, 2, 3], registered), recorded)
}

#[test]
fn tokens_are_wrong_at_the_rate_asked_for_whatever_came_before() {
    for rate in [0.0, 0.25, 0.7, 0.95, 1.0] {
        let mut proposer = SyntheticProposer::new(rate, VOCAB).unwrap();
        let (mut stage, mut dice, mut drafts) = (Stage::new(), Dice::new(1), Drafts::default());
        // By depth: how many were right, how many there were.
        let mut by_depth = [(0u32, 0u32); 4];
        let (mut after_wrong, mut right_after_wrong) = (0u32, 0u32);
        for seed in 0..10 {
            let (request, recorded) = enter(&mut stage, &mut dice, 2000, seed);
            for at in (0..2000).step_by(4) {
                stage.tokens.get_mut(&request).unwrap().truncate(3);
                stage.tokens.get_mut(&request).unwrap().extend(&recorded[..at]);
                stage.propose(&mut proposer, &[(request, 4)], &mut drafts);
                let mut before = true;
                for (depth, (&draft, &token)) in drafts.row(0).iter().zip(&recorded[at..]).enumerate() {
                    assert!(draft < VOCAB);
                    let right = draft == token;
                    by_depth[depth].0 += u32::from(right);
                    by_depth[depth].1 += 1;
                    if !before {
                        after_wrong += 1;
                        right_after_wrong += u32::from(right);
                    }
                    before = right;
                }
            }
        }
        let holds = |right: u32, of: u32| {
            let n = f64::from(of);
            (f64::from(right) - n * rate).abs() <= 5.0 * (n * rate * (1.0 - rate)).sqrt()
        };
        assert!(
            by_depth.iter().all(|&(right, of)| of == 5000 && holds(right, of)),
            "rate {rate}: {by_depth:?}"
        );
        assert!(holds(right_after_wrong, after_wrong), "rate {rate}: {right_after_wrong} of {after_wrong}");
    }
}

#[test]
fn neither_batch_nor_schedule_changes_a_draft() {
    let mut proposer = SyntheticProposer::new(0.5, VOCAB).unwrap();
    let (mut stage, mut dice, mut drafts) = (Stage::new(), Dice::new(2), Drafts::default());
    let entered: Vec<_> = (0..6).map(|seed| enter(&mut stage, &mut dice, 60, seed)).collect();
    // Each alone, one draft at a time.
    let alone: Vec<Vec<u32>> = entered
        .iter()
        .map(|(request, recorded)| {
            let one = |at: usize| {
                stage.tokens.get_mut(request).unwrap().truncate(3);
                stage.tokens.get_mut(request).unwrap().extend(&recorded[..at]);
                stage.propose(&mut proposer, &[(*request, 1)], &mut drafts);
                drafts.row(0)[0]
            };
            (0..60).map(one).collect()
        })
        .collect();
    for case in 0..300 {
        let mut rows = Vec::new();
        let mut from = Vec::new();
        for (i, (request, recorded)) in entered.iter().enumerate() {
            if dice.percent(60) {
                let at = dice.below(61) as usize;
                stage.tokens.get_mut(request).unwrap().truncate(3);
                stage.tokens.get_mut(request).unwrap().extend(&recorded[..at]);
                rows.push((*request, 1 + dice.below(7) as u16));
                from.push((i, at));
            }
        }
        stage.propose(&mut proposer, &rows, &mut drafts);
        for (row, &(i, at)) in from.iter().enumerate() {
            let end = (at + usize::from(rows[row].1)).min(60);
            assert_eq!(drafts.row(row), &alone[i][at..end], "case {case} of dice 2");
        }
    }
}

#[test]
fn a_request_without_a_recording_has_no_drafts() {
    let mut proposer = SyntheticProposer::new(1.0, VOCAB).unwrap();
    let (mut stage, mut drafts) = (Stage::new(), Drafts::default());
    let request = stage.enter(vec![1, 2, 3], Registered { prompt_len: 3, ..Registered::default() });
    stage.propose(&mut proposer, &[(request, 4)], &mut drafts);
    assert!(drafts.row(0).is_empty());
    assert_eq!(proposer.target(), Duration::ZERO);
}

#[test]
fn a_step_is_made_to_take_the_sum_of_its_rounds() {
    let mut proposer = SyntheticProposer::new(0.5, VOCAB).unwrap();
    proposer.set_round_us(Box::new(|rows| 100.0 + 3.0 * rows as f64));
    let (mut stage, mut dice, mut drafts) = (Stage::new(), Dice::new(3), Drafts::default());
    let rows: Vec<_> = [4, 1, 2].map(|max| (enter(&mut stage, &mut dice, 3, u64::from(max)).0, max)).into();
    let start = std::time::Instant::now();
    stage.propose(&mut proposer, &rows, &mut drafts);
    let took = start.elapsed();
    // The recording of 3 tokens ends the first row's drafts: rounds of 3, 2 and 1 rows.
    assert_eq!(proposer.target(), Duration::from_micros(300 + 3 * (3 + 2 + 1)));
    assert!(took >= proposer.target());

    proposer.set_round_us(Box::new(|_| f64::NAN));
    stage.propose(&mut proposer, &rows, &mut drafts);
    assert_eq!(proposer.target(), Duration::ZERO);
}

#[test]
fn rates_that_are_no_probability_are_refused() {
    for rate in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        assert!(matches!(SyntheticProposer::new(rate, VOCAB), Err(ProposerError::Rate { .. })));
    }
    assert!(matches!(SyntheticProposer::new(0.5, 1), Err(ProposerError::SmallVocab { found: 1 })));
    assert_eq!(SyntheticProposer::new(0.5, 2).unwrap().name(), "synthetic");
}
