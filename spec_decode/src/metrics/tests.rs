//! Compares the definitions with numbers that are known beforehand.

use super::*;

fn verdict(accepted: u16, accepted_noncausal: u16) -> Verdict {
    Verdict { accepted, accepted_noncausal }
}

/// The metrics of `rows` rows of k drafts, each of which passes with probability `alpha`, independently.
fn independent(alpha: f64, k: usize, rows: u32, seed: u64) -> SpeculationMetrics {
    println!("seed {seed}");
    let params = crate::sampling::SamplingParams { seed, ..Default::default() };
    let mut metrics = SpeculationMetrics::default();
    for row in 0..rows {
        let noise = crate::sampling::Noise::new(&params, row);
        let passes: Vec<bool> = (0..k as u32)
            .map(|lane| noise.uniform(crate::sampling::Purpose::Acceptance, lane) < alpha)
            .collect();
        let causal = passes.iter().take_while(|p| **p).count();
        let alone = passes.iter().filter(|p| **p).count();
        metrics.record_row(k, verdict(causal as u16, alone as u16));
    }
    metrics
}

#[test]
fn independent_drafts_give_the_values_of_the_formulas() {
    for (case, (alpha, k)) in
        [(0.0, 2), (0.343, 2), (0.5, 1), (0.6, 3), (0.8, 5), (1.0, 4)].into_iter().enumerate()
    {
        let rows = 100_000;
        let metrics = independent(alpha, k, rows, 7 + case as u64);
        let (a, n) = (alpha, k as i32);
        let a_row = if a < 1.0 { (1.0 - a.powi(n + 1)) / (1.0 - a) } else { f64::from(n + 1) };
        // The tolerance is 5 standard errors. `spread` bounds the standard deviation of one row.
        let near = |found: Option<f64>, expected: f64, spread: f64| {
            let found = found.unwrap();
            let slack = 5.0 * spread / f64::from(rows).sqrt();
            assert!((found - expected).abs() <= slack, "alpha {a} k {k}: {found}, not {expected} +- {slack}");
        };
        near(metrics.draft_acceptance_rate_noncausal(), a, 0.5);
        near(metrics.mean_acceptance_length(), a_row, f64::from(n + 1) / 2.0);
        near(metrics.system_efficiency(), a_row / f64::from(n + 1), 0.5);
        near(metrics.draft_acceptance_rate(), (a_row - 1.0) / f64::from(n), 0.5);
        for (i, rate) in metrics.rate_by_position().into_iter().enumerate() {
            near(rate, a.powi(i as i32 + 1), 0.5);
        }
        for (rate, reached) in
            metrics.conditional_rate_by_position().into_iter().zip(&metrics.reached_by_position)
        {
            if *reached > 1000 {
                assert!((rate.unwrap() - a).abs() <= 2.5 / (*reached as f64).sqrt());
            }
        }
        assert_eq!(metrics.num_emitted_tokens, metrics.num_accepted_tokens + u64::from(rows));
    }
}

/// Three runs of another engine (Llama, batch 8, k = 2): the rate and the efficiency that it printed, and
/// its counts.
#[test]
fn the_numbers_of_the_notes_agree_with_these_definitions() {
    for (rate, efficiency, accepted, drafted, emitted) in [
        ("0.343", "0.489", 6455, 18802, 13783),
        ("0.490", "0.584", 7655, 15626, 13700),
        ("0.412", "0.533", 7015, 17022, 13603),
    ] {
        let k = 2;
        let metrics = SpeculationMetrics {
            num_draft_tokens: drafted,
            num_verify_rows: drafted / k,
            num_accepted_tokens: emitted - drafted / k,
            num_accepted_tokens_noncausal: accepted,
            num_emitted_tokens: emitted,
            max_emitted_tokens: drafted / k * (k + 1),
            ..SpeculationMetrics::default()
        };
        let found = metrics.draft_acceptance_rate_noncausal().unwrap();
        assert_eq!(format!("{found:.3}"), rate);
        assert_eq!(format!("{:.3}", metrics.system_efficiency().unwrap()), efficiency);
        // The tokens emitted beyond one per row were accepted before the first rejection. They are fewer
        // than V0 counts as accepted.
        assert!(metrics.num_accepted_tokens < accepted);
    }
}

