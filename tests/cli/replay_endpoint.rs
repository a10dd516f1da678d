//! `pagedraft replay --endpoint`: a workload through somebody else's server.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::mock_server::{Asked, Mock, Talk, counted, piece};
use crate::program::{Run, Scratch, command, interrupt, pagedraft};

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn arguments<'a>(out: &'a str, url: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["replay", "--out", out, "--endpoint", url, "--workload"], more].concat()
}

fn replay(out: &str, mock: &Mock, more: &[&str]) -> Run {
    pagedraft(&arguments(out, &mock.url(), more))
}

fn done(run: &Run) {
    assert_eq!(run.code, Some(0), "{}\n{}", run.stdout, run.stderr);
}

/// A completion of six tokens: the first after 30 ms, the next two in one piece, then one each 10 ms.
fn six(talk: &mut Talk) {
    talk.begin();
    sleep(ms(30));
    for (text, tokens) in [("a", 1), ("bc", 3), ("d", 4), ("e", 5), ("f", 6)] {
        if tokens > 1 {
            sleep(ms(10));
        }
        talk.event(&counted(piece(text, (tokens == 6).then_some("length")), 77, tokens));
    }
    talk.event(&counted(json!({"choices": []}), 77, 6));
    talk.done();
}

#[test]
fn what_is_measured_is_what_the_server_did() {
    let scratch = Scratch::new("endpoint-measures");
    let mock = Mock::start(|_, talk| six(talk));
    let more = ["random", "--num-requests", "24", "--input-len", "20", "--output-len", "6"];
    let how =
        ["--request-rate", "50", "--arrival-process", "constant", "--slo", "e2el=60000", "--save-outputs"];
    done(&replay(&scratch.path("run"), &mock, &[&more[..], &how].concat()));
    let lines = scratch.json_lines("run/requests.jsonl");
    assert_eq!(lines.len(), 24);
    let of = |key: &str| lines.iter().map(|line| line[key].as_f64().unwrap()).collect::<Vec<_>>();
    let median = |mut values: Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    // The server sleeps at least as long as it is told to; the machine may make it longer.
    assert!(of("ttft_ms").iter().all(|&ttft| ttft >= 30.0) && median(of("ttft_ms")) < 60.0);
    assert!(of("e2el_ms").iter().all(|&e2el| e2el >= 70.0) && median(of("e2el_ms")) < 130.0);
    let tpot = median(of("tpot_ms"));
    assert!((8.0..16.0).contains(&tpot), "40 ms for five tokens: {tpot}");
    for line in &lines {
        let told = json!([
            line["prompt_tokens"],
            line["output_tokens"],
            line["cached_tokens"],
            line["finish_reason"],
            line["counted_by"],
            line["text"],
            line["queue_ms"]
        ]);
        assert_eq!(told, json!([77, 6, 16, "length", "continuous_usage", "abcdef", null]));
    }
    let summary = scratch.json("run/summary.json");
    let told = json!([
        summary["completed"],
        summary["failed"],
        summary["total_output_tokens"],
        summary["endpoint_type"],
        summary["executor"],
        summary["model_id"],
        summary["counted_by"],
        summary["retries"],
        summary["request_rate"]
    ]);
    assert_eq!(told, json!([24, 0, 144, "openai", "endpoint", "mock", {"continuous_usage": 24}, 0, 50.0]));
    assert_eq!(summary["prefix_cache"]["cached_tokens"], 24 * 16);
    assert_eq!(summary["goodput"]["met_all"], 24);
    // The gaps: 10 ms four times, of which one brought two tokens.
    let itl = |how: &str| summary["itl"][how]["mean"].as_f64().unwrap();
    assert!(itl("step") >= 10.0 && itl("token") >= 8.0 && itl("token") < itl("step"), "{}", summary["itl"]);
    for unknown in ["kv", "steps", "preemptions", "decode_rows", "unique_blocks", "errors"] {
        assert!(summary.get(unknown).is_none(), "{unknown} is not told by a server");
    }
    assert!(summary["timeline"].get("kv_used").is_none() && summary["median_queue_ms"].is_null());
    assert!(scratch.read("run/report.html").contains("In flight"));
    for Asked { body, authorization, .. } in mock.asked() {
        assert_eq!(body["prompt"].as_array().unwrap().len(), 20);
        let told = json!([
            body["max_tokens"],
            body["ignore_eos"],
            body["stream"],
            body["temperature"],
            body["model"]
        ]);
        assert_eq!(told, json!([6, true, true, 0, "mock"]));
        assert_eq!(authorization, None);
    }
}

