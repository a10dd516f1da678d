//! Tests what raises an alarm, how soon, and what never does.

use super::*;
use crate::sampling::{Noise, Purpose, SamplingParams};

/// Simulates the rows of an engine that is healthy or has a fault. Every decision is a function of uniform
/// numbers of (seed, step, row, place, purpose).
struct World {
    seed: u64,
    /// The number of rows in a step. Each has `k` drafts.
    batch: u32,
    k: u32,
    /// The probability that a draft passes eagerly.
    alpha: f64,
    /// The share of decisions that the graph makes differently, either way, if nothing is wrong.
    wobble: f64,
    /// The share of accepted drafts that a fault causes to be rejected.
    dropped: f64,
}

impl World {
    fn uniform(&self, step: u64, row: u32, lane: u32) -> f64 {
        let params = SamplingParams { seed: self.seed, sample: row, ..Default::default() };
        Noise::new(&params, step as u32).uniform(Purpose::Proposal, lane)
    }

    fn row(&self, step: u64, row: u32) -> ShadowRow {
        let (mut eager, mut graph) = ((0, true), (0, true));
        for place in 0..self.k {
            let u = |what| self.uniform(step, row, 4 * place + what);
            // A disturbed decision differs on the graph's or on the eager side with equal probability, so
            // the disturbance is symmetric.
            let truth = u(0) < self.alpha;
            let disturbed = u(1) < self.wobble;
            let by_eager = truth ^ (disturbed && u(2) < 0.5);
            let by_graph = truth ^ (disturbed && u(2) >= 0.5);
            let by_graph = by_graph && u(3) >= self.dropped;
            for (side, passes) in [(&mut eager, by_eager), (&mut graph, by_graph)] {
                side.1 &= passes;
                side.0 += u16::from(side.1);
            }
        }
        ShadowRow {
            request: RequestKey::default(),
            plan_row: row,
            drafts: self.k as u16,
            accepted_graph: graph.0,
            accepted_eager: eager.0,
            tokens_equal: graph.0 == eager.0,
            logits_equal: self.wobble == 0.0 && self.dropped == 0.0,
        }
    }

    /// The first step of `steps` at which the canary raises an alarm.
    fn run(&self, canary: &mut Canary, steps: std::ops::Range<u64>) -> Option<u64> {
        let mut rows = Vec::new();
        for step in steps {
            if canary.due(step) {
                rows.clear();
                rows.extend((0..self.batch).map(|row| self.row(step, row)));
                if canary.observe(step, &rows) {
                    return Some(step);
                }
            }
        }
        None
    }
}

fn healthy(seed: u64) -> World {
    World { seed, batch: 8, k: 2, alpha: 0.6, wobble: 0.0, dropped: 0.0 }
}

fn fine(plan_row: u32) -> ShadowRow {
    ShadowRow { plan_row, ..healthy(0).row(0, 0) }
}

#[test]
fn the_first_difference_is_an_alarm_in_exact_mode() {
    let different = [
        (ShadowRow { tokens_equal: false, logits_equal: false, ..fine(1) }, "tokens"),
        (ShadowRow { accepted_graph: 1, accepted_eager: 2, ..fine(1) }, "accepted drafts"),
        (ShadowRow { logits_equal: false, ..fine(1) }, "logits"),
    ];
    for (row, what) in different {
        let mut canary = Canary::new(1.0, 3);
        assert!(!canary.observe(4, &[fine(0), fine(1)]));
        assert!(canary.observe(5, &[fine(0), row]));
        assert!(canary.observe(6, &[row]));
        assert_eq!(canary.alarm(), Some(&CanaryAlarm::Difference { step: 5, row, what }));
        let message = canary.alarm().unwrap().to_string();
        assert!(message.starts_with("step 5, request ") && message.contains("row 1 of"), "{message}");
        assert!(message.contains(what) && message.contains("--enforce-eager"), "{message}");
        let report = canary.report();
        assert_eq!((report.shadow_steps, report.alarms, report.first_alarm_step), (3, 2, Some(5)));
        assert_eq!(report.drafted, 10);
    }
}

