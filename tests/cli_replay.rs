//! `pagedraft replay`: workloads through the engine and through its simulation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by it")]

mod program;

use std::collections::BTreeMap;

use program::{Run, Scratch, pagedraft};
use serde_json::Value;

/// The kinds of files, small.
const FILES: [(&str, &str, &str); 9] = [
    (
        "azure",
        "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46.6805900,37,4\r\n2023-11-16 18:15:46.7009951,39,5\r\n2023-11-16 18:15:46.7224700,80,3",
    ),
    (
        "burstgpt",
        "burst.csv",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n5,ChatGPT,20,4,24,Conversation log\n5,GPT-4,30,0,30,API log\n5,ChatGPT,40,6,46,Conversation log\n",
    ),
    (
        "mooncake",
        "mooncake.jsonl",
        "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 3, \"hash_ids\": [7, 8]}\n{\"timestamp\": 100, \"input_length\": 620, \"output_length\": 4, \"hash_ids\": [7, 9]}\n",
    ),
    (
        "vidur",
        "vidur.csv",
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,30,4\n0.05,50,5\n0.06,10,3\n",
    ),
    (
        "sharegpt",
        "sharegpt.json",
        r#"[{"id": "a", "conversations": [{"from": "human", "value": "Tell me of the sea."}, {"from": "gpt", "value": "It is wide, and it is deep."}]},
            {"id": "b", "conversations": [{"from": "human", "value": "And of the land?"}, {"from": "gpt", "value": "It is dry."}, {"from": "human", "value": "And the sky?"}, {"from": "gpt", "value": "High."}]}]"#,
    ),
    (
        "ruler",
        "ruler.jsonl",
        "{\"index\": 0, \"input\": \"The magic number is 7123. What is the magic number?\", \"outputs\": [\"7123\"], \"length\": 40}\n",
    ),
    (
        "longbench",
        "longbench.jsonl",
        "{\"input\": \"Who came?\", \"context\": \"An old man came to the house.\", \"answers\": [\"An old man\"], \"length\": 8, \"dataset\": \"multi_news\", \"language\": \"en\", \"all_classes\": null, \"_id\": \"x1\"}\n",
    ),
    (
        "longbench-v2",
        "longbench-v2.json",
        r#"[{"_id": "q1", "domain": "d", "sub_domain": "s", "difficulty": "easy", "length": "short", "question": "Which?", "choice_A": "a", "choice_B": "b", "choice_C": "c", "choice_D": "d", "answer": "B", "context": "It is b."}]"#,
    ),
    (
        "spec-bench",
        "spec.jsonl",
        "{\"question_id\": 81, \"category\": \"writing\", \"turns\": [\"Write of a journey.\", \"Again, shorter.\"]}\n",
    ),
];

/// A tiny engine: few threads, no graphs to capture.
const TINY: [&str; 5] = ["--threads", "1", "--enforce-eager", "--num-blocks", "512"];

fn replay(out: &str, arguments: &[&str]) -> Run {
    let mut all = vec!["replay", "--out", out];
    all.extend(arguments);
    pagedraft(&all)
}

fn done(run: &Run) {
    assert_eq!(run.code, Some(0), "{}\n{}", run.stdout, run.stderr);
}

/// What does not depend on time, by request: a run in real time gives it again.
fn said(scratch: &Scratch, out: &str) -> BTreeMap<u64, Value> {
    let lines = scratch.json_lines(&format!("{out}/requests.jsonl"));
    let count = lines.len();
    let keys = ["status", "prompt_tokens", "output_tokens", "output_hash", "finish_reason", "skip_reason"];
    let of = |line: &Value| keys.iter().map(|key| line[key].clone()).collect::<Value>();
    let by_id: BTreeMap<u64, Value> =
        lines.iter().map(|line| (line["request_id"].as_str().unwrap().parse().unwrap(), of(line))).collect();
    assert_eq!(by_id.len(), count, "a request has two lines");
    by_id
}

fn status(scratch: &Scratch, out: &str, status: &str) -> usize {
    let lines = scratch.json_lines(&format!("{out}/requests.jsonl"));
    lines.iter().filter(|line| line["status"] == status).count()
}