#[test]
fn the_log_lines_are_those_of_the_notes() {
    let metrics = SpeculationMetrics {
        num_steps: 10,
        num_draft_tokens: 18802,
        num_accepted_tokens: 4382,
        num_accepted_tokens_noncausal: 6455,
        num_emitted_tokens: 13783,
        max_emitted_tokens: 28203,
        proposal_rounds: 20,
        propose_us: 71_400.0,
        propose_idle_us: 1e9,
        scoring_us: 944_200.0,
        verification_us: 13_200.0,
        ..SpeculationMetrics::default()
    };
    let [speculation, stages] = metrics.log_lines(2);
    assert_eq!(
        speculation,
        "Speculative metrics: Draft acceptance rate: 0.343, System efficiency: 0.489, Number of speculative tokens: 2, \
         Number of accepted tokens: 6455, Number of draft tokens: 18802, Number of emitted tokens: 13783."
    );
    assert_eq!(
        stages,
        "SpecDecodeWorker stage times: average_time_per_proposal_tok_ms=3.57 scoring_time_ms=94.42 \
         verification_time_ms=1.32"
    );
}

#[test]
fn rows_of_different_lengths_are_each_measured_against_their_own() {
    let mut metrics = SpeculationMetrics::default();
    metrics.record_row(0, verdict(0, 0));
    metrics.record_row(1, verdict(1, 1));
    metrics.record_row(3, verdict(1, 2));
    metrics.record_row(2, verdict(0, 1));
    assert_eq!((metrics.num_verify_rows, metrics.num_draft_tokens), (3, 6));
    assert_eq!((metrics.num_emitted_tokens, metrics.max_emitted_tokens), (5, 9));
    assert_eq!(metrics.drafted_by_position, [3, 2, 1]);
    assert_eq!(metrics.reached_by_position, [3, 1, 0]);
    assert_eq!(metrics.accepted_by_position, [2, 0, 0]);
    assert_eq!(metrics.rate_by_position(), [Some(2.0 / 3.0), Some(0.0), Some(0.0)]);
    assert_eq!(metrics.conditional_rate_by_position(), [Some(2.0 / 3.0), Some(0.0), None]);
    assert_eq!(metrics.mean_acceptance_length(), Some(1.0 + 2.0 / 3.0));
    assert_eq!(metrics.draft_acceptance_rate_noncausal(), Some(4.0 / 6.0));
}

#[test]
fn what_was_counted_since_a_snapshot_merges_back_to_the_whole() {
    let times = SpeculationTimes { propose_us: 8.0, scoring_us: 64.0, verification_us: 2.0 };
    let mut metrics = independent(0.5, 2, 100, 1);
    metrics.record_step(2, times);
    let snapshot = metrics.clone();
    metrics.merge(&independent(0.7, 4, 50, 2));
    metrics.record_step(4, times);
    metrics.record_step(0, times);
    let rest = metrics.since(&snapshot);
    assert_eq!((rest.num_verify_rows, rest.num_steps, rest.proposal_rounds), (50, 1, 4));
    assert_eq!((rest.propose_us, rest.propose_idle_us), (8.0, 8.0));
    assert_eq!(rest.average_time_per_proposal_tok_ms(), Some(0.002));
    let mut whole = snapshot.clone();
    whole.merge(&rest);
    assert_eq!(whole, metrics);
    assert_eq!(metrics.since(&metrics).num_draft_tokens, 0);
}

#[test]
fn without_drafts_rates_are_absent_and_the_lines_say_nan() {
    let metrics = SpeculationMetrics::default();
    assert_eq!(metrics.summary(), SpeculationSummary::default());
    let [speculation, stages] = metrics.log_lines(3);
    assert!(speculation.contains("Draft acceptance rate: nan, System efficiency: nan, "), "{speculation}");
    assert!(stages.ends_with("verification_time_ms=nan"), "{stages}");
    let json = serde_json::to_value(metrics.summary()).unwrap();
    assert!(json["draft_acceptance_rate"].is_null());
}

#[test]
fn a_request_knows_its_own_positions() {
    let mut request = RequestSpeculation::default();
    request.record_row(0, verdict(0, 0));
    assert_eq!(request, RequestSpeculation::default());
    request.record_row(2, verdict(2, 2));
    request.record_row(3, verdict(1, 3));
    assert_eq!(
        (request.drafted_by_position.as_slice(), request.accepted_by_position.as_slice()),
        (&[2, 2, 1][..], &[2, 1, 0][..])
    );
    assert_eq!((request.num_draft_tokens(), request.num_accepted_tokens()), (5, 3));
}
