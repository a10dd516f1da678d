//! Measures what judging a row costs.

use super::toy::mix;
use super::*;
use std::time::Instant;

#[test]
#[ignore = "prints timings"]
fn the_cost_of_a_row_under_each_rule() {
    for vocab in [32_000, 150_000] {
        let normal = |seed: u64, i: usize| {
            let bits = mix(mix(seed) ^ i as u64);
            [0, 16, 32, 48].map(|s| (bits >> s & 0xffff) as f32 / 65536.0 - 0.5).iter().sum::<f32>() * 5.2
        };
        let p: Vec<f32> = (0..vocab).map(|i| normal(1, i)).collect();
        let q_logits: Vec<f32> = (0..vocab).map(|i| p[i] + 0.5 * normal(2, i)).collect();
        let open = SamplingParams::default();
        let top_k = SamplingParams { top_k: Some(50), top_p: 0.95, ..Default::default() };
        for (name, params) in
            [("open", open), ("top-k 50, top-p 0.95", top_k), ("greedy", SamplingParams::greedy())]
        {
            let q = distribution(&q_logits, &params).unwrap();
            let logits = [p.as_slice(), p.as_slice()].concat();
            for rule in [Acceptance::Coupled, Acceptance::Rejection, Acceptance::typical_default()] {
                let mut verifier = Verifier::new(rule);
                let mut micros = [Vec::new(), Vec::new()];
                let mut emitted = Vec::new();
                for seed in 0..200 {
                    let params = SamplingParams { seed, ..params.clone() };
                    let draft = Sampler::default().choose(&q_logits, &params, 3).unwrap();
                    let row = VerifyRow {
                        params: &params,
                        position: 3,
                        drafts: &[draft],
                        probabilities: Some(&q),
                        logits: &logits,
                    };
                    emitted.clear();
                    let start = Instant::now();
                    let verdict = verifier.verify(row, &mut emitted).unwrap();
                    micros[usize::from(verdict.accepted)].push(start.elapsed().as_secs_f64() * 1e6);
                }
                // Only the fastest tenth of the rows counts, so that other work on the machine does not.
                let fast = |times: &mut Vec<f64>| {
                    times.sort_by(f64::total_cmp);
                    times.get(times.len() / 10).copied().unwrap_or(f64::NAN)
                };
                let [fell, stood] = &mut micros;
                println!(
                    "vocab {vocab}, {name}, {rule}: a row of 1 draft, fell {:.0} us ({}), stood with bonus {:.0} us ({})",
                    fast(fell),
                    fell.len(),
                    fast(stood),
                    stood.len()
                );
            }
        }
    }
}
