//! Tests that the choice is exact, coupled, and a function of its arguments alone.

use super::*;

/// The definition, written out.
fn naive(logits: &[f32], params: &SamplingParams, position: u32) -> u32 {
    let kept = Sampler::default().kept(logits, params).unwrap();
    let noise = Noise::new(params, position);
    let mut best = (f64::NEG_INFINITY, u32::MAX);
    for token in kept {
        let scaled = f64::from(logits[token as usize]) / f64::from(params.temperature);
        let score = scaled + noise.gumbel(token);
        if score > best.0 {
            best = (score, token);
        }
    }
    best.1
}

/// The chi-square value that one correct run in 1,000 exceeds, by Wilson and Hilferty's approximation.
fn chi_square_limit(degrees: usize) -> f64 {
    let d = degrees as f64;
    let step = 2.0 / (9.0 * d);
    d * (1.0 - step + 3.0902 * step.sqrt()).powi(3)
}

fn check_frequencies(logits: &[f32], params: &SamplingParams, draws: u32) {
    let expected = distribution(logits, params).unwrap();
    let mut sampler = Sampler::default();
    let mut counts = vec![0u32; logits.len()];
    for position in 0..draws {
        counts[sampler.choose(logits, params, position).unwrap() as usize] += 1;
    }
    // Rare tokens share a cell, so that at least 8 draws are expected in each cell.
    let (mut statistic, mut cells) = (0.0, 0);
    let (mut rare_expected, mut rare_count) = (0.0, 0.0);
    for (p, &count) in expected.iter().zip(&counts) {
        let (expect, count) = (p * f64::from(draws), f64::from(count));
        assert!(*p > 0.0 || count == 0.0, "a token that was filtered out was drawn");
        if expect >= 8.0 {
            statistic += (count - expect).powi(2) / expect;
            cells += 1;
        } else {
            rare_expected += expect;
            rare_count += count;
        }
    }
    if rare_expected >= 8.0 {
        statistic += (rare_count - rare_expected).powi(2) / rare_expected;
        cells += 1;
    }
    let limit = chi_square_limit((cells - 1).max(1));
    println!("{params:?}: chi-square {statistic:.1} of {cells} cells, limit {limit:.1}");
    assert!(statistic < limit);
}

#[test]
fn choices_follow_the_filtered_distribution() {
    let mut random = Random::new(99);
    let cases = [
        (at(1.0), 2.0),
        (at(0.6), 2.0),
        (at(2.5), 1.0),
        (SamplingParams { top_k: Some(7), ..at(1.0) }, 1.5),
        (SamplingParams { top_p: 0.8, ..at(1.0) }, 1.5),
        (SamplingParams { min_p: 0.1, ..at(1.3) }, 1.5),
        (SamplingParams { top_k: Some(20), top_p: 0.9, min_p: 0.02, ..at(0.8) }, 2.0),
    ];
    for (i, (mut params, scale)) in cases.into_iter().enumerate() {
        params.seed = 1000 + i as u64;
        params.sample = i as u32;
        check_frequencies(&random.logits(61, scale), &params, 100_000);
    }
}

#[test]
fn choices_of_different_seeds_and_samples_follow_the_distribution_too() {
    let logits = Random::new(4).logits(16, 1.0);
    let expected = distribution(&logits, &at(1.0)).unwrap();
    let mut sampler = Sampler::default();
    for vary_seed in [true, false] {
        let mut counts = [0u32; 16];
        let draws = 100_000u32;
        for i in 0..draws {
            let mut params = at(1.0);
            if vary_seed {
                params.seed = u64::from(i) << 20;
            } else {
                params.sample = i;
            }
            counts[sampler.choose(&logits, &params, 17).unwrap() as usize] += 1;
        }
        let term = |(p, &count): (&f64, &u32)| {
            let expect = p * f64::from(draws);
            (f64::from(count) - expect).powi(2) / expect
        };
        let statistic: f64 = expected.iter().zip(&counts).map(term).sum();
        assert!(statistic < chi_square_limit(15), "{statistic}");
    }
}

