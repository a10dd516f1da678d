use std::collections::BTreeMap;

use pagedraft_scheduler::CostCurve;
use pagedraft_workloads::sim::{Acceptance, SimOptions};

use crate::world::{Outcome, options, request, run, speculating};

/// 40 requests of 300 tokens at once.
fn decode(options: &SimOptions) -> Outcome {
    run((0..40).map(|i| request(i, Some(0), vec![i as u32; 20], 300)).collect(), options)
}

/// Tokens of the rows that had `drafts` drafts, a row.
fn tokens_a_row(outcome: &Outcome, drafts: u16) -> f64 {
    let rows = outcome.seen.steps.iter().flat_map(|step| &step.rows).filter(|row| row.num_drafts == drafts);
    let (rows, tokens) = rows.fold((0, 0), |sum, row| (sum.0 + 1, sum.1 + u32::from(row.new_tokens)));
    assert!(rows > 1000, "{rows} rows had {drafts} drafts");
    f64::from(tokens) / f64::from(rows)
}

#[test]
fn acceptance_gives_the_expected_tokens_a_row() {
    for (share, drafts) in [(0.0, 3), (0.3, 4), (0.7, 3), (0.9, 5), (1.0, 2)] {
        for keeps_kv in [false, true] {
            let outcome = decode(&speculating(options(), keeps_kv, drafts, share));
            // Leviathan et al. 2023, equation 1.
            let expected: f64 = (0..=drafts).map(|i| share.powi(i32::from(i))).sum();
            let found = tokens_a_row(&outcome, drafts);
            assert!((found / expected - 1.0).abs() < 0.02, "{share}, {drafts}: {found} for {expected}");
        }
    }
}

#[test]
fn acceptance_by_position_is_each_place_s_own_and_the_last_goes_on() {
    let mut options = speculating(options(), false, 4, 0.5);
    let acceptance = Acceptance { by_position: vec![1.0, 0.5, 0.8], given: 0.75 };
    options.cost.acceptance = BTreeMap::from([("some".to_owned(), acceptance)]);
    let outcome = decode(&options);
    let rows = || outcome.seen.steps.iter().filter(|s| s.decode_rows > 0).flat_map(|step| &step.rows);
    let reached =
        |place: u16| rows().filter(|row| row.num_drafts == 4 && row.num_accepted >= place).count() as f64;
    for (place, share) in [(1, 1.0), (2, 0.5), (3, 0.8), (4, 0.8)] {
        let found = reached(place) / reached(place - 1);
        assert!((found - share).abs() < 0.04, "place {place}: {found} for {share}");
    }
    let given = rows().filter(|row| row.num_drafts > 0).count() as f64 / rows().count() as f64;
    assert!((given - 0.75).abs() < 0.03, "{given} of the rows were given drafts");
    options.speculation.as_mut().unwrap().acceptance = Some(0.0);
    assert!(decode(&options).seen.steps.iter().all(|step| step.rows.iter().all(|row| row.num_accepted == 0)));
}

#[test]
fn a_draft_model_makes_a_pass_a_draft_and_catches_up_first() {
    let mut options = speculating(options(), true, 2, 1.0);
    options.scheduler.enable_prefix_caching = false;
    options.cost.target = CostCurve { points: vec![(1, 0.0)], ..CostCurve::default() };
    // A microsecond a token row of a pass, 1000 a pass.
    let pass = CostCurve { points: vec![(1, 1001.0), (1001, 2001.0)], ..CostCurve::default() };
    if let Some(cost) = options.cost.proposers.get_mut("some") {
        cost.pass = pass;
    }
    let outcome = run(vec![request(0, Some(0), vec![1; 10], 11)], &options);
    let took: Vec<u64> = outcome.seen.steps.iter().map(|step| (step.end_ns - step.start_ns) / 1000).collect();
    // The prefill gives token 11. Then it lacks all 11; later the last draft, never run, and the token behind it: 2. It ends
    // with 21 tokens: 11 + 3 + 3 + 3, and the last without drafts.
    assert_eq!(took, [0, 1011 + 1001, 1002 + 1001, 1002 + 1001, 0]);
}

#[test]
fn batch_expansion_reads_the_context_for_every_token_and_replays_as_single_tokens() {
    let mut options = speculating(options(), false, 2, 0.0);
    options.cost.target = CostCurve { points: vec![(1, 0.0)], us_per_context: 0.0, us_per_read: 1.0 };
    let reads = |options: &SimOptions| -> Vec<u64> {
        let outcome = run(vec![request(0, Some(0), vec![1; 10], 4)], options);
        outcome.seen.steps.iter().map(|step| (step.end_ns - step.start_ns) / 1000).collect()
    };
    // Contexts 10, 11, 12; there is room for 2 drafts, 1 draft, none.
    assert_eq!(reads(&options), [0, 10, 11, 12]);
    options.speculation.as_mut().unwrap().batch_expansion = true;
    assert_eq!(reads(&options), [0, 10 + 11 + 12, 11 + 12, 12]);
}

#[test]
fn automatic_lengths_give_drafts_where_they_pay_and_none_where_they_do_not() {
    let drafts = |share, rows_us| {
        let mut options = speculating(options(), false, 4, share);
        options.speculation.as_mut().unwrap().auto = true;
        options.cost.target = CostCurve {
            points: vec![(1, 1000.0), (1001, 1000.0 + 1000.0 * rows_us)],
            ..CostCurve::default()
        };
        let outcome = run((0..4).map(|i| request(i, Some(0), vec![i as u32; 20], 400)).collect(), &options);
        let rows = || outcome.seen.steps.iter().flat_map(|step| &step.rows);
        rows().map(|row| f64::from(row.num_drafts)).sum::<f64>() / rows().count() as f64
    };
    assert!(drafts(0.9, 1.0) > 3.0, "free rows and good drafts");
    assert!(drafts(0.05, 500.0) < 0.1, "dear rows and bad drafts");
}

#[test]
fn steps_are_replayed_where_their_rows_fit_a_graph() {
    let mut options = options();
    options.scheduler.max_num_seqs = 4;
    let stream = || vec![request(0, Some(0), vec![1; 10], 3), request(1, Some(0), vec![2; 10], 3)];
    let replayed = |options: &SimOptions| -> Vec<bool> {
        run(stream(), options).seen.steps.iter().map(|step| step.replayed).collect()
    };
    assert_eq!(replayed(&options), [false, true, true]);
    options.enforce_eager = true;
    assert_eq!(replayed(&options), [false, false, false]);
}
