//! What `bench latency` and `generate` say of speculation, from outside.

use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::program::{Scratch, command, interrupt, pagedraft};

#[test]
fn latency_says_what_speculation_came_to() {
    let scratch = Scratch::new("latency-speculation");
    let out = scratch.path("out.json");
    let small = ["bench", "latency", "--batch-size", "2", "--input-len", "32", "--output-len", "16"];
    let few = ["--num-iters", "2", "--num-iters-warmup", "1", "--output-json", &out];
    let run = pagedraft(&[&small[..], &few].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    let json = scratch.json("out.json");
    assert_eq!(json["speculation"], Value::Null);
    assert!(json["graph"]["replays"].as_u64() > Some(0) && json["graph"]["capture"]["graphs"].is_u64());
    let eager = pagedraft(&[&small[..], &few, &["--enforce-eager"]].concat());
    assert_eq!(eager.code, Some(0), "{eager:?}");
    let json = scratch.json("out.json");
    assert_eq!((&json["graph"]["replays"], &json["graph"]["capture"]), (&json!(0), &Value::Null));

    let draft = ["--draft", "synthetic:1", "--num-speculative-tokens", "3"];
    let run = pagedraft(&[&small[..], &few, &draft].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    let speculation = &scratch.json("out.json")["speculation"];
    assert_eq!(speculation["draft_acceptance_rate"], json!(1.0));
    assert_eq!(speculation["rate_by_position"], json!([1.0, 1.0, 1.0]));
    // 15 tokens behind the prefill's own, in two batches of two.
    let emitted = speculation["num_emitted_tokens"].as_u64().unwrap();
    assert!((52..=64).contains(&emitted), "{emitted}");
    for words in ["system efficiency", "Draft acceptance rate: 1.000", "stage times", "Avg latency"] {
        assert!(run.stdout.contains(words), "{words} is not in {run:?}");
    }
}

#[test]
fn generate_with_synthetic_drafts_gives_the_plain_runs_tokens() {
    let scratch = Scratch::new("generate-speculation");
    let (plain, drafted, trace) =
        (scratch.path("plain.json"), scratch.path("drafted.json"), scratch.path("trace"));
    let prompt = ["generate", "--prompt", "The old man", "--max-tokens", "30", "--seed", "7"];
    let sampled = ["--temperature", "0.8", "--n", "2"];
    let run = pagedraft(&[&prompt[..], &sampled, &["--output-json", &plain]].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(!run.stderr.contains("drafts"), "{run:?}");
    let draft = ["--draft", "synthetic:0.6", "--num-speculative-tokens", "3", "--trace-out", &trace];
    let run = pagedraft(&[&prompt[..], &sampled, &draft, &["--output-json", &drafted]].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stderr.contains("drafts accepted"), "{run:?}");
    let (plain, drafted) = (scratch.json_lines("plain.json"), scratch.json_lines("drafted.json"));
    assert_eq!((plain.len(), drafted.len()), (2, 2));
    for (plain, drafted) in plain.iter().zip(&drafted) {
        assert_eq!(plain["token_ids"], drafted["token_ids"]);
        let (drafts, accepted) = (&drafted["num_drafts"], &drafted["num_accepted"]);
        assert!(drafts.as_u64() > Some(0) && accepted.as_u64() <= drafts.as_u64(), "{drafted}");
    }
    let config = scratch.json("trace/config.json");
    assert_eq!(config["draft"], "synthetic:0.6");
    assert_eq!(config["num_speculative_tokens"], "3");
    assert_eq!((&config["scorer"], &config["acceptance"]), (&json!("mqa"), &json!("coupled")));
    assert_eq!((&config["enforce_eager"], &config["shadow_rate"]), (&json!(false), &json!(0.0)));
    assert_eq!(config["graph_sizes"][0], 1);
    let summary = scratch.json("trace/summary.json");
    assert!(summary["speculation"]["draft_acceptance_rate"].is_number(), "{summary}");
    assert_eq!(summary["speculation"].get("draft_acceptance_rate_noncausal"), None, "nobody counted it");
    let check = pagedraft(&["trace", "check", &trace]);
    assert_eq!(check.code, Some(0), "{check:?}");
}

#[test]
fn a_traced_batch_with_drafts_chunks_and_preemption_keeps_every_rule() {
    let scratch = Scratch::new("latency-trace");
    let trace = scratch.path("trace");
    let batch = ["bench", "latency", "--batch-size", "3", "--input-len", "40", "--output-len", "24"];
    let few = ["--num-iters", "2", "--num-iters-warmup", "0", "--trace-out", &trace];
    let tight = ["--num-blocks", "10", "--max-num-batched-tokens", "24", "--enable-prefix-caching"];
    let draft = ["--draft", "builtin:draft", "--num-speculative-tokens", "3"];
    let run = pagedraft(&[&batch[..], &few, &tight, &draft].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    let check = pagedraft(&["trace", "check", &trace]);
    assert_eq!(check.code, Some(0), "{check:?}");
    let steps = scratch.json_lines("trace/trace_steps.jsonl");
    assert!(steps.iter().any(|step| step["preempted"].as_array().is_some_and(|rows| !rows.is_empty())));
    assert!(steps.iter().any(|step| step["rows"].to_string().contains("verify")));
}

#[cfg(unix)]
#[test]
fn after_ctrl_c_the_figures_are_those_of_whole_batches() {
    let scratch = Scratch::new("latency-ctrl-c");
    let out = scratch.path("out.json");
    let batch = ["bench", "latency", "--batch-size", "2", "--input-len", "32", "--output-len", "64"];
    let draft = ["--draft", "synthetic:1", "--num-speculative-tokens", "3", "--num-iters-warmup", "0"];
    let line =
        |iterations| [&batch[..], &draft, &["--output-json", &out, "--num-iters", iterations]].concat();
    let run = pagedraft(&line("1"));
    assert_eq!(run.code, Some(0), "{run:?}");
    let one = scratch.json("out.json")["speculation"]["num_verify_rows"].as_u64().unwrap();
    assert!(one > 0);
    let mut wait = Duration::from_millis(500);
    loop {
        let mut child =
            command(&line("1000000")).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        // The header comes, so Ctrl-C is listened for.
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
        std::thread::sleep(wait);
        let text = interrupt(child);
        if !text.contains("stopped before the first timed batch") {
            break;
        }
        // On a busy machine the first batch may take longer.
        assert!(wait < Duration::from_secs(60), "{text}");
        wait *= 2;
    }
    let json = scratch.json("out.json");
    let batches = json["latencies"].as_array().unwrap().len() as u64;
    assert_eq!(json["partial"], true);
    assert_eq!(json["speculation"]["num_verify_rows"], json!(batches * one), "{batches} batches");
}

#[test]
fn flags_that_nobody_looks_at_are_told() {
    let notes = |more: &[&str]| {
        let run = pagedraft(&[&["generate", "--token-ids", "1,2", "--max-tokens", "2"], more].concat());
        assert_eq!(run.code, Some(0), "{run:?}");
        run.stderr.lines().filter(|line| line.starts_with("note: ")).map(str::to_owned).collect::<Vec<_>>()
    };
    let idle = notes(&["--num-speculative-tokens", "2", "--scorer", "mqa", "--acceptance", "coupled"]);
    let [idle] = idle.as_slice() else { unreachable!("one note: {idle:?}") };
    for word in ["--num-speculative-tokens", "--scorer", "--acceptance", "add --draft"] {
        assert!(idle.contains(word), "{idle}");
    }
    let sizes = notes(&["--graph-sizes", "4,512,513,600"]);
    assert!(sizes.len() == 1 && sizes[0].contains("--graph-sizes 513, 600 "), "{sizes:?}");
    let quiet: [&[&str]; 5] = [
        &[],
        &["--num-speculative-tokens", "0"],
        &["--num-speculative-tokens", "auto"],
        &["--scorer", "mqa", "--num-speculative-tokens", "2", "--draft", "ngram"],
        &["--graph-sizes", "600", "--enforce-eager"],
    ];
    for more in quiet {
        assert_eq!(notes(more), [""; 0], "{more:?}");
    }
}

#[test]
fn a_run_without_drafts_says_so_instead_of_nan() {
    let scratch = Scratch::new("no-drafts");
    let out = scratch.path("out.json");
    let small = ["bench", "latency", "--batch-size", "1", "--input-len", "4", "--output-len", "4"];
    let few = ["--num-iters", "1", "--num-iters-warmup", "0", "--draft", "ngram", "--output-json", &out];
    let run = pagedraft(&[&small[..], &few, &["--num-speculative-tokens", "0"]].concat());
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stdout.contains("no drafts: none were asked for") && !run.stdout.contains("nan"), "{run:?}");
    let speculation = &scratch.json("out.json")["speculation"];
    assert_eq!(speculation["num_draft_tokens"], 0);
    assert_eq!(speculation["draft_acceptance_rate"], Value::Null);
    assert_eq!(speculation["scoring_time_ms"], Value::Null);
}