#[test]
fn the_shortcuts_change_no_choice() {
    let mut random = Random::new(123);
    let mut sampler = Sampler::default();
    for case in 0..4000u32 {
        let count = 1 + random.below(400) as usize;
        let scale = [0.0, 0.5, 3.0, 20.0][case as usize % 4];
        let logits = random.logits(count, scale);
        let mut params = at([0.1, 0.7, 1.0, 3.0][random.below(4) as usize]);
        params.seed = random.next();
        if case % 2 == 0 {
            params.top_p = 0.9;
        }
        let found = sampler.choose(&logits, &params, case).unwrap();
        assert_eq!(found, naive(&logits, &params, case), "case {case}");
    }
}

#[test]
fn greedy_takes_the_lowest_of_the_best() {
    let mut sampler = Sampler::default();
    let greedy = SamplingParams { top_k: Some(1), top_p: 0.5, ..SamplingParams::greedy() };
    let mut choose = |logits: &[f32]| sampler.choose(logits, &greedy, 3).unwrap();
    assert_eq!(choose(&[1.0, 5.0, 5.0]), 1);
    assert_eq!(choose(&[f32::NEG_INFINITY, -3.0]), 1);
    assert_eq!(choose(&[-0.0, 0.0]), 0);
    assert_eq!(choose(&[f32::MIN]), 0);
}

#[test]
fn draws_do_not_depend_on_order_or_on_the_sampler() {
    let mut random = Random::new(77);
    let rows: Vec<Vec<f32>> = (0..64).map(|_| random.logits(100, 1.0)).collect();
    let params = |i: usize| SamplingParams {
        seed: i as u64 % 5,
        sample: i as u32 % 3,
        top_p: if i.is_multiple_of(2) { 0.9 } else { 1.0 },
        ..at(1.0)
    };
    let alone: Vec<u32> =
        (0..64).map(|i| Sampler::default().choose(&rows[i], &params(i), i as u32 / 7).unwrap()).collect();
    let mut shared = Sampler::default();
    for i in (0..64).rev() {
        let found = shared.choose(&rows[i], &params(i), i as u32 / 7).unwrap();
        assert_eq!(found, alone[i]);
    }
}

#[test]
fn a_draft_with_the_same_noise_mostly_agrees() {
    // Without coupling, two draws agree with probability sum p^2, which is about 0.05 here.
    let mut random = Random::new(2);
    let mut sampler = Sampler::default();
    let mut agreed = 0;
    for position in 0..2000 {
        let target = random.logits(100, 1.0);
        let wobble = random.logits(100, 0.1);
        let draft: Vec<f32> = target.iter().zip(wobble).map(|(t, w)| t + w).collect();
        let one = sampler.choose(&target, &at(1.0), position).unwrap();
        agreed += u32::from(sampler.choose(&draft, &at(1.0), position).unwrap() == one);
    }
    assert!(agreed > 1600, "{agreed} of 2000");
}

#[test]
fn a_low_temperature_approaches_greedy_without_overflow() {
    let logits = [3.0e38, -3.0e38, 2.9e38, 1.0];
    for temperature in [1e-45, 1e-20, 1.0, 1e20] {
        let token = Sampler::default().choose(&logits, &at(temperature), 0);
        assert_eq!(token.unwrap(), 0);
    }
}

#[test]
fn logits_that_are_no_numbers_are_refused() {
    for params in [SamplingParams::greedy(), at(1.0), SamplingParams { top_k: Some(1), ..at(1.0) }] {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY] {
            for place in [0, 3, 8] {
                let mut logits = [0.5; 9];
                logits[place] = bad;
                let error = Sampler::default().choose(&logits, &params, 0).unwrap_err();
                let message = error.to_string();
                assert!(message.contains(&format!("token {place} ")), "{message}");
            }
        }
        for empty in [&[][..], &[f32::NEG_INFINITY; 5]] {
            let error = Sampler::default().choose(empty, &params, 0).unwrap_err();
            assert_eq!(error, SamplingError::NoToken { vocab: empty.len() });
        }
    }
}

#[test]
fn seeded_choices_are_pinned() {
    // A seed must give the same tokens on every machine and in every version.
    let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 25.0).collect();
    let params = SamplingParams { seed: 42, ..at(1.0) };
    let mut sampler = Sampler::default();
    let tokens: Vec<u32> =
        (0..8).map(|position| sampler.choose(&logits, &params, position).unwrap()).collect();
    // An independent program (Python with libm) gave the same tokens.
    assert_eq!(tokens, [791, 338, 90, 941, 56, 898, 523, 636]);
}