/// Answers the requests one after the other in ways that servers should not, and at last in single bytes.
fn badly(asked: &Asked, talk: &mut Talk) {
    let begin = |talk: &mut Talk| {
        talk.begin();
        talk.event(&piece("a", None));
    };
    match asked.number {
        0 => talk.whole("429 Too Many Requests", "", "{\"error\": {\"message\": \"slow down\"}}"),
        1 => talk.whole("500 Internal Server Error", "", ""),
        2 => {}
        3 => {
            begin(talk);
            talk.raw(b"40\r\ndata: half of ");
        }
        4 => {
            begin(talk);
            talk.raw(b"0\r\n\r\n");
        }
        5 => {
            begin(talk);
            talk.chunk(b"data: {\"choices\": [{\n\n");
        }
        6 => talk.whole("200 OK", "", &piece("a", Some("stop")).to_string()),
        7 => {
            begin(talk);
            talk.event(&json!({"error": {"message": "out of memory"}}));
            talk.done();
        }
        8 => {
            begin(talk);
            sleep(ms(1500));
        }
        9 => talk.raw(b"SSH-2.0-OpenSSH_9.2\r\n"),
        _ => {
            talk.begin();
            let text = format!(
                "data: {}\r\n\r\ndata: {}\r\rdata: [DONE]\n\n",
                piece("\u{e9}", None),
                piece("b", Some("stop"))
            );
            text.bytes().for_each(|byte| talk.chunk(&[byte]));
            talk.raw(b"0\r\n\r\n");
        }
    }
    // After a whole answer the client may use the connection again, so that closing it would lose the next request.
    talk.keep = matches!(asked.number, 0 | 1 | 6 | 10..);
    if !talk.keep {
        talk.hang_up();
    }
}

#[test]
fn each_failure_is_counted_by_its_kind_and_none_is_sent_again() {
    let scratch = Scratch::new("endpoint-failures");
    let mock = Mock::start(badly);
    let more =
        ["random", "--num-requests", "12", "--input-len", "8", "--output-len", "2", "--max-concurrency", "1"];
    let how = ["--endpoint-timeout", "0.5", "--save-outputs", "--endpoint-model", "m", "--no-report"];
    let run = replay(&scratch.path("run"), &mock, &[&more[..], &how].concat());
    done(&run);
    let summary = scratch.json("run/summary.json");
    let errors = json!({"429": 1, "500": 1, "connection": 2, "cut_stream": 2, "malformed": 1, "no_stream": 1,
        "server_error": 1, "timeout": 1});
    assert_eq!(
        (&summary["errors"], &summary["failed"], &summary["completed"]),
        (&errors, &json!(10), &json!(2))
    );
    assert!(run.stdout.contains("1 429") && run.stdout.contains("2 cut_stream"), "{}", run.stdout);
    let mut texts = BTreeMap::new();
    for line in scratch.json_lines("run/requests.jsonl") {
        match line["status"].as_str().unwrap() {
            "failed" => _ = texts.insert(line["error_kind"].to_string(), line["error"].to_string()),
            _ => assert_eq!(
                json!([line["text"], line["output_tokens"], line["counted_by"]]),
                json!(["\u{e9}b", 2, "chunks"])
            ),
        }
    }
    assert!(
        texts["\"429\""].contains("slow down") && texts["\"server_error\""].contains("out of memory"),
        "{texts:?}"
    );
    assert!(texts["\"timeout\""].contains("--endpoint-timeout"), "{texts:?}");
    assert_eq!(mock.asked().len(), 12);
    assert_eq!(mock.asked()[0].body["model"], "m");
}

