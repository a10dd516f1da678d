//! Runs whose figures can be worked out by hand.

use crate::arrivals::Arrivals;
use crate::measures::{Recorder, RecorderOptions, RunFacts, Slo, Summary};
use crate::replay::{EndedRequest, PlannedRequest, RequestLine, RowReport, StepReport, Ticket};
use crate::trace::PoolCounts;
use pagedraft_scheduler::FinishReason;

pub fn options(items: u64) -> RecorderOptions {
    RecorderOptions { items, block_size: 16, ..RecorderOptions::default() }
}

pub fn request(index: u64) -> PlannedRequest {
    PlannedRequest {
        index,
        source_id: None,
        category: None,
        arrival_ns: None,
        prompt: vec![1, 2, 3],
        text: None,
        max_tokens: 1,
        until_stop: false,
        expect: None,
    }
}

fn row(ticket: Ticket, new_tokens: u16, context: u32) -> RowReport {
    RowReport { ticket, new_tokens, context, ..RowReport::default() }
}

fn end(ticket: Ticket) -> EndedRequest {
    EndedRequest {
        ticket,
        reason: FinishReason::Length,
        error: None,
        cached_tokens: 0,
        preemptions: 0,
        blocks_held: 1,
        prefix_blocks: Vec::new(),
        output: None,
    }
}

fn step(start_ns: u64, end_ns: u64, rows: Vec<RowReport>, ended: &[Ticket]) -> StepReport {
    let ended = ended.iter().map(|&t| end(t)).collect();
    StepReport { start_ns, end_ns, running: rows.len() as u32, rows, ended, ..StepReport::default() }
}

/// 60 s at 100 requests a second, each one step of a millisecond; the step that begins at 20 s takes 10 s. Nothing is
/// taken in while the engine makes a step.
fn frozen() -> (Summary, Vec<RequestLine>) {
    let mut recorder = Recorder::new(options(6000));
    let mut times = Arrivals::Constant { rate: 100.0 }.times(6000, 0).unwrap();
    let mut arrivals: std::collections::VecDeque<u64> = (0..6000).filter_map(|_| times.next(None)).collect();
    let (mut now, mut index, mut lines) = (0, 0, Vec::new());
    while let Some(&first) = arrivals.front() {
        now = now.max(first);
        let mut tickets = Vec::new();
        while arrivals.front().is_some_and(|&at| at <= now) {
            let intended = arrivals.pop_front().unwrap();
            tickets.push(recorder.send(&request(index), intended, now));
            index += 1;
        }
        let freeze = (20_000_000_000..20_005_000_000).contains(&now);
        let end_ns = if freeze { 30_000_000_000 } else { now + 1_000_000 };
        let rows = tickets.iter().map(|&t| row(t, 1, 3)).collect();
        recorder.step(&step(now, end_ns, rows, &tickets), &mut lines);
        now = end_ns;
    }
    (recorder.summary(), lines)
}

#[test]
fn a_server_that_freezes_shows_in_the_percentiles_of_what_should_have_been_sent() {
    let (summary, lines) = frozen();
    assert_eq!((summary.completed, lines.len()), (6000, 6000));
    // A request that arrives x seconds before the freeze ends waits so long: of 60 s of arrivals, 10 s are so. One in a
    // hundred waits longer than 10 - 0.01 * 60 seconds.
    let p99 = summary.latencies.ttft.p99.unwrap();
    assert!((p99 / 9400.0 - 1.0).abs() < 0.01, "{p99}");
    let queue = summary.latencies.queue.p99.unwrap();
    assert!((queue / 9400.0 - 1.0).abs() < 0.01, "{queue}");
    let median = summary.latencies.ttft.median.unwrap();
    assert!((1.0..1.001).contains(&median), "{median}");
    // From when it was sent, the freeze nearly hides: that is what must not be reported.
    let mut since_sent: Vec<f64> =
        lines.iter().map(|l| l.first_token_s.unwrap() - l.sent_s.unwrap()).collect();
    since_sent.sort_unstable_by(f64::total_cmp);
    assert!(since_sent[5940] < 0.01);
    assert!(summary.send_lateness_ms.max.unwrap() > 9900.0);
}

#[test]
fn the_table_of_requests_does_not_grow_with_requests() {
    let mut recorder = Recorder::new(options(100_000));
    let mut lines = Vec::new();
    for i in 0..100_000u64 {
        let now = i * 1_000_000_000;
        let ticket = recorder.send(&request(i), now, now);
        recorder.step(&step(now, now + 5, vec![row(ticket, 1, 4)], &[ticket]), &mut lines);
        assert_eq!(recorder.in_flight(), 0);
        lines.clear();
    }
    assert_eq!(recorder.in_flight.places(), 1);
    let summary = recorder.summary();
    assert_eq!((recorder.done(), summary.completed, summary.max_concurrent_requests), (100_000, 100_000, 1));
    assert!(summary.timeline.arrivals.len() <= 600 && summary.timeline.arrivals.len() > 300);
    assert_eq!(summary.timeline.arrivals.iter().sum::<u64>(), 100_000);
    assert!((summary.rate_sent.unwrap() - 1.0).abs() < 1e-9);
}

