//! Compares typical acceptance with its formula, written out.

use super::toy::mix;
use super::*;

/// The definition, written out: the tokens of a row, and how many of its drafts pass.
fn naive(row: VerifyRow<'_>, threshold: f64, alpha: f64) -> (Vec<u32>, Verdict) {
    let vocab = row.logits.len() / (row.drafts.len() + 1);
    let mut tokens = Vec::new();
    let mut verdict = Verdict::default();
    let mut missed = false;
    for (j, &draft) in row.drafts.iter().enumerate() {
        let p = distribution(&row.logits[j * vocab..(j + 1) * vocab], row.params).unwrap();
        let entropy: f64 = -p.iter().map(|p| p * (p + 1e-5).ln()).sum::<f64>();
        let passes = p[draft as usize] > threshold.min(alpha * (-entropy).exp());
        verdict.accepted_noncausal += u16::from(passes);
        if missed {
            continue;
        }
        if passes {
            verdict.accepted += 1;
            tokens.push(draft);
        } else {
            missed = true;
            let best = p.iter().copied().fold(0.0, f64::max);
            tokens.push(p.iter().position(|p| *p == best).unwrap() as u32);
        }
    }
    if !missed {
        let bonus = &row.logits[row.drafts.len() * vocab..];
        let position = row.position + row.drafts.len() as u32;
        tokens.push(Sampler::default().choose(bonus, row.params, position).unwrap());
    }
    (tokens, verdict)
}

#[test]
fn typical_acceptance_is_its_formula() {
    let (mut fell, mut stood) = (0, 0);
    for case in 0..20_000u64 {
        let number = |what: u64| mix(mix(case) ^ what);
        let (vocab, k) = (1 + number(0) as usize % 40, number(1) as usize % 4);
        let scale = [0.0, 0.5, 2.0, 8.0][number(2) as usize % 4];
        let logits: Vec<f32> = (0..vocab * (k + 1))
            .map(|i| ((number(100 + i as u64) % 1000) as f32 / 1000.0 - 0.5) * scale)
            .collect();
        let drafts: Vec<u32> = (0..k).map(|i| (number(10 + i as u64) % vocab as u64) as u32).collect();
        let params = SamplingParams {
            temperature: [0.0, 0.7, 1.0, 1.5][number(3) as usize % 4],
            top_k: [None, Some(5)][number(4) as usize % 2],
            top_p: [1.0, 0.9][number(5) as usize % 2],
            seed: case,
            ..Default::default()
        };
        let (threshold, alpha) =
            [(0.09f32, 0.3f32), (0.3, 0.9), (0.01, 2.0), (0.0, 0.0)][number(6) as usize % 4];
        let row =
            VerifyRow { params: &params, position: 3, drafts: &drafts, probabilities: None, logits: &logits };
        let mut verifier = Verifier::new(Acceptance::Typical { threshold, alpha });
        verifier.count_noncausal(true);
        let mut tokens = Vec::new();
        let verdict = verifier.verify(row, &mut tokens).unwrap();
        let expected = naive(row, f64::from(threshold), f64::from(alpha));
        assert_eq!((tokens, verdict), expected, "case {case}: {row:?}");
        stood += u32::from(verdict.accepted_noncausal);
        fell += drafts.len() as u32 - u32::from(verdict.accepted_noncausal);
    }
    println!("{stood} stood, {fell} fell");
    assert!(stood > 3000 && fell > 3000);
}

#[test]
fn equals_are_corrected_to_the_lowest_id() {
    let params = SamplingParams::default();
    let logits = [-9.0, 2.0, 2.0, -9.0, -9.0, 2.0, 2.0, -9.0];
    let row = VerifyRow { params: &params, position: 0, drafts: &[3], probabilities: None, logits: &logits };
    let mut tokens = Vec::new();
    Verifier::new(Acceptance::typical_default()).verify(row, &mut tokens).unwrap();
    assert_eq!(tokens, [1]);
}