#[test]
fn what_a_server_refuses_is_sent_again_where_that_is_asked_for() {
    let scratch = Scratch::new("endpoint-retries");
    let mock = Mock::start(|asked, talk| match asked.number {
        0 => talk.whole("429 Too Many Requests", "Retry-After: 0\r\n", ""),
        1 => talk.whole("503 Service Unavailable", "", ""),
        2 => talk.whole("400 Bad Request", "", "no"),
        _ => six(talk),
    });
    let more = ["random", "--num-requests", "3", "--input-len", "8", "--max-concurrency", "1", "--no-report"];
    done(&replay(&scratch.path("run"), &mock, &[&more[..], &["--endpoint-retries", "1"]].concat()));
    let lines = scratch.json_lines("run/requests.jsonl");
    let told: Vec<_> =
        lines.iter().map(|line| (line["status"].as_str().unwrap(), line["retries"].as_u64())).collect();
    // The first one has used up its second chance.
    assert_eq!(told, [("failed", Some(1)), ("failed", None), ("finished", None)]);
    let summary = scratch.json("run/summary.json");
    assert_eq!((&summary["retries"], &summary["errors"]), (&json!(1), &json!({"400": 1, "503": 1})));
}

#[test]
fn a_closed_loop_sends_when_a_seat_is_free() {
    let scratch = Scratch::new("endpoint-closed");
    let mock = Mock::start(|_, talk| six(talk));
    let more = ["random", "--num-requests", "9", "--input-len", "8", "--max-concurrency", "3", "--no-report"];
    done(&replay(&scratch.path("run"), &mock, &more));
    assert_eq!(mock.asked().len(), 9);
    let lines = scratch.json_lines("run/requests.jsonl");
    let seconds = |line: &Value, key: &str| line[key].as_f64().unwrap();
    let ends: Vec<f64> = lines.iter().map(|line| seconds(line, "finish_s")).collect();
    for line in &lines[3..] {
        // A seat is free when the end of a stream was told, which is after its last token.
        let intended = seconds(line, "intended_arrival_s");
        assert!(ends.iter().any(|end| (0.0..0.02).contains(&(intended - end))), "{line}");
        let sent = seconds(line, "sent_s");
        let others =
            lines.iter().filter(|other| seconds(other, "sent_s") < sent && sent < seconds(other, "finish_s"));
        assert!(others.count() < 3, "{line}");
    }
    assert_eq!(scratch.json("run/summary.json")["max_concurrent_requests"], 3);
}

fn wait_for_lines(scratch: &Scratch, file: &str, lines: usize) {
    let begun = Instant::now();
    let count = || std::fs::read_to_string(scratch.path(file)).unwrap_or_default().lines().count();
    while count() < lines {
        assert!(begun.elapsed() < Duration::from_secs(60), "{file} never had {lines} lines");
        sleep(ms(5));
    }
}

#[cfg(unix)]
#[test]
fn a_run_that_was_stopped_goes_on_with_what_is_not_done() {
    let scratch = Scratch::new("endpoint-resume");
    let mock = Mock::start(|asked, talk| match asked.number {
        2 => talk.whole("429 Too Many Requests", "", ""),
        _ => six(talk),
    });
    let more = ["random", "--num-requests", "30", "--input-len", "8", "--request-rate", "20", "--no-report"];
    let (out, url) = (scratch.path("run"), mock.url());
    let child = command(&arguments(&out, &url, &more)).stdout(Stdio::piped()).spawn().unwrap();
    wait_for_lines(&scratch, "run/requests.jsonl", 6);
    let begun = Instant::now();
    let text = interrupt(child);
    assert!(text.contains("--resume") && begun.elapsed() < Duration::from_secs(5), "{text}");
    let before = scratch.read("run/requests.jsonl");
    assert_eq!(scratch.json("run/summary.json")["stopped"], true);
    // What the program sent last may not have been read yet.
    sleep(ms(200));
    let sent = mock.asked().len();
    done(&replay(&out, &mock, &[&more[..], &["--resume"]].concat()));
    assert!(scratch.read("run/requests.jsonl").starts_with(&before));
    let lines = scratch.json_lines("run/requests.jsonl");
    let mut names: Vec<_> = lines.iter().map(|line| line["request_id"].to_string()).collect();
    names.sort();
    names.dedup();
    assert_eq!((lines.len(), names.len()), (30, 30));
    let summary = scratch.json("run/summary.json");
    assert_eq!((&summary["completed"], &summary["errors"]), (&json!(29), &json!({"429": 1})));
    assert_eq!(summary["restored"], before.lines().count());
    // What was in flight at the stop is sent again, and nothing else.
    assert_eq!(mock.asked().len(), sent + 30 - before.lines().count());
}