#[test]
fn every_workload_runs_through_the_simulation() {
    let scratch = Scratch::new("replay-sim-kinds");
    for (workload, name, text) in FILES {
        let file = scratch.write(name, text.as_bytes());
        let out = scratch.path(workload);
        let run = replay(
            &out,
            &["--workload", workload, "--path", &file, "--executor", "sim", "--max-new-tokens", "16"],
        );
        done(&run);
        assert!(run.stdout.contains("sha256") && run.stdout.contains(&out), "{}", run.stdout);
        assert!(status(&scratch, workload, "finished") > 0, "{workload}");
        assert_eq!(status(&scratch, workload, "failed"), 0, "{workload}");
        let config = scratch.json(&format!("{workload}/config.json"));
        assert_eq!(config["replay"]["executor"], "sim");
        assert!(config["replay"]["cost_model"]["name"].is_string());
        assert!(config["num_blocks"].as_u64().unwrap() > 0);
        assert_eq!(config["replay"]["dataset"]["file"]["bytes"], text.len());
        assert!(scratch.json(&format!("{workload}/summary.json")).is_object());
        assert!(scratch.read(&format!("{workload}/report.html")).contains("<html"));
    }
    // The trace's own failures are skipped, and told.
    assert_eq!((status(&scratch, "burstgpt", "finished"), status(&scratch, "burstgpt", "skipped")), (2, 1));
}

#[test]
fn every_workload_runs_through_the_engine_and_its_trace_is_sound() {
    let scratch = Scratch::new("replay-real-kinds");
    for (workload, name, text) in FILES {
        let file = scratch.write(name, text.as_bytes());
        let out = scratch.path(workload);
        let mut arguments = vec!["--workload", workload, "--path", &file, "--max-new-tokens", "8"];
        arguments.extend(TINY);
        let run = replay(&out, &arguments);
        done(&run);
        assert!(status(&scratch, workload, "finished") > 0, "{workload}: {}", run.stdout);
        assert_eq!(status(&scratch, workload, "failed"), 0, "{workload}");
        let check = pagedraft(&["trace", "check", &out]);
        assert_eq!(check.code, Some(0), "{workload}: {}", check.stderr);
        let config = scratch.json(&format!("{workload}/config.json"));
        assert_eq!(
            (&config["replay"]["executor"], &config["model_id"]),
            (&"real".into(), &"builtin:target".into())
        );
    }
    let azure = said(&scratch, "azure");
    let lengths: Vec<u64> = azure.values().map(|line| line[2].as_u64().unwrap()).collect();
    assert_eq!(lengths, [4, 5, 3], "outputs are complete");
}

#[test]
fn samples_are_generated_where_there_is_no_file() {
    let scratch = Scratch::new("replay-generated");
    for executor in ["real", "sim"] {
        let ruler = scratch.path(&format!("ruler-{executor}"));
        let mut arguments =
            vec!["--workload", "ruler", "--task", "niah_single_1", "--length", "512", "--num-requests", "2"];
        arguments.extend(["--executor", executor, "--max-concurrency", "1"]);
        arguments.extend(TINY);
        done(&replay(&ruler, &arguments));
        assert_eq!(status(&scratch, &format!("ruler-{executor}"), "finished"), 2);

        let random = scratch.path(&format!("random-{executor}"));
        let mut arguments =
            vec!["--workload", "random", "--num-requests", "6", "--input-len", "64", "--output-len", "5"];
        arguments.extend(["--prefix-share", "0.5", "--executor", executor, "--arrival-process", "constant"]);
        arguments.extend(["--request-rate", "100"]);
        arguments.extend(TINY);
        done(&replay(&random, &arguments));
        let lines = scratch.json_lines(&format!("random-{executor}/requests.jsonl"));
        assert_eq!(lines.len(), 6);
        for line in &lines {
            assert_eq!((&line["prompt_tokens"], &line["output_tokens"]), (&64.into(), &5.into()));
            let (sent, intended) =
                (line["sent_s"].as_f64().unwrap(), line["intended_arrival_s"].as_f64().unwrap());
            assert!(sent >= intended, "{line}");
        }
        let hits: u64 = lines.iter().map(|line| line["cached_tokens"].as_u64().unwrap()).sum();
        assert!(hits >= 32, "the shared prefix was found in the cache: {hits}");
    }
}

