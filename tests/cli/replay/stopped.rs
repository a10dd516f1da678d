//! Runs that are stopped, killed or frozen, and gone on with.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{TINY, done, replay, said};
use crate::models::with_tokenizer;
use crate::program::{Run, Scratch, command, interrupt, pagedraft};

fn start(out: &str, arguments: &[&str]) -> Child {
    let mut all = vec!["replay", "--out", out];
    all.extend(arguments);
    command(&all).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

/// Waits until a run has written so many lines.
fn wait_for(scratch: &Scratch, file: &str, lines: usize) {
    let begun = Instant::now();
    let path = scratch.path(file);
    let count = || std::fs::read(&path).unwrap_or_default().iter().filter(|&&byte| byte == b'\n').count();
    while count() < lines {
        assert!(begun.elapsed() < Duration::from_secs(60), "{file} never had {lines} lines");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn signal(child: &Child, name: &str) {
    let sent = std::process::Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// When each request should have been sent.
fn intended(scratch: &Scratch, out: &str) -> BTreeMap<String, String> {
    let lines = scratch.json_lines(&format!("{out}/requests.jsonl"));
    let of = |line: &Value| (line["request_id"].to_string(), line["intended_arrival_s"].to_string());
    lines.iter().map(of).collect()
}

const REAL: [&str; 16] = [
    "--workload",
    "random",
    "--num-requests",
    "30",
    "--input-len",
    "24",
    "--output-len",
    "10",
    "--random-range-ratio",
    "0.5",
    "--request-rate",
    "20",
    "--threads",
    "1",
    "--num-blocks",
    "512",
];

#[test]
fn a_real_run_that_was_stopped_goes_on_to_the_same_answers() {
    let scratch = Scratch::new("replay-resume");
    done(&replay(&scratch.path("whole"), &REAL));
    let whole = said(&scratch, "whole");
    assert_eq!(whole.len(), 30);
    let resume: Vec<&str> = REAL.iter().copied().chain(["--resume"]).collect();

    let child = start(&scratch.path("ctrl-c"), &REAL);
    wait_for(&scratch, "ctrl-c/requests.jsonl", 5);
    let text = interrupt(child);
    assert!(text.contains("--resume"), "{text}");
    assert_eq!(scratch.json("ctrl-c/summary.json")["stopped"], true);
    let before = scratch.read("ctrl-c/requests.jsonl");
    let lines = before.lines().count();
    assert!((5..30).contains(&lines), "{lines}");

    let mut child = start(&scratch.path("kill"), &REAL);
    wait_for(&scratch, "kill/requests.jsonl", 5);
    child.kill().unwrap();
    child.wait().unwrap();

    for out in ["ctrl-c", "kill"] {
        done(&replay(&scratch.path(out), &resume));
        assert_eq!(said(&scratch, out), whole, "{out}");
        assert_eq!(intended(&scratch, out), intended(&scratch, "whole"), "{out}");
        let check = pagedraft(&["trace", "check", &scratch.path(out)]);
        assert_eq!(check.code, Some(0), "{out}: {}", check.stderr);
        assert!(scratch.json(&format!("{out}/summary.json")).get("interrupted").is_none_or(|i| i == false));
    }
    assert!(scratch.read("ctrl-c/requests.jsonl").starts_with(&before), "what was there stays");
    // Lines that can't be this run's are told, each by its place.
    let lines = before.lines().collect::<Vec<_>>();
    for (wrong, what) in [
        (lines[0].to_owned(), "there twice"),
        (
            lines[0].replacen(
                &format!("\"request_id\":{}", serde_json::from_str::<Value>(lines[0]).unwrap()["request_id"]),
                "\"request_id\":\"30\"",
                1,
            ),
            "none of this workload",
        ),
    ] {
        let child = start(&scratch.path("wrong"), &REAL);
        wait_for(&scratch, "wrong/requests.jsonl", 1);
        interrupt(child);
        std::fs::write(scratch.path("wrong/requests.jsonl"), format!("{}\n{wrong}\n", lines[0])).unwrap();
        let run = replay(&scratch.path("wrong"), &resume);
        assert_eq!(run.code, Some(2), "{}", run.stderr);
        assert!(run.stderr.contains("requests.jsonl:2: ") && run.stderr.contains(what), "{}", run.stderr);
        std::fs::remove_dir_all(scratch.path("wrong")).unwrap();
    }
    // Other requests are other runs.
    let other = REAL.map(|argument| if argument == "24" { "25" } else { argument });
    let child = start(&scratch.path("other"), &REAL);
    wait_for(&scratch, "other/requests.jsonl", 1);
    interrupt(child);
    let run = replay(&scratch.path("other"), &other.iter().copied().chain(["--resume"]).collect::<Vec<_>>());
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("input_len"), "{}", run.stderr);
}

#[test]
fn a_closed_loop_that_was_killed_goes_on_where_its_seats_are_free_again() {
    let scratch = Scratch::new("replay-resume-closed");
    let closed = [
        "--workload",
        "random",
        "--num-requests",
        "24",
        "--input-len",
        "16",
        "--output-len",
        "400",
        "--random-range-ratio",
        "0.5",
        "--max-concurrency",
        "3",
        "--threads",
        "1",
        "--num-blocks",
        "512",
    ];
    let mut child = start(&scratch.path("run"), &closed);
    wait_for(&scratch, "run/requests.jsonl", 4);
    child.kill().unwrap();
    child.wait().unwrap();
    let resume: Vec<&str> = closed.iter().copied().chain(["--resume"]).collect();
    done(&replay(&scratch.path("run"), &resume));
    let lines = scratch.json_lines("run/requests.jsonl");
    let mut names: Vec<String> = lines.iter().map(|line| line["request_id"].to_string()).collect();
    names.sort();
    names.dedup();
    assert_eq!((lines.len(), names.len()), (24, 24));
    // Those that held the seats are sent again, when the last one before had ended.
    let resumed: Vec<usize> = (0..lines.len()).filter(|&i| lines[i]["resumed"] == true).collect();
    let first = *resumed.first().expect("requests were in flight when it was killed");
    assert!((4..24).contains(&first) && resumed.len() <= 3, "{resumed:?}");
    let seconds = |line: &Value, key: &str| line[key].as_f64().unwrap();
    let ended = lines[..first].iter().map(|line| seconds(line, "finish_s")).fold(0.0, f64::max);
    for &i in &resumed {
        // Nanoseconds, rounded up.
        assert!((seconds(&lines[i], "intended_arrival_s") - ended).abs() < 1e-6, "{}", lines[i]);
    }
}

/// Waits until Ctrl-C is handled by the program, and does not end it.
fn wait_until_it_listens(child: &Child) {
    let status = format!("/proc/{}/status", child.id());
    if !std::path::Path::new(&status).exists() {
        // Another system than Linux does not tell.
        return std::thread::sleep(Duration::from_millis(500));
    }
    let caught = || {
        let status = std::fs::read_to_string(&status).unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?.trim().to_owned();
        u64::from_str_radix(&mask, 16).ok()
    };
    // SIGINT is signal 2: the second bit.
    for _ in 0..6000 {
        if caught().is_some_and(|mask| mask & 2 != 0) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the program does not listen for Ctrl-C");
}

#[test]
fn what_is_stopped_before_the_run_begins_leaves_nothing() {
    let scratch = Scratch::new("replay-early");
    let endless = ["--workload", "random", "--num-requests", "20000000"];
    let simulated: [&str; 2] = ["--executor", "sim"];
    let recorded: [&str; 5] = ["--draft", "synthetic:0.8", "--num-speculative-tokens", "3", "--no-report"];
    let many = ["--workload", "random", "--num-requests", "20000"];
    let cases = [[&endless[..], &simulated].concat(), [&many[..], &recorded, &TINY].concat()];
    for (i, arguments) in cases.iter().enumerate() {
        let out = scratch.path(&format!("{i}"));
        let child = start(&out, arguments);
        wait_until_it_listens(&child);
        // It is in the middle of drawing requests, which takes a fast machine a second.
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(interrupt(child), "", "{arguments:?}");
        assert!(!std::path::Path::new(&out).exists(), "{arguments:?}");
    }
}

#[test]
fn a_resumed_run_records_for_synthetic_drafts_what_is_not_done() {
    let scratch = Scratch::new("replay-resume-synthetic");
    let drafts = ["--draft", "synthetic:0.8", "--num-speculative-tokens", "3"];
    let arguments = [&REAL[..], &drafts].concat();
    done(&replay(&scratch.path("whole"), &arguments));
    let child = start(&scratch.path("run"), &arguments);
    wait_for(&scratch, "run/requests.jsonl", 5);
    interrupt(child);
    let there = scratch.read("run/requests.jsonl").lines().count();
    let again = replay(&scratch.path("run"), &[&arguments[..], &["--resume"]].concat());
    done(&again);
    assert!(again.stderr.contains(&format!("its {} requests are run once", 30 - there)), "{}", again.stderr);
    assert_eq!(said(&scratch, "run"), said(&scratch, "whole"));
}

#[test]
fn a_simulation_that_was_stopped_goes_on_to_the_same_bytes() {
    let scratch = Scratch::new("replay-resume-sim");
    let arguments = [
        "--workload",
        "random",
        "--num-requests",
        "12000",
        "--input-len",
        "200",
        "--output-len",
        "60",
        "--random-range-ratio",
        "0.9",
        "--request-rate",
        "50",
        "--burstiness",
        "0.5",
        "--executor",
        "sim",
    ];
    let whole = replay(&scratch.path("whole"), &arguments);
    done(&whole);
    let hash = |run: &Run| run.stdout.lines().find(|line| line.contains("sha256")).unwrap().to_owned();
    let resume: Vec<&str> = arguments.iter().copied().chain(["--resume"]).collect();
    for how in ["ctrl-c", "kill"] {
        let mut child = start(&scratch.path(how), &arguments);
        wait_for(&scratch, &format!("{how}/requests.jsonl"), 500);
        match how {
            "kill" => {
                child.kill().unwrap();
                child.wait().unwrap();
            }
            _ => drop(interrupt(child)),
        }
        let again = replay(&scratch.path(how), &resume);
        done(&again);
        assert_eq!(
            scratch.read(&format!("{how}/requests.jsonl")),
            scratch.read("whole/requests.jsonl"),
            "{how}"
        );
        assert_eq!(hash(&again), hash(&whole), "{how}");
    }
}

#[test]
fn a_traced_simulation_that_is_stopped_ends_within_a_second_and_leaves_whole_files() {
    let scratch = Scratch::new("replay-stopped-sim");
    let arguments = ["replay", "--workload", "random", "--num-requests", "100000", "--executor", "sim"];
    let more =
        ["--trace-steps", "--request-rate", "inf", "--input-len", "100", "--out", &scratch.path("run")];
    let mut run = command(&[&arguments[..], &more].concat());
    let child = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_for(&scratch, "run/trace_steps.jsonl", 1000);
    let begun = Instant::now();
    signal(&child, "-INT");
    let output = child.wait_with_output().unwrap();
    let took = begun.elapsed();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(stderr.contains("report.html is left out") && stderr.contains("pagedraft report"), "{stderr}");
    let there = std::fs::read_dir(scratch.path("run")).unwrap();
    let mut there: Vec<_> = there.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    there.sort();
    assert_eq!(there, ["config.json", "requests.jsonl", "summary.json", "trace_steps.jsonl"]);
    assert_eq!(scratch.json("run/summary.json")["stopped"], true);
    let check = pagedraft(&["trace", "check", &scratch.path("run")]);
    assert_eq!(check.code, Some(0), "{}", check.stderr);
    done(&pagedraft(&["report", &scratch.path("run")]));
}

#[test]
fn an_engine_that_froze_for_a_second_shows_it() {
    let scratch = Scratch::new("replay-freeze");
    let mut arguments =
        vec!["--workload", "random", "--num-requests", "60", "--input-len", "16", "--output-len", "4"];
    arguments.extend(["--arrival-process", "constant", "--request-rate", "30", "--no-trace"]);
    arguments.extend(TINY);
    let mut child = start(&scratch.path("run"), &arguments);
    wait_for(&scratch, "run/requests.jsonl", 10);
    signal(&child, "-STOP");
    std::thread::sleep(Duration::from_secs(1));
    signal(&child, "-CONT");
    assert!(child.wait().unwrap().success());
    let lines = scratch.json_lines("run/requests.jsonl");
    let ttft: Vec<f64> = lines.iter().map(|line| line["ttft_ms"].as_f64().unwrap()).collect();
    let slow = ttft.iter().filter(|&&ttft| ttft > 300.0).count();
    // 30 a second should have been sent meanwhile: all of them waited, evenly from 1 s down.
    assert!(ttft.iter().any(|&ttft| ttft > 900.0) && slow >= 20, "{slow} of {ttft:?}");
}

/// What each layer of each token chose, by the record.
fn chosen(scratch: &Scratch, out: &str) -> BTreeMap<String, Value> {
    let dir = scratch.path(out);
    if std::path::Path::new(&dir).join("dsa_topk.bin").exists() {
        let export = pagedraft(&["trace", "export", &dir, "--event", "dsa_topk", "--format", "jsonl"]);
        assert_eq!(export.code, Some(0), "{out}: {}", export.stderr);
    }
    let mut all = BTreeMap::new();
    for record in scratch.json_lines(&format!("{out}/dsa_topk.jsonl")) {
        let key = format!("{} {} {}", record["request_id"], record["step_idx"], record["layer_id"]);
        let what = record["selected_token_pos"].clone();
        // A token that was computed again after the resume has a record of each time.
        let before = all.entry(key).or_insert(what.clone());
        assert_eq!(*before, what, "{record}");
    }
    all
}

#[test]
fn a_run_of_a_sparse_model_that_was_killed_goes_on_with_its_records() {
    let scratch = Scratch::new("replay-resume-sparse");
    let model = with_tokenizer("replay-resume-sparse-model");
    for format in ["compact", "jsonl"] {
        let name = |what: &str| format!("{format}-{what}");
        let more =
            ["--model", &model, "--load-format", "dummy", "--enforce-eager", "--trace-dsa-format", format];
        let slower = REAL.map(|argument| if argument == "20" { "10" } else { argument });
        let run = [&slower[..], &more].concat();
        done(&replay(&scratch.path(&name("whole")), &run));
        let whole = chosen(&scratch, &name("whole"));
        // Prompts of 12 to 36 tokens, 5 to 15 tokens each, three layers.
        assert!(whole.len() > 30 * 4 * 3, "{}", whole.len());
        let mut child = start(&scratch.path(&name("kill")), &run);
        wait_for(&scratch, &name("kill/requests.jsonl"), 5);
        child.kill().unwrap();
        child.wait().unwrap();
        // As a disk leaves a file whose last write was cut.
        let file = scratch.path(&name(if format == "compact" {
            "kill/dsa_topk.bin"
        } else {
            "kill/dsa_topk.jsonl"
        }));
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, &bytes[..bytes.len().saturating_sub(7)]).unwrap();
        done(&replay(&scratch.path(&name("kill")), &[&run[..], &["--resume"]].concat()));
        assert_eq!(said(&scratch, &name("kill")), said(&scratch, &name("whole")), "{format}");
        let check = pagedraft(&["trace", "check", &scratch.path(&name("kill"))]);
        assert_eq!(check.code, Some(0), "{format}: {}", check.stderr);
        assert!(check.stdout.contains("records of sparse attention proved"), "{format}: {}", check.stdout);
        let resumed = chosen(&scratch, &name("kill"));
        // Records of the last moments before the kill are missing: files are written every tenth of a second, each by a thread of its
        // own. Ten requests a second of ten tokens and three layers have 30 records in that time.
        assert!(resumed.iter().all(|(token, keys)| whole.get(token) == Some(keys)), "{format}");
        let missing = whole.len() - resumed.len();
        assert!(missing <= 3 * 30, "{format}: {missing} records of {} are missing", whole.len());
    }
}
