//! `pagedraft generate` and `pagedraft bench latency` on the embedded model, from outside.

use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::program::{Run, Scratch, command, pagedraft};

#[track_caller]
fn done(run: &Run) {
    assert_eq!(run.code, Some(0), "{run:?}");
}

#[test]
fn one_prompt_is_streamed_and_written_as_one_object() {
    let scratch = Scratch::new("one");
    let out = scratch.path("out.json");
    let arguments = [
        "generate",
        "--prompt",
        "The old man",
        "--max-tokens",
        "12",
        "--logprobs",
        "2",
        "--prompt-logprobs",
        "1",
    ];
    let run = pagedraft(&[&arguments[..], &["--output-json", &out]].concat());
    done(&run);
    let json = scratch.json("out.json");
    assert_eq!(json["request_id"], json!("0"));
    assert_eq!(json["finish_reason"], json!("length"));
    assert_eq!(json["token_ids"].as_array().unwrap().len(), 12);
    let prompt = json["prompt_token_ids"].as_array().unwrap().len();
    assert_eq!(run.stdout.trim_end_matches('\n'), json["text"].as_str().unwrap().trim_end_matches('\n'));
    assert!(run.stderr.contains("tokens/s"), "{run:?}");
    for (list, key) in json["logprobs"].as_array().unwrap().iter().zip(json["token_ids"].as_array().unwrap())
    {
        assert_eq!(list.as_array().unwrap().len(), 2);
        assert_eq!(list[0]["token_id"], *key, "greedy takes the best");
        assert!(
            list[0]["logprob"].as_f64() <= Some(0.0)
                && list[1]["logprob"].as_f64() <= list[0]["logprob"].as_f64()
        );
    }
    assert_eq!(json["prompt_logprobs"].as_array().unwrap().len(), prompt);
    assert_eq!(json["prompt_logprobs"][0], Value::Null);
    for key in ["num_cached_tokens", "num_preemptions", "num_drafts", "num_accepted"] {
        assert_eq!(json[key], json!(0), "{key}");
    }
    assert_eq!(scratch.names(), ["out.json"]);
}

#[test]
fn a_prompt_from_a_file_or_as_token_ids_goes_on_alike() {
    let scratch = Scratch::new("sources");
    let out = scratch.path("out.jsonl");
    let file = scratch.write("prompt.txt", "The old man".as_bytes());
    let mut texts = Vec::new();
    let mut ids = String::new();
    for source in [["--prompt", "The old man"], ["--prompt-file", &file]] {
        done(&pagedraft(&[&["generate", "--max-tokens", "8", "--output-json", &out], &source[..]].concat()));
        let json = scratch.json_lines("out.jsonl").remove(0);
        ids = json["prompt_token_ids"]
            .as_array()
            .unwrap()
            .iter()
            .map(Value::to_string)
            .collect::<Vec<_>>()
            .join(",");
        texts.push(json["text"].clone());
    }
    let run = pagedraft(&["generate", "--max-tokens", "8", "--output-json", "-", "--token-ids", &ids]);
    done(&run);
    texts.push(serde_json::from_str::<Value>(&run.stdout).unwrap()["text"].clone());
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
}

#[test]
fn a_stop_string_ends_the_text_before_it() {
    let whole = pagedraft(&["generate", "--prompt", "The old man", "--max-tokens", "30"]);
    done(&whole);
    let text = whole.stdout.trim_end();
    let (at, _) = text.char_indices().nth(text.chars().count() / 2).unwrap();
    let stop = &text[at..at + text[at..].char_indices().nth(3).map_or(1, |(i, _)| i)];
    let scratch = Scratch::new("stop");
    let out = scratch.path("out.json");
    let run = pagedraft(&[
        "generate",
        "--prompt",
        "The old man",
        "--max-tokens",
        "30",
        "--stop",
        stop,
        "--output-json",
        &out,
    ]);
    done(&run);
    let json = scratch.json("out.json");
    let first = whole.stdout.find(stop).unwrap();
    assert_eq!(json["text"], json!(whole.stdout[..first]));
    assert_eq!(json["finish_reason"], json!("stop"));
}