#[test]
fn flags_that_do_not_go_together_are_told_and_leave_nothing() {
    let scratch = Scratch::new("replay-flags");
    let file = scratch.write("azure.csv", FILES[0].2.as_bytes());
    let out = scratch.path("run");
    let cases: &[(&[&str], &str)] = &[
        (&["--workload", "azure"], "--path"),
        (&["--workload", "azure", "--path", "/nowhere.csv"], "no such file"),
        (&["--workload", "azure", "--path", &file, "--replicas", "2"], "--executor sim"),
        (&["--workload", "azure", "--path", &file, "--router", "least-loaded"], "--executor sim"),
        (&["--workload", "azure", "--path", &file, "--from", "9", "--to", "3"], "ends before it begins"),
        (&["--workload", "azure", "--path", &file, "--from", "1e6"], "no record"),
        (&["--workload", "azure", "--path", &file, "--request-rate", "0"], "above 0"),
        (&["--workload", "azure", "--path", &file, "--speed", "2", "--request-rate", "3"], "--speed"),
        (&["--workload", "azure", "--path", &file, "--num-requests", "3"], "--limit"),
        (&["--workload", "azure", "--path", &file, "--task", "vt"], "--task"),
        (&["--workload", "azure", "--path", &file, "--slo", "itl=3"], "itl"),
        (&["--workload", "azure", "--path", &file, "--trace-out", "x"], "--out"),
        (&["--workload", "azure", "--path", &file, "--resume"], "holds no run"),
        (&["--workload", "sharegpt", "--path", &file, "--length-scale", "0.5"], "--length-scale"),
        (&["--workload", "ruler"], "--task"),
        (&["--workload", "ruler", "--task", "niah_single_9"], "niah_single_9"),
        (&["--workload", "random", "--path", &file], "--path"),
        (&["--workload", "random", "--executor", "sim", "--kv-cache-memory", "1G"], "--num-blocks"),
        (&["--workload", "random", "--executor", "sim", "--cost-model", "/nowhere.json"], "/nowhere.json"),
        (&["--workload", "ruler", "--num-requests", "3"], "--path or --task is missing"),
        (&["--workload", "azure", "--path", "/dev/null"], "not a regular file"),
        (&["--workload", "random", "--executor", "sim", "--draft", "nothing"], "--draft nothing"),
        (&["--workload", "random", "--executor", "sim", "--model", "/nowhere"], "--model /nowhere"),
        (&["--workload", "random", "--executor", "sim", "--model", "builtin:nobody"], "builtin:nobody"),
        (&["--workload", "random", "--executor", "sim", "--save-outputs"], "--save-outputs"),
        (&["--workload", "random", "--executor", "sim", "--trace-format", "parquet"], "--trace-format"),
        (&["--workload", "random", "--executor", "sim", "--request-rate", "1e-12"], "--request-rate"),
        (&["--workload", "azure", "--path", &file, "--executor", "sim", "--speed", "1e-12"], "--speed"),
        (&["--workload", "nothing"], "possible values"),
        (&["--workload", "random", "--model", "/nowhere"], "/nowhere"),
    ];
    for (arguments, told) in cases {
        let run = replay(&out, arguments);
        assert_eq!(run.code, Some(2), "{arguments:?}: {}", run.stderr);
        assert!(run.stderr.contains(told), "{arguments:?}: {}", run.stderr);
        assert_eq!(scratch.names(), ["azure.csv"], "{arguments:?}");
    }
}

