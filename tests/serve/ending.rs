//! How a server begins and ends, as a process.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::{get, post, stream};
use crate::place::Place;
use crate::process::Process;
use crate::program::{Scratch, pagedraft};

const ROOMY: [&str; 4] = ["--max-model-len", "4096", "--num-blocks", "600"];

#[test]
fn a_server_that_is_told_to_end_finishes_what_runs_and_refuses_what_comes() {
    let scratch = Scratch::new("serve-ends");
    let trace = scratch.path("trace");
    let server = Process::start(&[&ROOMY[..], &["--trace-out", &trace]].concat());
    let address = server.address;
    let body = json!({"prompt": "The king", "max_tokens": 1500, "ignore_eos": true, "temperature": 0});
    let mut running = stream(address, "/v1/completions", &body);
    running.event().unwrap();
    server.terminate();
    let start = Instant::now();
    let refused = loop {
        let reply = post(address, "/v1/completions", &json!({"prompt": "a", "max_tokens": 1}));
        if reply.status != 200 {
            break reply;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "it goes on");
    };
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.header("retry-after").is_some());
    assert_eq!(get(address, "/health").status, 503);
    let events = running.events();
    assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "length");
    assert_eq!(server.wait().0, Some(0));
    // The trace of what was served is whole.
    let checked = pagedraft(&["trace", "check", &trace]);
    assert_eq!(checked.code, Some(0), "{}{}", checked.stdout, checked.stderr);
}

#[test]
fn a_request_that_outlasts_the_time_of_grace_is_told_so() {
    let server = Process::start(&[&ROOMY[..], &["--grace-period", "0"]].concat());
    let address = server.address;
    let body = json!({"prompt": "The king", "max_tokens": 4000, "ignore_eos": true});
    let mut running = stream(address, "/v1/completions", &body);
    running.event().unwrap();
    server.terminate();
    let events = running.events();
    let error = events.last().unwrap()["error"]["message"].as_str().unwrap().to_owned();
    assert!(error.contains("shutting down"), "{error}");
    assert_eq!(server.wait().0, Some(0));
}

#[test]
fn a_trace_in_several_files_is_whole_after_a_kill_and_is_gone_on_with() {
    let scratch = Scratch::new("serve-rotates");
    let trace = scratch.path("trace");
    let flags = [&ROOMY[..], &["--trace-out", &trace, "--trace-rotate-bytes", "20K"]].concat();
    let check = || {
        let checked = pagedraft(&["trace", "check", &trace]);
        assert_eq!(checked.code, Some(0), "{}{}", checked.stdout, checked.stderr);
        checked.stdout
    };
    let body = json!({"prompt": "The king", "max_tokens": 60, "ignore_eos": true});
    let server = Process::start(&flags);
    post(server.address, "/v1/completions", &body).answer();
    let long = json!({"prompt": "The queen", "max_tokens": 3000, "ignore_eos": true});
    let mut running = stream(server.address, "/v1/completions", &long);
    running.event().unwrap();
    server.kill();
    check();
    let names = || {
        let files =
            std::fs::read_dir(&trace).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        files.filter(|name| name.starts_with("trace_steps")).collect::<std::collections::BTreeSet<_>>()
    };
    let before = names();
    assert!(
        before.contains("trace_steps.000001.jsonl") && before.contains("trace_steps.jsonl"),
        "{before:?}"
    );
    let server = Process::start(&flags);
    let second = pagedraft(&[&["serve", "--port", "0"], &flags[..]].concat());
    assert_eq!(second.code, Some(2), "{}", second.stderr);
    assert!(second.stderr.contains("another process is writing"), "{}", second.stderr);
    post(server.address, "/v1/completions", &body).answer();
    server.terminate();
    assert_eq!(server.wait().0, Some(0));
    assert!(check().contains("resumed"), "{}", check());
    assert!(names().is_superset(&before) && names().len() > before.len(), "{:?}", names());
    let report = pagedraft(&["report", &trace, "--out", &scratch.path("report.html")]);
    assert_eq!(report.code, Some(0), "{}", report.stderr);
    // Nothing is added to the trace of another engine.
    let other = pagedraft(&[&["serve", "--port", "0", "--block-size", "32"], &flags[..]].concat());
    assert_eq!(other.code, Some(2), "{}", other.stderr);
    assert!(other.stderr.contains("block_size"), "{}", other.stderr);
    // What is left is told if the beginning is not there.
    std::fs::remove_file(scratch.path("trace/trace_steps.000001.jsonl")).unwrap();
    let checked = pagedraft(&["trace", "check", &trace]);
    assert_eq!(checked.code, Some(2), "{}{}", checked.stdout, checked.stderr);
    assert!(checked.stderr.contains("trace_steps.000002.jsonl"), "{}", checked.stderr);
    let report = pagedraft(&["report", &trace, "--out", &scratch.path("report.html")]);
    assert_eq!(report.code, Some(0), "{}", report.stderr);
}

