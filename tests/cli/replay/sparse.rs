//! Replays of a model with sparse attention, with records of what it chose.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{done, replay};
use crate::models::with_tokenizer;
use crate::program::{Scratch, pagedraft};

fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name);
    if !path.exists() {
        println!("skipped: {} is missing", path.display());
    }
    path.exists().then_some(path)
}

/// The figures about blocks of some records.
fn figures(records: &[Value]) -> Value {
    let kept = records.iter().filter(|r| r["row"] != "prefill" && r["accepted"] != false);
    let (mut blocks, mut offsets, mut ratios, mut touched) = (vec![], vec![], vec![], 0);
    for record in kept {
        blocks.push(record["unique_blocks"].as_u64().unwrap());
        touched += record["unique_blocks"].as_u64().unwrap();
        ratios.push(record["prefix"]["intersection_ratio"].as_f64().unwrap());
        let keys = record["selected_token_pos"].as_array().unwrap().iter();
        offsets.extend(keys.map(|key| record["step_idx"].as_u64().unwrap() - key.as_u64().unwrap()));
    }
    json!({
        "unique_blocks": [blocks.len(), blocks.iter().min(), blocks.iter().max()],
        "offsets": [offsets.len(), offsets.iter().min(), offsets.iter().max()],
        "tokens_per_touched_block": touched,
        "prefix_intersection_ratio": ratios.len(),
    })
}

#[test]
fn the_four_workloads_leave_records_that_are_proved_and_a_summary_of_them() {
    let scratch = Scratch::new("replay-sparse");
    let model = with_tokenizer("replay-sparse-model");
    let workloads = [
        ("ruler", "ruler/niah_multikey_3_4096_rows001-250.jsonl"),
        ("longbench", "longbench/longbench_v1_multi_news.jsonl"),
        ("sharegpt", "sharegpt/sharegpt_conversations_001-030.json"),
        ("burstgpt", "burstgpt/BurstGPT_1_rows001-300.csv"),
    ];
    for (workload, file) in workloads {
        let Some(file) = shared(file) else { continue };
        let out = scratch.path(workload);
        let arguments = [
            "--workload",
            workload,
            "--path",
            file.to_str().unwrap(),
            "--model",
            &model,
            "--load-format",
            "dummy",
            "--limit",
            "2",
            "--length-scale",
            "0.05",
            "--max-new-tokens",
            "6",
            "--request-rate",
            "inf",
            "--threads",
            "1",
            "--enforce-eager",
            "--num-blocks",
            "1200",
        ];
        let arguments: Vec<&str> = match workload {
            // Texts have the length that they have.
            "burstgpt" => arguments.to_vec(),
            _ => arguments.into_iter().filter(|a| !["--length-scale", "0.05"].contains(a)).collect(),
        };
        done(&replay(&out, &arguments));
        let check = pagedraft(&["trace", "check", &out]);
        assert_eq!(check.code, Some(0), "{workload}: {}", check.stderr);
        assert!(check.stdout.contains("records of sparse attention proved"), "{workload}: {}", check.stdout);
        let export = pagedraft(&["trace", "export", &out, "--event", "dsa_topk", "--format", "jsonl"]);
        assert_eq!(export.code, Some(0), "{workload}: {}", export.stderr);
        let records = scratch.json_lines(&format!("{workload}/dsa_topk.jsonl"));
        let summary = scratch.json(&format!("{workload}/summary.json"));
        let tally = |key: &str| json!([summary[key]["count"], summary[key]["min"], summary[key]["max"]]);
        let found = figures(&records);
        let same = |a: &Value, b: &Value| (0..3).all(|i| a[i].as_f64() == b[i].as_f64());
        for key in ["unique_blocks", "offsets"] {
            assert!(same(&tally(key), &found[key]), "{workload}: {key}: {} {}", tally(key), found[key]);
        }
        for key in ["tokens_per_touched_block", "prefix_intersection_ratio"] {
            assert_eq!(summary[key]["count"], found[key], "{workload}: {key}");
        }
        let page = scratch.read(&format!("{workload}/report.html"));
        assert!(page.contains("Keys chosen by layer 0") && page.contains("Misses of a cache"), "{workload}");
        let analysis = pagedraft(&["trace", "analyze", "dsa", &out, "--json"]);
        assert_eq!(analysis.code, Some(0), "{workload}: {}", analysis.stderr);
        let analysis: Value = serde_json::from_str(&analysis.stdout).unwrap();
        assert_eq!(analysis["all"]["records"], summary["unique_blocks"]["count"], "{workload}");
        let table = pagedraft(&["trace", "analyze", "dsa", &out]);
        assert!(table.stdout.contains("shifted by one") && table.stdout.contains("layer 2"), "{workload}");
    }
}

#[test]
fn cached_prefixes_of_a_replay_are_hot_in_each_layer_and_a_simulation_records_nothing() {
    let scratch = Scratch::new("replay-sparse-prefix");
    let model = with_tokenizer("replay-sparse-prefix-model");
    let out = scratch.path("run");
    let random = ["--workload", "random", "--num-requests", "4", "--input-len", "100", "--output-len", "8"];
    let engine = ["--model", &model, "--load-format", "dummy", "--threads", "1", "--enforce-eager"];
    let more = ["--prefix-share", "0.5", "--max-concurrency", "1", "--num-blocks", "64"];
    done(&replay(&out, &[&random[..], &engine, &more].concat()));
    let summary = scratch.json("run/summary.json");
    for layer in ["0", "1", "2"] {
        let hot = summary["prefix_hot_blocks"][layer].as_array().unwrap();
        assert!(!hot.is_empty() && hot[0]["touch_count"].as_u64() > Some(0), "{layer}: {hot:?}");
    }
    assert!(summary["prefix_intersection_ratio"]["max"].as_f64() > Some(0.0));
    let refused = ["--executor", "sim", "--trace-dsa", "decode"];
    let run = replay(&scratch.path("sim"), &[&random[..], &refused].concat());
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("--trace-dsa decode"), "{run:?}");
}