#[test]
fn a_broken_file_is_told_by_name_and_line_before_anything_runs() {
    let scratch = Scratch::new("replay-broken");
    let head = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,37,4\n";
    let cut = scratch.write("cut.csv", format!("{head}2023-11-16 18:15:47.6805900,3").as_bytes());
    let negative =
        scratch.write("negative.csv", format!("{head}2023-11-16 18:15:47.6805900,-3,4\n").as_bytes());
    let empty = scratch.write("empty.csv", b"");
    for executor in ["real", "sim"] {
        for (file, told) in [(&cut, "cut.csv:3"), (&negative, "negative.csv:3"), (&empty, "empty.csv")] {
            let run = replay(
                &scratch.path("run"),
                &["--workload", "azure", "--path", file, "--executor", executor],
            );
            assert_eq!(run.code, Some(2), "{file}: {}", run.stderr);
            assert!(run.stderr.contains(told), "{}", run.stderr);
            assert_eq!(scratch.names(), ["cut.csv", "empty.csv", "negative.csv"]);
        }
    }
}

#[test]
fn a_directory_that_holds_a_run_is_not_written_over() {
    let scratch = Scratch::new("replay-twice");
    let arguments = ["--workload", "random", "--num-requests", "3", "--executor", "sim"];
    done(&replay(&scratch.path("run"), &arguments));
    let before = scratch.read("run/requests.jsonl");
    let again = replay(&scratch.path("run"), &arguments);
    assert_eq!(again.code, Some(2));
    assert!(again.stderr.contains("--resume"), "{}", again.stderr);
    let finished =
        replay(&scratch.path("run"), &["--resume"].iter().chain(&arguments).copied().collect::<Vec<_>>());
    assert_eq!(finished.code, Some(2));
    assert!(finished.stderr.contains("finished"), "{}", finished.stderr);
    assert_eq!(scratch.read("run/requests.jsonl"), before);
}

#[test]
fn the_same_replay_gives_the_same_tokens_whatever_proposes_drafts() {
    let scratch = Scratch::new("replay-same");
    let mut arguments =
        vec!["--workload", "random", "--num-requests", "8", "--input-len", "40", "--output-len", "12"];
    arguments.extend(["--random-range-ratio", "0.5", "--threads", "1", "--num-blocks", "512"]);
    let variants: [&[&str]; 5] = [
        &[],
        &["--max-concurrency", "2"],
        &["--draft", "ngram", "--num-speculative-tokens", "3", "--request-rate", "50"],
        &["--draft", "synthetic:0.8", "--num-speculative-tokens", "4"],
        &["--no-enable-prefix-caching", "--max-num-batched-tokens", "64", "--no-trace"],
    ];
    let mut first = None;
    for (i, more) in variants.into_iter().enumerate() {
        let run = replay(&scratch.path(&format!("{i}")), &[&arguments[..], more].concat());
        done(&run);
        let said = said(&scratch, &format!("{i}"));
        assert_eq!(said.len(), 8);
        assert!(said.values().all(|line| line[3].is_string()));
        assert_eq!(first.get_or_insert_with(|| said.clone()), &said, "{more:?}");
        assert_eq!(run.stderr.contains("run once without drafts first"), i == 3, "{}", run.stderr);
    }
    let drafted: u64 = scratch
        .json_lines("3/requests.jsonl")
        .iter()
        .flat_map(|line| line["accepted_by_position"].as_array().unwrap().clone())
        .map(|count| count.as_u64().unwrap())
        .sum();
    assert!(drafted > 0, "synthetic drafts were accepted");
    assert!(!scratch.names().contains(&"4/trace_steps.jsonl".to_owned()));
}

#[test]
fn a_limit_of_concurrency_is_kept() {
    let scratch = Scratch::new("replay-concurrency");
    for executor in ["real", "sim"] {
        let mut arguments =
            vec!["--workload", "random", "--num-requests", "10", "--input-len", "20", "--output-len", "6"];
        arguments.extend(["--max-concurrency", "3", "--executor", executor]);
        arguments.extend(TINY);
        done(&replay(&scratch.path(executor), &arguments));
        let lines = scratch.json_lines(&format!("{executor}/requests.jsonl"));
        let time = |line: &Value, key: &str| line[key].as_f64().unwrap();
        for line in &lines {
            let at = time(line, "sent_s");
            let flying = lines.iter().filter(|l| time(l, "sent_s") <= at && at < time(l, "finish_s")).count();
            assert!((1..=3).contains(&flying), "{executor}: {flying}");
            // In a closed loop nobody was late: the next one is asked for when a seat is free.
            assert!(at - time(line, "intended_arrival_s") < 0.5, "{line}");
        }
    }
}