fn prompts(scratch: &Scratch) -> String {
    let lines = [
        json!({"prompt": "Once upon a time", "request_id": "last", "arrival_step": 40, "max_tokens": 6}),
        json!({"prompt": "It was a dark night, and", "temperature": 0.9, "seed": 5, "top_p": 0.9, "max_tokens": 20}),
        json!({"prompt_token_ids": (1..60).collect::<Vec<_>>(), "request_id": "ids", "max_tokens": 30, "ignore_eos": true}),
        json!({"prompt": "Alice was", "request_id": "two", "n": 2, "temperature": 1.0, "seed": 9, "max_tokens": 15}),
        json!({"prompt": "Once upon a time", "request_id": "gone", "arrival_step": 500, "max_tokens": 4}),
    ];
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    scratch.write("prompts.jsonl", text.as_bytes())
}

#[test]
fn many_prompts_are_served_at_once_and_come_out_in_order_whatever_the_schedule() {
    let scratch = Scratch::new("many");
    let file = prompts(&scratch);
    let mut tokens = Vec::new();
    let schedules: [&[&str]; 6] = [
        &[],
        &["--num-blocks", "8", "--trace-tables", "delta"],
        &["--max-num-batched-tokens", "3"],
        &["--prefill-chunk", "7", "--max-num-seqs", "2", "--no-enable-prefix-caching"],
        &["--block-size", "64", "--threads", "1"],
        &["--no-enable-chunked-prefill", "--policy", "priority"],
    ];
    for (i, schedule) in schedules.iter().enumerate() {
        let (out, trace) = (scratch.path("out.jsonl"), scratch.path(&format!("trace{i}")));
        let arguments = ["generate", "--prompts", &file, "--output-json", &out, "--trace-out", &trace];
        done(&pagedraft(&[&arguments[..], schedule].concat()));
        let lines = scratch.json_lines("out.jsonl");
        let ids: Vec<&str> = lines.iter().map(|line| line["request_id"].as_str().unwrap()).collect();
        assert_eq!(ids, ["last", "1", "ids", "two", "two", "gone"]);
        assert_eq!((&lines[3]["sample"], &lines[4]["sample"]), (&json!(0), &json!(1)));
        assert_ne!(lines[3]["token_ids"], lines[4]["token_ids"], "two samples differ");
        tokens.push(lines.iter().map(|line| line["token_ids"].clone()).collect::<Vec<_>>());
        let check = pagedraft(&["trace", "check", &trace]);
        done(&check);
        let steps = scratch.json_lines(&format!("trace{i}/trace_steps.jsonl"));
        let first = |id: &str| {
            let has =
                |step: &Value| step["rows"].as_array().unwrap().iter().any(|row| row["request_id"] == id);
            steps.iter().position(has).unwrap()
        };
        // "ids" alone takes 30 steps; those in which nothing runs are skipped.
        assert!(first("last") >= 30 && first("gone") > first("last") + 5, "schedule {i}");
        assert_eq!(scratch.json(&format!("trace{i}/summary.json"))["requests"], json!(6));
    }
    assert!(tokens.iter().all(|t| *t == tokens[0]), "the schedule changed a token");
}