#[test]
fn three_readings_of_a_burst() {
    let mut recorder = Recorder::new(options(1));
    let ticket = recorder.send(&request(0), 0, 0);
    let mut lines = Vec::new();
    recorder.step(&step(0, 10_000_000, vec![row(ticket, 1, 4)], &[]), &mut lines);
    recorder.step(&step(10_000_000, 40_000_000, vec![row(ticket, 3, 7)], &[ticket]), &mut lines);
    let mut summary = recorder.summary();
    assert_eq!(summary.itl.step.mean, Some(30.0));
    assert_eq!((summary.itl.token.mean, summary.itl.token.max), (Some(10.0), Some(10.0)));
    assert_eq!((summary.itl.burst.median, summary.itl.burst.max), (Some(0.0), Some(30.0)));
    assert_eq!(summary.latencies.itl, summary.itl.step);
    assert_eq!((lines[0].tpot_ms, lines[0].e2el_ms), (Some(10.0), Some(40.0)));
    // Of a model that fills masks a burst is a block.
    summary.describe(RunFacts::default());
    assert_eq!(summary.block_latency, None);
    summary.describe(RunFacts { block_length: Some(3), ..RunFacts::default() });
    let blocks = summary.block_latency.unwrap();
    assert_eq!((blocks.ttfb.mean, blocks.ibl.mean), (Some(10.0), Some(30.0)));
}

#[test]
fn reports_that_cannot_be_are_passed_over() {
    let mut recorder = Recorder::new(RecorderOptions::default());
    let mut lines = Vec::new();
    let ticket = recorder.send(&request(u64::MAX), u64::MAX, 0);
    let mut report = step(u64::MAX, 0, vec![row(Ticket(9), 1, 1), row(ticket, 1, 0)], &[Ticket(77)]);
    report.rows.push(RowReport { num_drafts: u16::MAX, num_accepted: u16::MAX, ..row(ticket, 9, u32::MAX) });
    recorder.step(&report, &mut lines);
    assert!(lines.is_empty());
    assert_eq!(recorder.fail(Ticket(5), 1, "gone".to_owned()).request_id, "");
    assert_eq!(recorder.done(), 0);
    report.ended = vec![end(ticket), end(ticket)];
    report.rows.clear();
    recorder.step(&report, &mut lines);
    assert_eq!((lines.len(), recorder.done(), recorder.in_flight()), (1, 1, 0));
    let text = serde_json::to_string(&recorder.summary()).unwrap();
    serde_json::from_str::<Summary>(&text).unwrap();
}

#[test]
fn a_summary_has_the_keys_of_vllm_and_is_read_back() {
    let (mut summary, _) = frozen();
    summary.rate_asked = Some(100.0);
    let arrivals = Some(Arrivals::Gamma { rate: 100.0, burstiness: 0.5 });
    summary.describe(RunFacts { arrivals, label: Some("x".to_owned()), ..RunFacts::default() });
    let json = serde_json::to_value(&summary).unwrap();
    for key in [
        "endpoint_type",
        "backend",
        "label",
        "model_id",
        "tokenizer_id",
        "num_prompts",
        "request_rate",
        "burstiness",
        "max_concurrency",
        "duration",
        "completed",
        "failed",
        "total_input_tokens",
        "total_output_tokens",
        "request_throughput",
        "request_goodput",
        "output_throughput",
        "total_token_throughput",
        "max_output_tokens_per_s",
        "max_concurrent_requests",
        "mean_ttft_ms",
        "median_tpot_ms",
        "std_itl_ms",
        "p99_e2el_ms",
        "p99.9_queue_ms",
        "max_ttft_ms",
        "serving",
        "unique_blocks",
        "tokens_per_touched_block",
        "prefix_intersection_ratio",
        "prefix_hot_blocks",
    ] {
        assert!(json.get(key).is_some(), "{key}");
    }
    assert_eq!(json["request_rate"], 100.0);
    assert_eq!(json["burstiness"], 0.5);
    assert_eq!(json["schema_version"], 1);
    assert!(json.get("spec_decode_num_drafts").is_none() && json["request_goodput"].is_null());
    let again: Summary = serde_json::from_value(json.clone()).unwrap();
    assert_eq!(again, summary);
    summary.describe(RunFacts { arrivals: Some(Arrivals::AtOnce), ..RunFacts::default() });
    assert_eq!(serde_json::to_value(&summary).unwrap()["request_rate"], "inf");
}

