//! Compares rejection with its formulas, on single rows.

use super::toy::mix;
use super::*;

/// Verifies one draft at one position. Returns whether it was accepted, and the token emitted there.
fn verify(p: &[f32], q: Option<&[f64]>, draft: u32, seed: u64) -> (bool, u32) {
    let params = SamplingParams { seed, ..Default::default() };
    let logits = [p, p].concat();
    let row = VerifyRow { params: &params, position: 5, drafts: &[draft], probabilities: q, logits: &logits };
    let mut emitted = Vec::new();
    let verdict = Verifier::new(Acceptance::Rejection).verify(row, &mut emitted).unwrap();
    assert_eq!(emitted.len(), usize::from(verdict.accepted) + 1);
    (verdict.accepted == 1, emitted[0])
}

#[test]
fn a_draft_stands_as_often_as_the_ratio_says_and_the_residual_follows() {
    // Here p = 1/2, 1/4, 1/4, 0 and q = 1/4, 3/4, 0, 0. Draft 1 is accepted with probability 1/3; otherwise
    // tokens 0 and 2 are equally likely.
    let p = [2.0f32.ln(), 0.0, 0.0, f32::NEG_INFINITY];
    let q = [0.25, 0.75, 0.0, 0.0];
    let (mut stood, mut counts) = (0u32, [0u32; 4]);
    let draws = 60_000;
    for seed in 0..draws {
        let (stands, token) = verify(&p, Some(&q), 1, mix(seed));
        stood += u32::from(stands);
        counts[token as usize] += u32::from(!stands);
    }
    assert!((f64::from(stood) / draws as f64 - 1.0 / 3.0).abs() < 0.01, "{stood}");
    assert_eq!((counts[1], counts[3]), (0, 0));
    assert!((f64::from(counts[0]) / draws as f64 - 1.0 / 3.0).abs() < 0.01, "{counts:?}");
    // Without stated probabilities, draft 1 is accepted with probability 1/4; otherwise token 0 is twice as
    // likely as token 2.
    let (mut stood, mut counts) = (0u32, [0u32; 4]);
    for seed in 0..draws {
        let (stands, token) = verify(&p, None, 1, mix(seed));
        stood += u32::from(stands);
        counts[token as usize] += u32::from(!stands);
    }
    assert!((f64::from(stood) / draws as f64 - 0.25).abs() < 0.01, "{stood}");
    assert!((f64::from(counts[0]) / draws as f64 - 0.5).abs() < 0.01, "{counts:?}");
    assert_eq!((counts[1], counts[3]), (0, 0));
}

#[test]
fn a_draft_of_the_targets_own_distribution_always_stands() {
    let p: Vec<f32> = (0..50).map(|i| mix(i) as u8 as f32 / 40.0).collect();
    let q = distribution(&p, &SamplingParams::default()).unwrap();
    for seed in 0..2000 {
        assert!(verify(&p, Some(&q), seed as u32 % 50, seed).0);
    }
}

#[test]
fn an_impossible_draft_falls_and_never_comes_back() {
    let p = [0.0, f32::NEG_INFINITY, 0.0];
    for seed in 0..2000 {
        for q in [None, Some(&[0.1, 0.9, 0.0][..]), Some(&[0.5, 0.0, 0.5])] {
            let (stands, token) = verify(&p, q, 1, seed);
            assert!(!stands && token != 1);
        }
        // The proposer states probability 0 for this draft, so it is rejected although the target could
        // choose it.
        assert!(!verify(&p, Some(&[1.0, 0.0, 0.0]), 2, seed).0);
    }
}

#[test]
fn nothing_left_of_the_residual_falls_back_to_the_target() {
    // Here q covers all of p, which only rounding or a wrong statement can cause. The draft is rejected
    // because its q is 0.
    let p = [0.0f32, 0.0, f32::NEG_INFINITY];
    let mut seen = [0u32; 3];
    for seed in 0..2000 {
        let (stands, token) = verify(&p, Some(&[0.5, 0.5, 0.0]), 2, seed);
        assert!(!stands);
        seen[token as usize] += 1;
    }
    assert!(seen[0] > 800 && seen[1] > 800 && seen[2] == 0, "{seen:?}");
}

#[test]
fn what_is_no_probability_is_refused_where_it_is_used() {
    let params = SamplingParams::default();
    let logits = [0.0f32; 6];
    for value in [f64::NAN, -0.1, 1.5, f64::INFINITY] {
        for place in 0..3 {
            let mut q = [0.2, 0.6, 0.2];
            q[place] = value;
            for seed in 0..50 {
                let params = SamplingParams { seed, ..params.clone() };
                let row = VerifyRow {
                    params: &params,
                    position: 0,
                    drafts: &[1],
                    probabilities: Some(&q),
                    logits: &logits,
                };
                let mut emitted = vec![7];
                match Verifier::new(Acceptance::Rejection).verify(row, &mut emitted) {
                    Ok(verdict) => assert!(place != 1 && verdict.accepted == 1),
                    Err(error) => {
                        assert!(
                            matches!(error, SamplingError::BadProbability { token, .. } if token as usize == place)
                        );
                        assert_eq!(emitted, [7]);
                    }
                }
            }
        }
    }
}
