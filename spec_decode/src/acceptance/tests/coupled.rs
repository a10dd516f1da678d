//! Tests that coupled acceptance gives the tokens of the run without drafts.

use super::toy::{DRAFT, Generator, Source, TARGET, VOCAB, open_and_filtered, plain};
use super::*;

#[test]
fn a_seed_gives_the_tokens_without_speculation_for_every_proposer_and_length() {
    let greedy = SamplingParams::greedy();
    for params in open_and_filtered().into_iter().chain([greedy]) {
        for seed in 0..100 {
            let params = SamplingParams { seed, ..params.clone() };
            let expected = plain(&params, 24);
            for source in [Source::SharedNoise, Source::OwnNoise, Source::Unstated, Source::Lookup] {
                for k in 0..=6 {
                    for noncausal in [false, true] {
                        let mut generator = Generator::new(Acceptance::Coupled);
                        generator.verifier.count_noncausal(noncausal);
                        let found = generator.run(&params, source, k, 24);
                        assert_eq!(found[..24], expected, "seed {seed}, {source:?}, k {k}, {params:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn at_temperature_0_every_rule_gives_the_argmax() {
    let params = SamplingParams::greedy();
    let expected = plain(&params, 24);
    for rule in [Acceptance::Rejection, Acceptance::typical_default()] {
        for source in [Source::SharedNoise, Source::OwnNoise, Source::Lookup] {
            for k in 0..=4 {
                let found = Generator::new(rule).run(&params, source, k, 24);
                assert_eq!(found[..24], expected, "{rule}, {source:?}, k {k}");
            }
        }
    }
}

#[test]
fn a_proposer_with_the_same_noise_agrees_as_often_as_the_formula_says() {
    let params = SamplingParams::default();
    let (mut p, mut q) = (Vec::new(), Vec::new());
    TARGET.logits(&[1, 2], &mut p);
    DRAFT.logits(&[1, 2], &mut q);
    let [dp, dq] = [&p, &q].map(|logits| distribution(logits, &params).unwrap());
    let agree = |x: usize| {
        let of = |y: usize| (dp[y] / dp[x]).max(dq[y] / dq[x]);
        1.0 / (0..VOCAB).map(of).sum::<f64>()
    };
    let expected: f64 = (0..VOCAB).map(agree).sum();
    let distance = dp.iter().zip(&dq).map(|(p, q)| (p - q).abs()).sum::<f64>() / 2.0;
    assert!(expected >= (1.0 - distance) / (1.0 + distance) && expected <= 1.0 - distance);
    let mut verifier = Verifier::new(Acceptance::Coupled);
    let (mut accepted, draws) = (0u32, 200_000u32);
    let logits = [p.as_slice(), p.as_slice()].concat();
    let mut emitted = Vec::new();
    for position in 0..draws {
        let drafts = [Sampler::default().choose(&q, &params, position).unwrap()];
        let row =
            VerifyRow { params: &params, position, drafts: &drafts, probabilities: None, logits: &logits };
        emitted.clear();
        accepted += u32::from(verifier.verify(row, &mut emitted).unwrap().accepted);
    }
    let found = f64::from(accepted) / f64::from(draws);
    println!("agreed {found:.4}, formula {expected:.4}, rejection would accept {:.4}", 1.0 - distance);
    assert!((found - expected).abs() < 0.006, "{found}, not {expected}");
}