#[test]
fn a_simulated_trace_is_sound_too() {
    let scratch = Scratch::new("replay-sim-trace");
    let common = ["--workload", "random", "--num-requests", "12", "--input-len", "100", "--output-len", "20"];
    let variants: [&[&str]; 3] = [
        &["--prefix-share", "0.5", "--request-rate", "100"],
        &["--draft", "ngram", "--num-speculative-tokens", "3", "--trace-tables", "delta"],
        &["--num-blocks", "20", "--max-concurrency", "4", "--trace-format", "jsonl.zst"],
    ];
    for (i, more) in variants.into_iter().enumerate() {
        let out = scratch.path(&format!("{i}"));
        done(&replay(&out, &[&common[..], &["--executor", "sim", "--trace-steps"], more].concat()));
        let check = pagedraft(&["trace", "check", &out]);
        assert_eq!(check.code, Some(0), "{more:?}: {}", check.stderr);
        assert!(check.stdout.contains("12 requests, 12 finished"), "{}", check.stdout);
    }
}

#[test]
fn the_first_minute_of_azures_trace_is_replayed_whole() {
    let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/azure/AzureLLMInferenceTrace_conv.csv");
    if !std::path::Path::new(trace).exists() {
        eprintln!("skipped: there is no ../shared");
        return;
    }
    let scratch = Scratch::new("replay-azure");
    let out = scratch.path("run");
    let mut arguments = vec!["--workload", "azure", "--path", trace, "--limit", "200"];
    arguments.extend(["--length-scale", "0.05", "--speed", "20"]);
    arguments.extend(["--threads", "1", "--enforce-eager", "--num-blocks", "2048"]);
    done(&replay(&out, &arguments));
    let lines = scratch.json_lines("run/requests.jsonl");
    let rows: Vec<(f64, f64)> = std::fs::read_to_string(trace)
        .unwrap()
        .lines()
        .skip(1)
        .take(200)
        .map(|row| {
            let mut fields = row.split(',').skip(1).map(|field| field.parse::<f64>().unwrap());
            (fields.next().unwrap(), fields.next().unwrap())
        })
        .collect();
    assert_eq!(lines.len(), 200);
    for line in &lines {
        let (prompt, output) = rows[line["request_id"].as_str().unwrap().parse::<usize>().unwrap()];
        assert_eq!(
            (&line["status"], &line["finish_reason"]),
            (&"finished".into(), &"length".into()),
            "{line}"
        );
        let tokens = |key: &str| line[key].as_f64().unwrap();
        assert_eq!(tokens("prompt_tokens"), (prompt * 0.05).round().max(1.0), "{line}");
        assert_eq!(tokens("output_tokens"), (output * 0.05).round().max(1.0), "{line}");
    }
    let check = pagedraft(&["trace", "check", &out]);
    assert_eq!(check.code, Some(0), "{}", check.stderr);
    assert!(check.stdout.contains("200 requests, 200 finished"), "{}", check.stdout);
}

#[test]
fn freed_seats_are_filled_before_the_next_step_as_in_the_simulation() {
    let scratch = Scratch::new("replay-hand-over");
    let mut arguments =
        vec!["--workload", "random", "--num-requests", "60", "--input-len", "16", "--output-len", "4"];
    arguments.extend(["--max-concurrency", "3", "--trace-format", "jsonl", "--enforce-eager"]);
    arguments.extend(["--num-blocks", "512"]);
    let steps = |out: &str, more: &[&str]| {
        done(&replay(&scratch.path(out), &[&arguments[..], more].concat()));
        scratch.json_lines(&format!("{out}/trace_steps.jsonl")).len()
    };
    // A prompt's step gives the first of 4 tokens: 60 requests take 80 steps, if no seat stays empty.
    assert_eq!(steps("sim", &["--executor", "sim", "--trace-steps"]), 80);
    // A machine that is busy with other things may be too slow for it once.
    let live: Vec<usize> = (0..5).map(|i| steps(&format!("{i}"), &["--threads", "1"])).collect();
    assert_eq!(live.iter().min(), Some(&80), "{live:?}");
}