#[test]
fn what_can_not_be_is_told_at_once_and_leaves_nothing() {
    let scratch = Scratch::new("endpoint-flags");
    let mock = Mock::start(|_, talk| six(talk));
    let (url, out) = (mock.url(), scratch.path("run"));
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = format!("http://{nobody}");
    let cases: &[(&str, &[&str], &str)] = &[
        (&nobody, &[], "no server answers at http://127.0.0.1:"),
        (&nobody, &["--endpoint-model", "m"], "is it running there?"),
        ("https://127.0.0.1:1", &[], "https"),
        ("127.0.0.1:8000", &[], "http://"),
        (&url, &["--num-blocks", "9"], "--num-blocks"),
        (&url, &["--draft", "ngram"], "--draft"),
        (&url, &["--executor", "sim"], "--executor"),
        (&url, &["--no-trace"], "--no-trace"),
        (&url, &["--endpoint-body", "[]"], "--endpoint-body"),
        (&url, &["--endpoint-timeout", "0"], "--endpoint-timeout"),
        (&url, &["--model", "/nowhere"], "/nowhere"),
    ];
    for (url, more, told) in cases {
        let run = pagedraft(&arguments(&out, url, &[&["random"], *more].concat()));
        assert_eq!(run.code, Some(2), "{more:?}: {}", run.stderr);
        assert!(run.stderr.contains(told), "{more:?}: {}", run.stderr);
        assert!(scratch.names().is_empty(), "{more:?}");
    }
    let alone = pagedraft(&["replay", "--workload", "random", "--endpoint-model", "m", "--out", &out]);
    assert!(alone.code == Some(2) && alone.stderr.contains("--endpoint"), "{}", alone.stderr);
    assert_eq!(mock.asked().len(), 0);
}

/// `pagedraft serve`, which ends with the test.
struct Served(Child, String);

impl Served {
    fn start() -> Self {
        let flags = ["--threads", "1", "--enforce-eager", "--num-blocks", "512"];
        let mut child = command(&[&["serve", "--port", "0", "--api-key", "sesame"], &flags[..]].concat())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect("an address").to_owned();
        Self(child, url)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn our_own_server_gives_what_our_own_engine_gives() {
    let scratch = Scratch::new("endpoint-serve");
    let served = Served::start();
    let workloads: [&[&str]; 2] = [
        &[
            "random",
            "--num-requests",
            "12",
            "--input-len",
            "30",
            "--output-len",
            "9",
            "--random-range-ratio",
            "0.5",
        ],
        &[
            "ruler",
            "--task",
            "niah_single_1",
            "--length",
            "256",
            "--num-requests",
            "6",
            "--max-new-tokens",
            "12",
        ],
    ];
    for workload in workloads {
        let outputs = |out: &str, flags: &[&str]| {
            let more = ["--save-outputs", "--request-rate", "40", "--seed", "5", "--no-report"];
            let path = scratch.path(out);
            let all = [&["replay", "--out", &path, "--workload"], workload, &more, flags].concat();
            let run = command(&all).env("OPENAI_API_KEY", "sesame").output().unwrap();
            assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
            let keys = [
                "status",
                "prompt_tokens",
                "output_tokens",
                "text",
                "token_ids",
                "output_hash",
                "finish_reason",
                "score",
            ];
            let of = |line: Value| {
                let keyed: Value = keys.iter().map(|key| line[key].clone()).collect();
                (line["request_id"].as_str().unwrap().parse::<u64>().unwrap(), keyed)
            };
            scratch
                .json_lines(&format!("{out}/requests.jsonl"))
                .into_iter()
                .map(of)
                .collect::<BTreeMap<_, _>>()
        };
        let name = workload[0];
        let ours =
            outputs(&format!("{name}-real"), &["--threads", "1", "--enforce-eager", "--num-blocks", "512"]);
        let theirs = outputs(&format!("{name}-served"), &["--endpoint", &served.1]);
        assert_eq!(theirs, ours, "{name}");
        assert_eq!(scratch.json(&format!("{name}-served/summary.json"))["model_id"], "builtin:target");
    }
}
