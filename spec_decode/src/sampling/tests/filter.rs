//! Compares the filters with a reference that sorts everything.

use std::collections::BTreeMap;

use super::super::filter::{Below, weight};
use super::*;

/// The tokens in the order of falling logits; equal ones in the order of their ids.
fn sorted(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    order
}

/// The filters in vLLM's order, written out: softmax at the temperature, then min-p, then top-k, then top-p
/// over the rest. `mass` is the weight of a token that lies this many nats below the best one.
fn naive(logits: &[f32], params: &SamplingParams, mass: impl Fn(f64) -> f64) -> Vec<u32> {
    let temperature = f64::from(params.temperature);
    let order = sorted(logits);
    let max = f64::from(logits[order[0]]);
    let scale = Below::new(logits[order[0]], params.temperature);
    let weigh = |token: usize| mass(scale.nats(logits[token]));
    let exact = |token: usize| ((f64::from(logits[token]) - max) / temperature).exp();
    let mut kept: Vec<usize> = order
        .into_iter()
        .filter(|&token| logits[token] > f32::NEG_INFINITY)
        .filter(|&token| exact(token) >= f64::from(params.min_p))
        .collect();
    kept.truncate(params.top_k.map_or(usize::MAX, |k| k as usize));
    if params.top_p < 1.0 {
        let total: f64 = kept.iter().map(|&token| weigh(token)).sum();
        let mut sum = 0.0;
        let mut count = 0;
        for &token in &kept {
            if count > 0 && sum >= f64::from(params.top_p) * total {
                break;
            }
            sum += weigh(token);
            count += 1;
        }
        kept.truncate(count);
    }
    let mut kept: Vec<u32> = kept.into_iter().map(|token| token as u32).collect();
    kept.sort_unstable();
    kept
}

fn kept(logits: &[f32], params: &SamplingParams) -> Vec<u32> {
    Sampler::default().kept(logits, params).unwrap()
}

fn random_params(random: &mut Random, count: usize) -> SamplingParams {
    let mut params = at([0.05, 0.3, 0.7, 1.0, 1.5, 5.0][random.below(6) as usize]);
    if random.below(2) == 0 {
        params.top_k = Some(1 + random.below(count as u64 + 3) as u32);
    }
    if random.below(2) == 0 {
        params.top_p = (1.0 - random.unit().powi(2)) as f32;
    }
    if random.below(3) == 0 {
        params.min_p = random.unit().powi(3) as f32;
    }
    params
}

#[test]
fn random_rows_keep_what_sorting_everything_keeps() {
    let mut random = Random::new(20_260_101);
    let mut sampler = Sampler::default();
    for case in 0..3000 {
        let count = 1 + random.below([5, 80, 700][case % 3]) as usize;
        let scale = [0.3, 2.0, 8.0][random.below(3) as usize];
        let mut logits = random.logits(count, scale);
        if case % 4 == 0 {
            // Rounding makes many ties.
            logits.iter_mut().for_each(|l| *l = (*l * 2.0).round() / 2.0);
        }
        if case % 5 == 0 {
            let masked = random.below(count as u64) as usize;
            logits[masked] = f32::NEG_INFINITY;
            if logits.iter().all(|l| *l == f32::NEG_INFINITY) {
                continue;
            }
        }
        let params = random_params(&mut random, count);
        let found = sampler.kept(&logits, &params).unwrap();
        // The reference sums the same whole numbers as weights, so both keep exactly the same tokens.
        let expected = naive(&logits, &params, |below| weight(below) as f64);
        assert_eq!(found, expected, "case {case}: {params:?} of {count}");
    }
}

#[test]
fn top_p_agrees_with_plain_probabilities() {
    let mut random = Random::new(31);
    for _ in 0..500 {
        let logits = random.logits(300, 3.0);
        let mut params = at(0.9);
        params.top_p = 0.05 + 0.9 * random.unit() as f32;
        let plain = naive(&logits, &params, |below| (-below).exp());
        assert_eq!(kept(&logits, &params), plain);
    }
}

#[test]
fn ties_at_an_edge_go_to_the_lowest_ids() {
    let logits = [1.0, 3.0, 1.0, 3.0, 1.0, 3.0];
    let keep = |top_k, top_p| {
        let params = SamplingParams { top_k, top_p, ..at(1.0) };
        kept(&logits, &params)
    };
    assert_eq!(keep(Some(1), 1.0), [1]);
    assert_eq!(keep(Some(2), 1.0), [1, 3]);
    assert_eq!(keep(Some(4), 1.0), [0, 1, 3, 5]);
    assert_eq!(keep(Some(5), 1.0), [0, 1, 2, 3, 5]);
    assert_eq!(keep(Some(3), 0.5), [1, 3]);
    assert_eq!(keep(None, 0.01), [1]);
    let flat = [0.25f32; 8];
    let half = SamplingParams { top_p: 0.5, ..at(1.0) };
    assert_eq!(kept(&flat, &half), [0, 1, 2, 3]);
    // -0 counts as equal to 0.
    assert_eq!(kept(&[-0.0, 0.0], &SamplingParams { top_k: Some(1), ..at(1.0) }), [0]);
}

#[test]
fn min_p_is_relative_to_the_best_and_keeps_it() {
    let ln = |x: f64| x.ln() as f32;
    let logits = [ln(0.5), ln(0.26), ln(0.14), ln(0.1)];
    let keep = |min_p, temperature| {
        let params = SamplingParams { min_p, ..at(temperature) };
        kept(&logits, &params)
    };
    assert_eq!(keep(0.5, 1.0), [0, 1]);
    assert_eq!(keep(0.25, 1.0), [0, 1, 2]);
    assert_eq!(keep(1.0, 1.0), [0]);
    // The temperature comes first, and a higher temperature makes the row flatter.
    assert_eq!(keep(0.5, 2.0), [0, 1, 2]);
    assert_eq!(keep(1.0, 1e-30), [0]);
}

#[test]
fn the_best_token_survives_every_filter() {
    let mut random = Random::new(8);
    for case in 0..500 {
        let logits = random.logits(50, 4.0);
        let best = sorted(&logits)[0] as u32;
        let mut params = random_params(&mut random, 50);
        params.temperature = [1e-38, 1e-3, 1.0, 1e30][case % 4];
        assert!(kept(&logits, &params).contains(&best), "{params:?}");
    }
}

#[test]
fn masked_tokens_are_kept_by_nothing() {
    let logits = [f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY, -1.0];
    for top_k in [None, Some(3), Some(10)] {
        let params = SamplingParams { top_k, ..at(1.0) };
        assert_eq!(kept(&logits, &params), [1, 3]);
    }
}

#[test]
fn the_distribution_is_the_renormalised_softmax_of_what_is_kept() {
    let mut random = Random::new(3);
    for _ in 0..300 {
        let logits = random.logits(60, 2.0);
        let params = random_params(&mut random, 60);
        let kept = kept(&logits, &params);
        let weights: BTreeMap<u32, f64> = kept
            .iter()
            .map(|&t| (t, (f64::from(logits[t as usize]) / f64::from(params.temperature)).exp()))
            .collect();
        let total: f64 = weights.values().sum();
        for (token, p) in (0u32..).zip(distribution(&logits, &params).unwrap()) {
            let expected = weights.get(&token).map_or(0.0, |w| w / total);
            assert!((p - expected).abs() < 1e-12, "{p} {expected}");
        }
    }
    let greedy = distribution(&[0.0, 2.0, 2.0], &SamplingParams::greedy()).unwrap();
    assert_eq!(greedy, [0.0, 1.0, 0.0]);
}