#[test]
fn files_that_samples_are_made_of_are_known_by_what_is_in_them() {
    let scratch = Scratch::new("replay-haystack");
    let arguments = |essay: &str| {
        std::fs::write(scratch.path("essay.txt"), essay.repeat(200)).unwrap();
        let mut all = vec!["--workload", "ruler", "--task", "niah_single_2", "--length", "512"];
        all.extend(["--num-requests", "1", "--haystack"]);
        all.into_iter().map(str::to_owned).chain([scratch.path("essay.txt")]).collect::<Vec<_>>()
    };
    let run = |arguments: &[String], more: &[&str]| {
        let all: Vec<&str> = arguments.iter().map(String::as_str).chain(["--executor", "sim"]).collect();
        replay(&scratch.path("run"), &[&all[..], more].concat())
    };
    done(&run(&arguments("The sea is wide. "), &[]));
    let haystack = &scratch.json("run/config.json")["replay"]["dataset"]["ruler"]["haystack"];
    assert_eq!((&haystack["name"], &haystack["bytes"]), (&"essay.txt".into(), &3400.into()));
    let other = run(&arguments("The sea is deep. "), &["--resume"]);
    assert_eq!(other.code, Some(2));
    assert!(other.stderr.contains("ruler.haystack.sha256"), "{}", other.stderr);
}

#[test]
fn output_json_is_a_copy_of_the_summary() {
    let scratch = Scratch::new("replay-output-json");
    let copy = scratch.path("copy.json");
    let arguments =
        ["--workload", "random", "--num-requests", "3", "--executor", "sim", "--output-json", &copy];
    done(&replay(&scratch.path("run"), &arguments));
    assert_eq!(scratch.read("copy.json"), scratch.read("run/summary.json"));
    let arguments =
        ["--workload", "random", "--num-requests", "3", "--executor", "sim", "--output-json", "-"];
    let run = replay(&scratch.path("other"), &arguments);
    assert_eq!(run.stdout, scratch.read("other/summary.json"));
}

#[cfg(unix)]
mod stopped {
    use std::process::{Child, Stdio};
    use std::time::{Duration, Instant};

    use super::program::{command, interrupt};
    use super::*;

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
            assert!(
                scratch.json(&format!("{out}/summary.json")).get("interrupted").is_none_or(|i| i == false)
            );
        }
        assert!(scratch.read("ctrl-c/requests.jsonl").starts_with(&before), "what was there stays");
        // Lines that can't be this run's are told, each by its place.
        let lines = before.lines().collect::<Vec<_>>();
        for (wrong, what) in [
            (lines[0].to_owned(), "there twice"),
            (
                lines[0].replacen(
                    &format!(
                        "\"request_id\":{}",
                        serde_json::from_str::<Value>(lines[0]).unwrap()["request_id"]
                    ),
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
        let run =
            replay(&scratch.path("other"), &other.iter().copied().chain(["--resume"]).collect::<Vec<_>>());
        assert_eq!(run.code, Some(2));
        assert!(run.stderr.contains("input_len"), "{}", run.stderr);
    }

    #[test]
    fn what_is_stopped_before_the_run_begins_leaves_nothing() {
        let scratch = Scratch::new("replay-early");
        let endless = ["--workload", "random", "--num-requests", "100000000000"];
        let simulated: [&str; 2] = ["--executor", "sim"];
        let recorded: [&str; 5] =
            ["--draft", "synthetic:0.8", "--num-speculative-tokens", "3", "--no-report"];
        let many = ["--workload", "random", "--num-requests", "20000"];
        let cases = [[&endless[..], &simulated].concat(), [&many[..], &recorded, &TINY].concat()];
        for (i, arguments) in cases.iter().enumerate() {
            let out = scratch.path(&format!("{i}"));
            let child = start(&out, arguments);
            std::thread::sleep(Duration::from_millis(1500));
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
        assert!(
            again.stderr.contains(&format!("its {} requests are run once", 30 - there)),
            "{}",
            again.stderr
        );
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
}
