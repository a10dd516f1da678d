//! Requests that a server runs.

use super::by_hand::{options, request};
use crate::measures::{Recorder, RecorderOptions, Summary};
use crate::replay::{RequestLine, StreamEnd, StreamFailure, Ticket, TokenCount, Usage};

const MS: u64 = 1_000_000;

fn end(at_ns: u64, usage: Option<Usage>) -> StreamEnd {
    StreamEnd {
        at_ns,
        finish_reason: Some("length".to_owned()),
        text: "ab".to_owned(),
        token_ids: Some(vec![1, 2]),
        usage,
        counted_by: if usage.is_some() { TokenCount::Usage } else { TokenCount::Chunks },
    }
}

/// Two requests that end, and one that fails after a token.
fn recorded() -> (Recorder, Vec<RequestLine>) {
    let mut recorder = Recorder::new(RecorderOptions { server: true, ..options(3) });
    let tickets: Vec<Ticket> = (0..3).map(|i| recorder.send(&request(i), i * MS, i * MS)).collect();
    for ticket in &tickets {
        recorder.received(*ticket, 10 * MS, 1);
    }
    recorder.received(tickets[0], 40 * MS, 3);
    recorder.received(tickets[1], 40 * MS, 0);
    let usage = Usage { prompt_tokens: 50, output_tokens: 7, cached_tokens: Some(32) };
    let failure = StreamFailure { at_ns: 60 * MS, kind: "429".to_owned(), error: "slow down".to_owned() };
    let lines = vec![
        recorder.end_stream(tickets[0], end(50 * MS, Some(usage)), 2),
        recorder.end_stream(tickets[1], end(50 * MS, None), 0),
        recorder.fail_stream(tickets[2], failure, 0),
    ];
    (recorder, lines)
}

#[test]
fn tokens_are_timed_as_they_come_and_counted_as_the_server_counts() {
    let (recorder, lines) = recorded();
    let times = |line: &RequestLine| (line.ttft_ms, line.tpot_ms, line.e2el_ms, line.finish_s);
    // 30 ms for the six tokens after the first.
    assert_eq!(times(&lines[0]), (Some(10.0), Some(5.0), Some(40.0), Some(0.04)));
    assert_eq!(times(&lines[1]), (Some(9.0), None, Some(9.0), Some(0.01)));
    assert_eq!(times(&lines[2]), (None, None, None, None));
    let told = |line: &RequestLine| (line.prompt_tokens, line.output_tokens, line.cached_tokens);
    assert_eq!(told(&lines[0]), (Some(50), 7, Some(32)));
    assert_eq!(told(&lines[1]), (Some(3), 1, None));
    assert!(lines.iter().all(|line| line.queue_ms.is_none() && line.text.is_none()));
    let summary = recorder.summary();
    assert_eq!((summary.completed, summary.failed, summary.retries), (2, 1, Some(2)));
    assert_eq!(summary.errors.get("429"), Some(&1));
    assert_eq!((summary.itl.step.max, summary.itl.token.max), (Some(30.0), Some(10.0)));
    assert_eq!(summary.timeline.output_tokens, [6]);
    // What is not told of the second request's prompt is not taken for a miss.
    let prefix = summary.prefix_cache.unwrap();
    assert_eq!((prefix.prompt_tokens, prefix.cached_tokens, prefix.cached_blocks), (50, 32, None));
    let json = serde_json::to_value(&summary).unwrap();
    assert!(
        json.get("kv").is_none() && json.get("steps").is_none() && json["timeline"].get("running").is_none()
    );
    assert_eq!(serde_json::from_value::<Summary>(json).unwrap(), summary);
}

#[test]
fn a_restored_server_run_has_the_figures_that_its_lines_have() {
    let (recorder, lines) = recorded();
    let mut again = Recorder::new(RecorderOptions { server: true, ..options(3) });
    for line in &lines {
        again.restore(&serde_json::from_str(&serde_json::to_string(line).unwrap()).unwrap());
    }
    let (was, is) = (recorder.summary(), again.summary());
    assert_eq!((is.errors, is.retries, is.counted_by), (was.errors, was.retries, was.counted_by));
    assert_eq!((is.prefix_cache, is.total_output_tokens), (was.prefix_cache, was.total_output_tokens));
}

#[test]
fn news_of_requests_that_are_not_in_flight_counts_nothing() {
    let (mut recorder, _) = recorded();
    let before = recorder.summary();
    recorder.received(Ticket(0), 90 * MS, 5);
    recorder.received(Ticket(99), 90 * MS, 5);
    assert_eq!(recorder.end_stream(Ticket(1), end(90 * MS, None), 0).request_id, "");
    assert_eq!(recorder.summary(), before);
}
