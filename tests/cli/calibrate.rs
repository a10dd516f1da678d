//! `pagedraft bench calibrate`, and the simulation that reads what it writes.

use serde_json::Value;

use crate::program::{Scratch, pagedraft};

const ENGINE: [&str; 8] = [
    "--num-blocks",
    "512",
    "--max-num-seqs",
    "16",
    "--max-model-len",
    "1024",
    "--max-num-batched-tokens",
    "512",
];

fn with<'a>(first: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [first, &ENGINE, more].concat()
}

#[test]
fn what_calibration_writes_is_what_a_simulation_reads() {
    let scratch = Scratch::new("calibrate");
    let (cost, steps, out) = (scratch.path("cost.json"), scratch.path("steps.jsonl"), scratch.path("run"));
    let run = pagedraft(&with(
        &["bench", "calibrate", "--model", "builtin:draft", "--draft", "builtin:draft", "--seconds", "5"],
        &["--num-speculative-tokens", "2", "--out", &cost, "--steps-out", &steps],
    ));
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stdout.contains("told/measured") && run.stdout.contains("builtin:draft"), "{run:?}");

    let model: Value = serde_json::from_str(&std::fs::read_to_string(&cost).unwrap()).unwrap();
    let calibration = &model["calibration"];
    assert!(model["name"].as_str().unwrap().starts_with("builtin:draft, "), "{model}");
    let lines = std::fs::read_to_string(&steps).unwrap();
    // Behind the name of the engine.
    assert_eq!(lines.lines().count() as u64 - 1, calibration["steps"].as_u64().unwrap());
    assert!(calibration["fit"]["held_out_steps"].as_u64().unwrap() > 0, "{calibration}");
    // A model that drafts for itself is always right.
    assert_eq!(model["proposers"]["draft"]["keeps_kv"], true);
    for share in model["acceptance"]["draft"]["by_position"].as_array().unwrap() {
        assert_eq!(share.as_f64(), Some(1.0), "{model}");
    }
    // Steps were of all kinds.
    let steps: Vec<Value> = lines.lines().skip(1).map(|line| serde_json::from_str(line).unwrap()).collect();
    let is = |test: &dyn Fn(&Value) -> bool| steps.iter().any(test);
    let number = |step: &Value, key: &str| step[key].as_u64().unwrap();
    assert!(is(&|s| s["replayed"] == true) && is(&|s| s["replayed"] == false));
    assert!(
        is(&|s| s["idle_us"].as_f64().unwrap() > 0.0)
            && is(&|s| number(s, "rows_before") > 0)
            && is(&|s| number(s, "begun") > 0)
            && is(&|s| number(s, "ended") > 0)
    );
    assert!(is(&|s| number(s, "token_rows") > number(s, "logit_rows")), "no prefill");
    assert!(is(&|s| number(s, "metadata_rows") > number(s, "plan_rows")), "no batch expansion");
    for proposer in ["draft", "ngram", "synthetic"] {
        assert!(
            is(&|s| s["proposer"] == proposer && !s["draft_passes"].as_array().unwrap().is_empty()),
            "{proposer}"
        );
    }

    let run = pagedraft(&with(
        &["replay", "--workload", "random", "--num-requests", "20", "--input-len", "64", "--output-len", "8"],
        &[
            "--executor",
            "sim",
            "--cost-model",
            &cost,
            "--no-trace",
            "--out",
            &out,
            "--draft",
            "builtin:draft",
        ],
    ));
    assert_eq!(run.code, Some(0), "{run:?}");
    let summary: Value =
        serde_json::from_str(&std::fs::read_to_string(scratch.path("run/summary.json")).unwrap()).unwrap();
    assert_eq!(summary["completed"], 20);
    assert_eq!(summary["cost_model"], model["name"]);
    assert!(summary["mean_ttft_ms"].as_f64().unwrap() > 0.0, "{summary}");
}

#[test]
fn a_file_that_is_no_cost_model_is_refused_by_name_and_field() {
    let scratch = Scratch::new("no-cost-model");
    let cost = scratch.write("cost.json", br#"{"name": "x", "target": {"points": [[1, "fast"]]}}"#);
    let out = scratch.path("run");
    let run = pagedraft(&[
        "replay",
        "--workload",
        "random",
        "--executor",
        "sim",
        "--cost-model",
        &cost,
        "--out",
        &out,
    ]);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("cost.json") && run.stderr.contains("target.points[0]"), "{run:?}");
}

#[test]
fn an_engine_that_can_not_be_measured_is_told_so() {
    let tiny =
        pagedraft(&["bench", "calibrate", "--model", "builtin:draft", "--num-blocks", "1", "--seconds", "1"]);
    assert!(tiny.code != Some(0) && tiny.stderr.contains("pool"), "{tiny:?}");
    for wrong in [["--seconds", "0"], ["--seconds", "nan"], ["--num-speculative-tokens", "0"]] {
        let run = pagedraft(&with(&["bench", "calibrate", "--model", "builtin:draft"], &wrong));
        assert_eq!(run.code, Some(2), "{run:?}");
    }
}

#[test]
fn steps_that_were_measured_before_are_fitted_with_those_of_now() {
    let scratch = Scratch::new("calibrate-again");
    let (first, both) = (scratch.path("first.jsonl"), scratch.path("both.jsonl"));
    let measure = |more: &[&str]| {
        let run =
            pagedraft(&with(&["bench", "calibrate", "--model", "builtin:draft", "--seconds", "0.5"], more));
        (run.code, run.stderr)
    };
    assert_eq!(measure(&["--steps-out", &first]).0, Some(0));
    assert_eq!(measure(&["--steps-in", &first, "--steps-out", &both]).0, Some(0));
    let read = |path: &str| std::fs::read_to_string(path).unwrap();
    let path = first;
    let (first, both) = (read(&path), read(&both));
    // As they were, and in front.
    assert!(both.starts_with(&first) && both.len() > first.len());
    let run = |line: &str| serde_json::from_str::<Value>(line).unwrap()["run"].as_u64().unwrap();
    let (last, next) = (
        first.lines().skip(1).map(run).max().unwrap(),
        both.lines().skip(first.lines().count()).map(run).min(),
    );
    assert!(next.unwrap() > last, "runs are held out by their number, and no two have one");

    let (code, stderr) = measure(&["--steps-in", &path, "--block-size", "32"]);
    assert!(code == Some(2) && stderr.contains("blocks of 16"), "{code:?} {stderr}");
    let broken = scratch.write("broken.jsonl", b"{\"plan_rows\": 1}\n");
    for wrong in [broken.as_str(), "/nowhere/steps.jsonl"] {
        let (code, stderr) = measure(&["--steps-in", wrong]);
        assert!(code == Some(2) && stderr.contains(wrong), "{code:?} {stderr}");
    }
}