#[test]
fn one_step_of_each_run_is_due_at_a_place_of_its_own() {
    for rate in [0.05, 0.25, 0.3, 0.7, 1.0 / 3.0, 1e-3, 1.0] {
        for seed in [0, 9] {
            let canary = Canary::new(rate, seed);
            let due: Vec<u64> = (0..40_000).filter(|&step| canary.due(step)).collect();
            let expected = 40_000.0 * rate;
            assert!((due.len() as f64 - expected).abs() <= 1.0, "rate {rate}: {} due", due.len());
            let gap = due.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
            assert!(gap as f64 <= 2.0 / rate + 1.0, "rate {rate}: {gap} steps without a shadow");
            if rate == 0.05 {
                let places: std::collections::HashSet<u64> = due.iter().map(|step| step % 20).collect();
                assert_eq!(places.len(), 20);
                assert!(due.iter().any(|&step| canary.due(step) != Canary::new(rate, 77).due(step)));
            }
        }
    }
    // The numbering also works close to the greatest step number.
    let canary = Canary::new(0.05, 1);
    let far = u64::MAX - 4000;
    assert_eq!((far..far + 2000).filter(|&step| canary.due(step)).count(), 100);
}

#[test]
fn a_rate_of_zero_or_of_no_number_is_never_and_of_one_is_always() {
    for rate in [0.0, -1.0, f64::NAN, f64::NEG_INFINITY] {
        assert!((0..1000).all(|step| !Canary::new(rate, 1).due(step)));
    }
    for rate in [1.0, 2.0, f64::INFINITY] {
        assert!((0..1000).all(|step| Canary::new(rate, 1).due(step)));
    }
    // A rate above 0 must make some step due, however small it is.
    assert!((0..4).any(|run| Canary::new(1e-300, 1).due.at(run << 32) || run == 3));
}

#[test]
fn a_fault_in_most_verify_steps_is_raised_within_200_steps_for_every_seed() {
    for seed in 0..5000 {
        let from = seed * 37;
        let mut canary = Canary::new(0.05, seed);
        // In three of four steps, one bit of one row is wrong.
        let found = (from..from + 200).find(|&step| {
            let wrong = healthy(seed).uniform(step, 99, 0) < 0.75;
            canary.due(step)
                && canary.observe(step, &[fine(0), ShadowRow { logits_equal: !wrong, ..fine(1) }])
        });
        assert!(found.is_some(), "seed {seed}: no alarm from step {from} on");
    }
}

#[test]
fn a_hundred_thousand_healthy_steps_raise_nothing() {
    for seed in 0..5 {
        println!("seed {seed}");
        for rate in [0.05, 1.0] {
            if rate == 1.0 && seed > 0 {
                continue;
            }
            let mut exact = Canary::new(rate, seed);
            assert_eq!(healthy(seed).run(&mut exact, 0..100_000), None);
            assert_eq!(exact.report().shadow_steps, (100_000.0 * rate) as u64);
            let mut drift = Canary::new(rate, seed).exact(false);
            let wobbly = World { wobble: 0.01, ..healthy(seed) };
            assert_eq!(wobbly.run(&mut drift, 0..100_000), None);
            let report = drift.report();
            println!("shadowed {} of {}", report.shadow_steps, 100_000.0 * rate);
            assert!(report.shadow_steps as f64 <= 105_000.0 * rate);
            assert_ne!(report.accepted_graph, report.accepted_eager);
            assert_eq!((report.alarms, drift.alarm()), (0, None));
        }
    }
}

