use pagedraft_workloads::dataset::{DatasetError, SkipReason};
use pagedraft_workloads::measures::{Recorder, RecorderOptions};
use pagedraft_workloads::replay::{Incoming, SkippedRequest, Status};
use pagedraft_workloads::sim::simulate;

use crate::world::{Seen, options, random_stream, request, run, try_run};

const MS: u64 = 1_000_000;

#[test]
fn requests_are_sent_on_time_though_the_engine_is_overloaded() {
    // 5,000 a second of 20 tokens each, and an engine that gives 64 tokens a millisecond at best.
    let asked = 5000.0;
    let gap = 200_000;
    let mut options = options();
    options.scheduler.max_num_seqs = 64;
    let stream = (0..20_000).map(|i| request(i, Some(i * gap), vec![1; 40], 20)).collect();
    let outcome = run(stream, &options);
    let mut sent: Vec<f64> = outcome.seen.lines.iter().map(|line| line.sent_s.unwrap()).collect();
    sent.sort_by(f64::total_cmp);
    let rate = (sent.len() - 1) as f64 / (sent[sent.len() - 1] - sent[0]);
    assert!((rate / asked - 1.0).abs() < 0.001, "{rate} requests a second were sent");
    let reported = outcome.recorder.summary().rate_sent.unwrap();
    assert!((reported / asked - 1.0).abs() < 0.001, "{reported} requests a second were reported");
    assert!(outcome.seen.lines.iter().all(|line| line.sent_s == line.intended_arrival_s));
    assert!(outcome.report.end_ns > 20_000 * gap * 5 / 4, "the engine was not overloaded");
}

#[test]
fn the_wait_for_a_seat_is_queueing_and_counts_from_the_intended_arrival() {
    let mut options = options();
    options.max_concurrency = Some(1);
    // Three tokens each: 3 ms.
    let stream = (0..3).map(|i| request(i, Some(i * MS), vec![1, 2], 3)).collect();
    let outcome = run(stream, &options);
    for (index, sent, queue) in [(0, 0.0, 0.0), (1, 3.0, 2.0), (2, 6.0, 4.0)] {
        let line = outcome.line(index);
        let ms = |s: Option<f64>| (s.unwrap() * 1e6).round() / 1e3;
        assert_eq!(ms(line.intended_arrival_s), index as f64);
        assert_eq!(ms(line.sent_s), sent);
        assert_eq!(line.queue_ms, Some(queue));
        assert_eq!(line.ttft_ms, Some(queue + 1.0));
        assert_eq!(line.e2el_ms, Some(queue + 3.0));
    }
}

#[test]
fn a_closed_loop_sends_the_next_request_as_a_seat_frees() {
    let mut options = options();
    options.max_concurrency = Some(2);
    let stream = [5, 2, 4, 1].into_iter().zip(0..).map(|(n, i)| request(i, None, vec![9], n)).collect();
    let outcome = run(stream, &options);
    // Two at once; the third as the second ends (2 ms), the fourth as the first does (5 ms).
    for (index, sent_ms, finish_ms) in [(0, 0.0, 5.0), (1, 0.0, 2.0), (2, 2.0, 6.0), (3, 5.0, 6.0)] {
        let line = outcome.line(index);
        let ms = |s: Option<f64>| (s.unwrap() * 1e6).round() / 1e3;
        assert_eq!((ms(line.sent_s), ms(line.finish_s)), (sent_ms, finish_ms), "request {index}");
        assert_eq!(line.sent_s, line.intended_arrival_s, "request {index}");
    }
    let most = outcome.seen.steps.iter().map(|step| step.running + step.waiting).max();
    assert_eq!(most, Some(2));
}

#[test]
fn what_is_refused_is_a_failed_line_and_frees_its_seat() {
    let mut options = options();
    options.max_concurrency = Some(1);
    options.scheduler.max_model_len = 100;
    options.scheduler.num_blocks = 5;
    let stream = vec![
        request(0, Some(0), vec![], 4),
        request(1, Some(0), vec![1; 200], 4),
        // It may grow to 90 tokens, and the pool holds 80.
        request(2, Some(0), vec![1; 50], 40),
        request(3, Some(0), vec![1; 50], 31),
    ];
    let outcome = run(stream, &options);
    for index in 0..3 {
        let line = outcome.line(index);
        assert_eq!(line.status, Status::Failed, "request {index}");
        assert!(line.error.as_ref().is_some_and(|error| !error.is_empty()));
    }
    assert_eq!(outcome.line(3).output_tokens, 31);
    assert_eq!(outcome.recorder.in_flight(), 0);
}

#[test]
fn skipped_records_are_told_of_and_errors_of_the_source_end_the_run() {
    let skipped = Incoming::Skipped(SkippedRequest {
        index: 0,
        source_id: None,
        category: None,
        arrival_ns: None,
        prompt_tokens: Some(9),
        reason: SkipReason::PromptTooLong,
    });
    let first = Incoming::Request(request(1, Some(0), vec![1], 1));
    let broken = DatasetError::Options("no more".to_owned());
    let mut source = [Ok(skipped), Ok(first), Err(broken)].into_iter();
    let (mut recorder, mut seen) = (Recorder::new(RecorderOptions::default()), Seen::default());
    let error = simulate(&mut source, &options(), &mut recorder, &mut seen).unwrap_err();
    assert_eq!(error.to_string(), "no more");
    assert_eq!(seen.lines.iter().map(|line| line.status).collect::<Vec<_>>(), [Status::Skipped]);
}

#[test]
fn an_observer_stops_it() {
    let seen = Seen { stop_after: Some(5), ..Seen::default() };
    let outcome = try_run(random_stream(1, 50, MS, 10, 10), &options(), seen).unwrap();
    assert!(outcome.report.stopped);
    assert_eq!(outcome.seen.steps.len(), 5);
    assert!(!run(random_stream(1, 50, MS, 10, 10), &options()).report.stopped);
}

#[test]
fn options_that_cannot_be_are_refused() {
    let refused = |change: fn(&mut pagedraft_workloads::sim::SimOptions)| {
        let mut options = options();
        change(&mut options);
        let error = try_run(Vec::new(), &options, Seen::default()).err();
        error.expect("they are refused").to_string()
    };
    assert!(refused(|o| o.replicas = 0).contains("--replicas"));
    assert!(refused(|o| o.max_concurrency = Some(0)).contains("--max-concurrency"));
    assert!(refused(|o| o.cost.us_per_step = f64::NAN).contains("us_per_step"));
    assert!(refused(|o| o.scheduler.block_size = 15).contains("15"));
    assert!(
        refused(|o| {
            *o = crate::world::speculating(o.clone(), false, 3, 0.5);
            o.cost.proposers.clear();
        })
        .contains("proposer")
    );
    assert!(
        refused(|o| {
            *o = crate::world::speculating(o.clone(), false, 3, 0.5);
            o.speculation.as_mut().unwrap().acceptance = Some(1.5);
        })
        .contains("1.5")
    );
}