#[test]
fn records_of_sparse_attention_in_several_files_are_proved_after_a_kill() {
    let scratch = Scratch::new("serve-rotates-dsa");
    let trace = scratch.path("trace");
    let flags =
        [
            &[
                "--model",
                "builtin:dsa",
                "--max-model-len",
                "1024",
                "--num-blocks",
                "128",
                "--trace-dsa",
                "all",
            ][..],
            &["--trace-tensors", "summary", "--trace-out", &trace, "--trace-rotate-bytes", "8K"],
        ]
        .concat();
    let proved = || {
        let checked = pagedraft(&["trace", "check", &trace]);
        assert_eq!(checked.code, Some(0), "{}{}", checked.stdout, checked.stderr);
        let records = checked
            .stdout
            .lines()
            .find_map(|line| line.trim().strip_suffix(" records of sparse attention proved"));
        (records.map(|records| records.parse().unwrap()).unwrap_or(0u64), checked.stdout)
    };
    let files = |stem: &str| {
        let files = std::fs::read_dir(&trace).unwrap();
        files.filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().starts_with(stem)).count()
    };
    let body = json!({"prompt": "The king", "max_tokens": 100, "ignore_eos": true});
    let server = Process::start(&flags);
    post(server.address, "/v1/completions", &body).answer();
    let long = json!({"prompt": "The queen", "max_tokens": 900, "ignore_eos": true});
    let mut running = stream(server.address, "/v1/completions", &long);
    for _ in 0..350 {
        running.event().unwrap();
    }
    server.kill();
    let (before, _) = proved();
    let stems = ["trace_steps.", "dsa_topk.", "trace_tensors."];
    let cut = stems.map(files);
    assert!(before > 0 && cut.iter().all(|&files| files > 2), "{before} records, {cut:?} files");
    // As many tokens as fill several files: what the killed server had begun may have held no record, and is not kept then.
    let body = json!({"prompt": "The king", "max_tokens": 400, "ignore_eos": true});
    let server = Process::start(&flags);
    post(server.address, "/v1/completions", &body).answer();
    server.terminate();
    assert_eq!(server.wait().0, Some(0));
    let (after, told) = proved();
    assert!(told.contains("resumed") && after > before, "{before} records before: {told}");
    assert!(
        stems.map(files).iter().zip(cut).all(|(&now, before)| now > before),
        "{:?} files",
        stems.map(files)
    );
    let exported = pagedraft(&[
        "trace",
        "export",
        &trace,
        "--event",
        "dsa_topk",
        "--format",
        "jsonl",
        "--out",
        &scratch.path("all.jsonl"),
    ]);
    assert_eq!(exported.code, Some(0), "{}", exported.stderr);
    assert_eq!(scratch.json_lines("all.jsonl").len() as u64, after);
    // The beginning of the records is not there.
    std::fs::remove_file(scratch.path("trace/dsa_topk.000001.bin")).unwrap();
    let checked = pagedraft(&["trace", "check", &trace]);
    assert_eq!(checked.code, Some(2), "{}{}", checked.stdout, checked.stderr);
    assert!(checked.stderr.contains("dsa_topk.000002.bin"), "{}", checked.stderr);
}

#[test]
fn a_second_server_on_a_port_says_what_is_wrong() {
    let place = Place::new();
    let port = place.address.port().to_string();
    let start = Instant::now();
    let second = pagedraft(&["serve", "--port", &port]);
    assert_eq!(second.code, Some(2), "{}", second.stderr);
    for told in [&format!("can't listen on 127.0.0.1:{port}"), "another server runs there", "--port"] {
        assert!(second.stderr.contains(told), "{}", second.stderr);
    }
    assert!(start.elapsed() < Duration::from_secs(10), "a model was loaded first");
    assert_eq!(get(place.address, "/health").status, 200);
}

#[test]
fn flags_that_a_server_can_not_serve_are_refused() {
    for (flags, told) in [
        (&["--draft", "synthetic:0.5"][..], "--draft"),
        (&["--chat-template", "/nothing/here.jinja"], "/nothing/here.jinja"),
        (&["--model", "/nothing/here"], "/nothing/here"),
        (&["--host", "somewhere"], "--host"),
        (&["--api-key", ""], "--api-key"),
    ] {
        let run = pagedraft(&[&["serve", "--port", "0"], flags].concat());
        assert_eq!(run.code, Some(2), "{flags:?}: {}", run.stderr);
        assert!(run.stderr.contains(told), "{flags:?}: {}", run.stderr);
    }
}

#[test]
fn an_engine_outlives_no_server() {
    let place = Place::new();
    post(place.address, "/v1/completions", &json!({"prompt": "a", "max_tokens": 1})).answer();
    let session = place.end();
    assert!(!session.has_unfinished());
}
