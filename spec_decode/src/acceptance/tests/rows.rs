//! Tests rows: what is counted, what must not matter, and which parts do not fit each other.

use super::toy::mix;
use super::*;

const VOCAB: usize = 12;

fn rules() -> [Acceptance; 3] {
    [Acceptance::Coupled, Acceptance::Rejection, Acceptance::typical_default()]
}

/// All parts of a row, made from a seed.
struct Case {
    params: SamplingParams,
    drafts: Vec<u32>,
    q: Vec<f64>,
    logits: Vec<f32>,
}

impl Case {
    fn new(seed: u64, k: usize) -> Self {
        let number = |what: u64| (mix(mix(seed) ^ what) >> 11) as f64 / (1u64 << 53) as f64;
        let logits: Vec<f32> = (0..(k + 1) * VOCAB).map(|i| (6.0 * number(i as u64)) as f32).collect();
        let params =
            SamplingParams { seed, temperature: [0.0, 0.8, 1.0][seed as usize % 3], ..Default::default() };
        let mut sampler = Sampler::default();
        let (mut drafts, mut q) = (Vec::new(), Vec::new());
        for j in 0..k {
            let near: Vec<f32> = logits[j * VOCAB..(j + 1) * VOCAB]
                .iter()
                .enumerate()
                .map(|(i, l)| l + (3.0 * number((1000 + j * VOCAB + i) as u64)) as f32)
                .collect();
            drafts.push(sampler.choose(&near, &params, 9 + j as u32).unwrap());
            q.extend(distribution(&near, &params).unwrap());
        }
        Self { params, drafts, q, logits }
    }

    fn row(&self) -> VerifyRow<'_> {
        VerifyRow {
            params: &self.params,
            position: 9,
            drafts: &self.drafts,
            probabilities: Some(&self.q),
            logits: &self.logits,
        }
    }

    fn verify(&self, verifier: &mut Verifier) -> (Vec<u32>, Verdict) {
        let mut emitted = Vec::new();
        let verdict = verifier.verify(self.row(), &mut emitted).unwrap();
        (emitted, verdict)
    }
}

#[test]
fn nothing_behind_the_first_miss_changes_what_is_emitted() {
    for rule in rules() {
        let (mut plain, mut counting) = (Verifier::new(rule), Verifier::new(rule));
        counting.count_noncausal(true);
        let mut missed = 0;
        for seed in 0..3000 {
            let mut case = Case::new(seed, 4);
            let before = case.verify(&mut plain);
            assert_eq!(before.1.accepted, before.1.accepted_noncausal);
            let behind = usize::from(before.1.accepted) + 1;
            for j in behind..4 {
                missed += 1;
                case.drafts[j] = (mix(seed ^ j as u64) % VOCAB as u64) as u32;
                case.q[j * VOCAB..(j + 1) * VOCAB].fill(f64::NAN);
            }
            for (i, logit) in case.logits[(behind * VOCAB).min(5 * VOCAB)..].iter_mut().enumerate() {
                if before.1.accepted < 4 {
                    *logit = [f32::NAN, f32::NEG_INFINITY, 3.0][(i + seed as usize) % 3];
                }
            }
            assert_eq!(case.verify(&mut plain), before, "{rule}, seed {seed}");
            let (tokens, verdict) = case.verify(&mut counting);
            assert_eq!((tokens, verdict.accepted), (before.0, before.1.accepted), "{rule}, seed {seed}");
        }
        assert!(missed > 1000, "{missed}");
    }
}

#[test]
fn the_noncausal_count_is_of_every_draft_alone() {
    for rule in rules() {
        let mut verifier = Verifier::new(rule);
        verifier.count_noncausal(true);
        let mut more = 0;
        for seed in 0..3000 {
            let case = Case::new(seed, 4);
            let (tokens, verdict) = case.verify(&mut verifier);
            assert_eq!(tokens.len(), usize::from(verdict.accepted) + 1);
            assert_eq!(tokens[..usize::from(verdict.accepted)], case.drafts[..usize::from(verdict.accepted)]);
            // Each draft is judged as a row of its own.
            let alone = (0..4).map(|j| {
                let row = VerifyRow {
                    position: 9 + j as u32,
                    drafts: &case.drafts[j..=j],
                    probabilities: Some(&case.q[j * VOCAB..(j + 1) * VOCAB]),
                    logits: &case.logits[j * VOCAB..(j + 2) * VOCAB],
                    ..case.row()
                };
                Verifier::new(rule).verify(row, &mut Vec::new()).unwrap().accepted
            });
            assert_eq!(verdict.accepted_noncausal, alone.sum::<u16>(), "{rule}, seed {seed}");
            more += u32::from(verdict.accepted_noncausal > verdict.accepted);
        }
        assert!(more > 100, "{rule}: {more}");
    }
}

#[test]
fn a_row_without_drafts_is_the_plain_choice_under_every_rule() {
    for seed in 0..300 {
        let case = Case::new(seed, 0);
        let plain = Sampler::default().choose(&case.logits, &case.params, 9).unwrap();
        for rule in rules() {
            let (tokens, verdict) = case.verify(&mut Verifier::new(rule));
            assert_eq!((tokens, verdict), (vec![plain], Verdict::default()));
        }
    }
}

#[test]
fn a_row_whose_parts_do_not_fit_is_refused_and_emits_nothing() {
    let params = SamplingParams::default();
    let good = Case::new(1, 2);
    let row = VerifyRow { params: &params, ..good.row() };
    let many = vec![0; 70_000];
    let cases = [
        (VerifyRow { logits: &[], ..row }, "0 logits"),
        (VerifyRow { logits: &[], drafts: &[], probabilities: None, ..row }, "0 logits"),
        (VerifyRow { logits: &good.logits[1..], ..row }, "35 logits"),
        (VerifyRow { logits: &good.logits[..2], ..row }, "2 logits"),
        (VerifyRow { drafts: &[0, 12], ..row }, "token 12 is outside the vocabulary of 12"),
        (VerifyRow { drafts: &[u32::MAX, 0], ..row }, "outside the vocabulary"),
        (VerifyRow { probabilities: Some(&good.q[1..]), ..row }, "23 probabilities"),
        (VerifyRow { probabilities: Some(&[]), ..row }, "0 probabilities"),
        (VerifyRow { drafts: &many, ..row }, "at most 65535"),
        (VerifyRow { params: &SamplingParams { top_p: 0.0, ..Default::default() }, ..row }, "top_p is 0"),
    ];
    for rule in rules() {
        for (row, message) in cases {
            let mut emitted = vec![4];
            let error = Verifier::new(rule).verify(row, &mut emitted).unwrap_err();
            assert!(error.to_string().contains(message), "{error}, not {message}");
            assert_eq!(emitted, [4]);
        }
        // If a row of logits behind an accepted draft is broken, nothing is emitted.
        let mut logits = vec![0.0, 30.0, 0.0, 0.0];
        logits.extend([f32::NAN; 4]);
        let row = VerifyRow {
            params: &params,
            position: u32::MAX,
            drafts: &[1],
            probabilities: None,
            logits: &logits,
        };
        let mut emitted = vec![4];
        let error = Verifier::new(rule).verify(row, &mut emitted).unwrap_err();
        assert!(matches!(error, SamplingError::BadLogit { token: 0, .. }), "{error}");
        assert_eq!(emitted, [4]);
    }
    let wrong = Acceptance::Typical { threshold: f32::NAN, alpha: 0.3 };
    let error = Verifier::new(wrong).verify(row, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, SamplingError::Typical { .. }));
}
