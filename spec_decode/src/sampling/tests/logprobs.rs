//! Compares log probabilities with plain f64 arithmetic.

use super::*;

fn naive(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    let total = f64::from(max) + sum.ln();
    logits.iter().map(|&l| f64::from(l) - total).collect()
}

#[test]
fn log_probabilities_are_those_of_plain_f64() {
    let mut random = Random::new(6);
    for case in 0..200 {
        let count = 1 + random.below(3000) as usize;
        let scale = [0.1, 3.0, 30.0][case % 3];
        let logits = random.logits(count, scale);
        let expected = naive(&logits);
        let chosen = random.below(count as u64) as u32;
        let found = logprobs(&logits, 5, chosen).unwrap();
        let close = |found: f32, expected: f64| {
            let difference = (f64::from(found) - expected).abs();
            assert!(difference <= 1e-6 * expected.abs().max(1.0), "{found} {expected}");
        };
        close(found.chosen.logprob, expected[chosen as usize]);
        assert_eq!(found.chosen.token_id, chosen);
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
        assert_eq!(found.best.len(), count.min(5));
        for (found, &token) in found.best.iter().zip(&order) {
            assert_eq!(found.token_id as usize, token);
            close(found.logprob, expected[token]);
        }
    }
}

#[test]
fn ties_are_reported_lowest_id_first() {
    let found = logprobs(&[1.0, 2.0, 2.0, 1.0, 2.0], 4, 3).unwrap();
    let ids: Vec<u32> = found.best.iter().map(|t| t.token_id).collect();
    assert_eq!(ids, [1, 2, 4, 0]);
}

#[test]
fn any_number_of_best_tokens_may_be_asked_for() {
    let logits = [0.5, -0.5, 0.25];
    assert!(logprobs(&logits, 0, 1).unwrap().best.is_empty());
    assert_eq!(logprobs(&logits, u32::MAX, 1).unwrap().best.len(), 3);
    let masked = [0.5, f32::NEG_INFINITY];
    assert_eq!(logprobs(&masked, 2, 0).unwrap().best.len(), 1);
}

#[test]
fn a_certain_token_has_a_log_probability_of_zero() {
    let found = logprobs(&[1000.0, -1000.0], 2, 0).unwrap();
    assert_eq!(found.chosen.logprob, 0.0);
    assert_eq!(found.best[1].logprob, -2000.0);
}

#[test]
fn rows_and_tokens_without_a_probability_are_refused() {
    assert_eq!(logprobs(&[0.0, 1.0], 1, 2), Err(SamplingError::TokenOutOfRange { token: 2, vocab: 2 }));
    assert!(matches!(logprobs(&[0.0, f32::NAN], 1, 0), Err(SamplingError::BadLogit { token: 1, .. })));
    assert!(logprobs(&[], 1, 0).is_err());
}
#[test]
fn printed_digits_tell_any_two_apart() {
    let mut random = Random::new(9);
    for _ in 0..2000 {
        let logprob = f32::from_bits(random.next() as u32);
        if !logprob.is_finite() {
            continue;
        }
        let token = TokenLogprob { token_id: 7, logprob };
        let json = serde_json::to_string(&token).unwrap();
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["token_id"], 7);
        assert_eq!(read["logprob"].as_f64().unwrap() as f32, logprob, "{json}");
    }
}