/// How many of `seeds` tries find the drift within 200 steps. Each try begins at another step of a healthy
/// run.
fn found_within_200(alpha: f64, seeds: u64) -> f64 {
    let found = (0..seeds).filter(|&seed| {
        let mut canary = Canary::new(0.05, seed).exact(false);
        let healthy = World { wobble: 0.01, alpha, ..healthy(seed) };
        let start = 1000 + seed * 7 % 640;
        assert_eq!(healthy.run(&mut canary, 0..start), None);
        let faulty = World { dropped: 1.0 / 3.0, ..healthy };
        faulty.run(&mut canary, start..start + 200).is_some()
    });
    found.count() as f64 / seeds as f64
}

#[test]
fn drift_of_a_third_is_found_within_200_steps() {
    for alpha in [0.6, 0.8] {
        let share = found_within_200(alpha, 200);
        println!("acceptance {alpha}: a share of {share} found of 200 seeds");
        assert!(share >= 0.99, "{alpha}: {share}");
    }
}

#[test]
#[ignore = "half a minute: the power of the drift detector"]
fn the_power_of_the_drift_detector_is_what_its_documentation_says() {
    for alpha in [0.5, 0.6, 0.7, 0.8, 0.9] {
        let mut delays: Vec<u64> = (0..400)
            .map(|seed| {
                let mut canary = Canary::new(0.05, seed).exact(false);
                let faulty = World { wobble: 0.01, alpha, dropped: 1.0 / 3.0, ..healthy(seed) };
                faulty.run(&mut canary, 0..2000).unwrap_or(2000)
            })
            .collect();
        delays.sort_unstable();
        println!(
            "alpha {alpha}: within 200 steps {:.3}; steps to the alarm: median {}, 99 % {}, most {}",
            found_within_200(alpha, 1000),
            delays[200],
            delays[396],
            delays[399]
        );
    }
}

#[test]
fn the_alarm_of_drift_says_what_was_seen_and_where() {
    let mut canary = Canary::new(0.05, 2).exact(false);
    let worse = ShadowRow { drafts: 2, accepted_graph: 0, accepted_eager: 2, tokens_equal: false, ..fine(3) };
    let step = (0..100).find(|&step| canary.observe(step, &[worse])).unwrap();
    // The bet needs 32 rows: 1.9^31 is below 6 * 10^8, and 1.9^32 is above.
    assert_eq!(step, 31);
    let message = canary.alarm().unwrap().to_string();
    println!("{message}");
    assert!(message.starts_with("step 31, last seen at request "), "{message}");
    assert!(message.contains("in 32 and more in 0") && message.contains("since step 0"), "{message}");
    // A fault that goes on raises an alarm again.
    assert!((32..100).any(|step| canary.observe(step, &[worse])));
    assert_eq!((canary.report().alarms, canary.report().first_alarm_step), (2, Some(31)));
}

#[test]
fn a_graph_that_accepts_too_much_is_found_as_well() {
    let mut canary = Canary::new(0.05, 2).exact(false);
    let better = ShadowRow { drafts: 2, accepted_graph: 2, accepted_eager: 1, ..fine(0) };
    assert!((0..100).any(|step| canary.observe(step, &[better])));
}

#[test]
fn suspicion_has_every_step_shadowed_until_it_is_gone_and_in_exact_mode_changes_nothing() {
    let worse = ShadowRow { drafts: 2, accepted_graph: 0, accepted_eager: 2, ..fine(0) };
    let better = ShadowRow { accepted_graph: 2, accepted_eager: 0, ..worse };
    for exact in [false, true] {
        let mut canary = Canary::new(1e-9, 2).exact(exact);
        let all_due = |canary: &Canary| (1000..1100).all(|step| canary.due(step));
        canary.observe(0, &[worse; 7]);
        assert!(!all_due(&canary));
        canary.observe(1, &[worse]);
        assert_eq!(all_due(&canary), !exact);
        canary.observe(2, &[better; 3]);
        assert!(!all_due(&canary));
    }
}