#[test]
fn the_middle_eight_tenths_are_told_apart() {
    let mut recorder = Recorder::new(options(10));
    let mut lines = Vec::new();
    for i in 0..10u64 {
        // The first and the last take a second, the others a millisecond.
        let spent = if i == 0 || i == 9 { 1_000_000_000 } else { 1_000_000 };
        let now = i * 2_000_000_000;
        let ticket = recorder.send(&request(i), now, now);
        recorder.step(&step(now, now + spent, vec![row(ticket, 1, 4)], &[ticket]), &mut lines);
    }
    let summary = recorder.summary();
    assert_eq!(summary.steady.completed, 8);
    assert_eq!(summary.steady.latencies.ttft.max, Some(1.0));
    assert_eq!(summary.latencies.ttft.max, Some(1000.0));
    assert_eq!((summary.steady.from_s, summary.steady.to_s), (Some(1.0), Some(16.001)));
    let rate = summary.steady.request_throughput.unwrap();
    assert!((rate - 8.0 / 15.001).abs() < 1e-12, "{rate}");
}

/// A step of a request that ends with it, and gives its blocks back.
fn whole(ticket: Ticket, start_ns: u64, end_ns: u64, blocks: u64) -> StepReport {
    let pool = |used| PoolCounts { num_blocks: 10, used, free: 10 - used, ..PoolCounts::default() };
    StepReport {
        pool_during: pool(blocks),
        pool: pool(0),
        ..step(start_ns, end_ns, vec![row(ticket, 1, 4)], &[ticket])
    }
}

#[test]
fn requests_of_one_step_show_in_the_use_of_the_pool() {
    let mut recorder = Recorder::new(options(2));
    let mut lines = Vec::new();
    for i in 0..2u64 {
        let now = i * 2_000_000_000;
        let ticket = recorder.send(&request(i), now, now);
        recorder.step(&whole(ticket, now, now + 1_000_000_000, 4 + i), &mut lines);
    }
    let summary = recorder.summary();
    assert_eq!(
        (
            summary.engine.as_ref().unwrap().kv.peak_used,
            summary.engine.as_ref().unwrap().kv.peak_share,
            summary.engine.as_ref().unwrap().kv.num_blocks
        ),
        (5, 0.5, 10)
    );
    // 4 blocks for a second, none for one, 5 for one.
    assert!(
        (summary.engine.as_ref().unwrap().kv.mean_share - 0.3).abs() < 1e-12,
        "{}",
        summary.engine.as_ref().unwrap().kv.mean_share
    );
    assert_eq!((summary.timeline.kv_used[0], summary.timeline.kv_used[10]), (4.0, 0.0));
}

#[test]
fn time_before_a_run_was_resumed_is_not_idle_time() {
    let mut first = Recorder::new(options(2));
    let mut lines = Vec::new();
    let ticket = first.send(&request(0), 0, 0);
    first.step(&whole(ticket, 0, 10_000_000_000, 4), &mut lines);
    let mut recorder = Recorder::new(options(2));
    recorder.restore(&lines[0]);
    let ticket = recorder.send(&request(1), 10_000_000_000, 10_000_000_000);
    recorder.step(&whole(ticket, 10_050_000_000, 12_000_000_000, 6), &mut lines);
    let summary = recorder.summary();
    assert!(
        (summary.engine.as_ref().unwrap().kv.mean_share - 0.6).abs() < 1e-12,
        "{}",
        summary.engine.as_ref().unwrap().kv.mean_share
    );
    let timeline = &summary.timeline;
    assert_eq!(timeline.observed_from_s, 10.05);
    // The bin from 10.0 s to 10.1 s was seen from its middle on.
    assert_eq!((timeline.kv_used[99], timeline.kv_used[100], timeline.kv_used[101]), (0.0, 6.0, 6.0));
    assert_eq!((timeline.running[100], summary.restored, summary.completed), (1.0, 1, 2));
}

#[test]
fn who_kept_no_token_met_no_goal_for_its_first_or_its_end() {
    let slo = Slo { ttft_ms: Some(1e9), tpot_ms: Some(1e9), e2el_ms: Some(1e9) };
    let mut recorder = Recorder::new(RecorderOptions { slo, ..options(2) });
    let mut lines = Vec::new();
    for (i, tokens) in [(0, 0), (1, 1)] {
        let ticket = recorder.send(&request(i), 0, 0);
        recorder.step(&step(0, 1_000_000, vec![row(ticket, tokens, 3)], &[ticket]), &mut lines);
    }
    let summary = recorder.summary();
    let goodput = summary.goodput.unwrap();
    assert_eq!((summary.completed, lines[0].ttft_ms), (2, None));
    assert_eq!((goodput.met_ttft, goodput.met_tpot, goodput.met_e2el), (Some(1), Some(2), Some(1)));
    assert_eq!((goodput.met_all, goodput.share), (1, 0.5));
}
