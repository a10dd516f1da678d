use pagedraft_scheduler::CostCurve;
use pagedraft_workloads::replay::Status;

use crate::world::{options, request, run};

const US: u64 = 1000;

#[test]
fn three_requests_have_the_times_that_are_worked_out_by_hand() {
    let mut options = options();
    // A step takes 100 us, 10 more for each token row behind the first, 3 a request and 7 besides.
    options.cost.target = CostCurve { points: vec![(1, 100.0), (11, 200.0)], ..CostCurve::default() };
    options.cost.us_per_row = 3.0;
    options.cost.us_per_step = 7.0;
    let stream = vec![
        request(0, Some(0), vec![1, 2, 3, 4], 3),
        request(1, Some(50 * US), vec![5, 6], 2),
        request(2, Some(1000 * US), vec![7], 1),
    ];
    let outcome = run(stream, &options);

    // 0: four tokens of prompt 0, from 0 on: 100 + 30 + 3 + 7.
    // 1: one token of 0 and the prompt of 1, which waited since 50: 100 + 20 + 6 + 7.
    // 2: one token of each, and both end: 100 + 10 + 6 + 7.
    // 3: the prompt of 2, as it comes: 100 + 3 + 7.
    let steps = &outcome.seen.steps;
    let times: Vec<_> = steps.iter().map(|step| (step.step, step.start_ns, step.end_ns)).collect();
    let ends = [0, 140 * US, 273 * US, 396 * US];
    assert_eq!(
        times,
        [(0, 0, ends[1]), (1, ends[1], ends[2]), (2, ends[2], ends[3]), (3, 1000 * US, 1110 * US)]
    );
    assert_eq!(outcome.report.end_ns, 1110 * US);
    let rows: Vec<Vec<_>> =
        steps.iter().map(|step| step.rows.iter().map(|r| (r.new_tokens, r.context)).collect()).collect();
    assert_eq!(rows, [vec![(1, 4)], vec![(1, 5), (1, 2)], vec![(1, 6), (1, 3)], vec![(1, 1)]]);
    let counts: Vec<_> =
        steps.iter().map(|s| (s.prefill_tokens, s.decode_rows, s.running, s.waiting)).collect();
    assert_eq!(counts, [(4, 0, 1, 0), (2, 1, 2, 0), (0, 2, 2, 0), (1, 0, 1, 0)]);

    let close = |found: Option<f64>, expected_ns: u64, unit: f64| {
        let found = found.expect("a time");
        assert!((found - expected_ns as f64 * unit).abs() < 1e-9, "{found} for {expected_ns} ns");
    };
    for (index, intended, first, finish, queue) in [
        (0, 0, ends[1], ends[3], 0),
        (1, 50 * US, ends[2], ends[3], 90 * US),
        (2, 1000 * US, 1110 * US, 1110 * US, 0),
    ] {
        let line = outcome.line(index);
        assert_eq!(line.status, Status::Finished);
        close(line.intended_arrival_s, intended, 1e-9);
        close(line.sent_s, intended, 1e-9);
        close(line.first_token_s, first, 1e-9);
        close(line.finish_s, finish, 1e-9);
        close(line.ttft_ms, first - intended, 1e-6);
        close(line.e2el_ms, finish - intended, 1e-6);
        close(line.queue_ms, queue, 1e-6);
        assert_eq!(line.finish_reason.as_deref(), Some("length"));
    }
    assert_eq!([0, 1, 2].map(|i| outcome.line(i).output_tokens), [3, 2, 1]);
}

#[test]
fn contexts_are_read_once_a_row_and_paired_with_each_query_token() {
    let mut options = options();
    options.cost.target = CostCurve { points: vec![(1, 0.0)], us_per_context: 1.0, us_per_read: 1000.0 };
    options.scheduler.prefill_chunk = Some(3);
    let outcome = run(vec![request(0, Some(0), vec![1, 2, 3, 4, 5], 2)], &options);
    let took: Vec<_> = outcome.seen.steps.iter().map(|step| (step.end_ns - step.start_ns) / US).collect();
    // Tokens 0..3 behind nothing: 0 + 1 + 2 pairs. Tokens 3..5 behind three: 3 + 4 pairs. Token 5 behind five.
    assert_eq!(took, [3, 3007, 5005]);
}

#[test]
fn a_step_takes_whole_nanoseconds() {
    let mut options = options();
    // A step and a half would drift apart from its report.
    options.cost.target = CostCurve { points: vec![(1, 0.0015)], ..CostCurve::default() };
    let outcome = run(vec![request(0, Some(0), vec![1], 8000)], &options);
    assert_eq!(outcome.report.end_ns, 8000 * 2);
}