#[test]
fn the_latency_benchmark_prints_and_writes_what_vllm_does() {
    let scratch = Scratch::new("latency");
    let (out, trace) = (scratch.path("out.json"), scratch.path("trace"));
    let arguments = [
        "bench",
        "latency",
        "--input-len",
        "40",
        "--output-len",
        "10",
        "--batch-size",
        "3",
        "--num-iters",
        "4",
        "--num-iters-warmup",
        "1",
        "--output-json",
        &out,
        "--trace-out",
        &trace,
    ];
    let run = pagedraft(&arguments);
    done(&run);
    let json = scratch.json("out.json");
    assert_eq!(json["model_id"], json!("builtin:target"));
    let latencies: Vec<f64> =
        json["latencies"].as_array().unwrap().iter().map(|l| l.as_f64().unwrap()).collect();
    assert_eq!(latencies.len(), 4);
    let mean = latencies.iter().sum::<f64>() / 4.0;
    assert!((json["avg_latency"].as_f64().unwrap() - mean).abs() < 1e-12);
    assert!(run.stdout.contains(&format!("Avg latency: {}", &mean.to_string()[..8])), "{run:?}");
    for p in ["10", "25", "50", "75", "90", "99"] {
        let start = format!("{p}% percentile latency: ");
        let line = run.stdout.lines().find_map(|line| line.strip_prefix(&start)?.strip_suffix(" seconds"));
        let printed: f64 = line.unwrap_or_else(|| panic!("{start} is not in {run:?}")).parse().unwrap();
        assert!((printed - json["percentiles"][p].as_f64().unwrap()).abs() < 1e-9, "{p}");
    }
    for key in ["output_tokens_per_second", "prefill_seconds"] {
        assert!(json[key].as_f64() > Some(0.0), "{json}");
    }
    assert!(json["decode_step_seconds"]["p50"].as_f64() <= json["decode_step_seconds"]["p99"].as_f64());
    for key in ["seed", "threads", "instruction_set", "revision"] {
        assert!(!json[key].is_null(), "{key}");
    }
    assert_eq!(run.stderr, "", "no bar where there is no terminal");
    done(&pagedraft(&["trace", "check", &trace]));
    let too_long = pagedraft(&["bench", "latency", "--input-len", "40000"]);
    assert_eq!(too_long.code, Some(2), "{too_long:?}");
    assert!(too_long.stderr.contains("--input-len"), "{too_long:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_in_order_with_what_there_is() {
    let scratch = Scratch::new("ctrl-c");
    let (out, trace) = (scratch.path("out.json"), scratch.path("trace"));
    let arguments = [
        "generate",
        "--prompt",
        "The old man",
        "--max-tokens",
        "30000",
        "--ignore-eos",
        "--output-json",
        &out,
        "--trace-out",
        &trace,
    ];
    let mut child = command(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    // Text comes, so the run is under way.
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
    let interrupt =
        std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let mut rest = Vec::new();
    child.stdout.as_mut().unwrap().read_to_end(&mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let json = scratch.json("out.json");
    assert_eq!(json["finish_reason"], json!("abort"));
    assert!(json["token_ids"].as_array().unwrap().len() > 1);
    assert!(scratch.json("trace/summary.json")["steps"].as_u64() > Some(0));
    done(&pagedraft(&["trace", "check", &trace]));
}

#[cfg(unix)]
#[test]
fn a_killed_run_leaves_a_trace_that_passes() {
    let scratch = Scratch::new("killed");
    let trace = scratch.path("trace");
    let arguments = [
        "generate",
        "--prompt",
        "The old man",
        "--max-tokens",
        "30000",
        "--ignore-eos",
        "--trace-out",
        &trace,
    ];
    let mut child = command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let steps = std::path::PathBuf::from(&trace).join("trace_steps.jsonl");
    let start = Instant::now();
    while std::fs::metadata(&steps).map_or(0, |m| m.len()) < 100_000 {
        assert!(start.elapsed() < Duration::from_secs(60), "no trace comes");
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let check = pagedraft(&["trace", "check", &trace]);
    done(&check);
    assert!(!std::path::PathBuf::from(&trace).join("summary.json").exists());
}

#[test]
fn a_closed_pipe_is_no_failure() {
    let arguments = ["generate", "--prompt", "The old man", "--max-tokens", "3000", "--ignore-eos"];
    let mut child = command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}
