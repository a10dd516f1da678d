//! `--dump-metadata` of `pagedraft bench compare`, against recorded steps.

use std::path::Path;

use serde_json::{Value, json};

use crate::program::{Scratch, pagedraft};

fn key(run: &Value) -> String {
    let part = |name: &str| run[name].as_str().unwrap().to_owned();
    format!("{} {} {}", part("proposer"), part("scorer"), part("mode"))
}

/// The metadata of the recorded verify steps, field by field, as `--dump-metadata` has it.
#[test]
fn the_recorded_verify_steps_are_reproduced() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/reference/spec_step");
    if !golden.is_dir() {
        println!("skipped: no recorded steps at {}", golden.display());
        return;
    }
    let scratch = Scratch::new("compare-golden");
    let cases = [
        ("8", "mqa", "eager", "verify_8seq_mqa_eager.json"),
        ("8", "mqa", "graph", "verify_8seq_mqa_graph.json"),
        ("8", "batch-expansion", "eager", "verify_8seq_batch_expansion_eager.json"),
        ("1", "mqa", "eager", "verify_1seq_mqa_eager.json"),
    ];
    for batch in ["8", "1"] {
        let (out, dump) = (scratch.path(&format!("run-{batch}")), scratch.path("dump.json"));
        let run = pagedraft(&[
            "bench",
            "compare",
            "--batch-size",
            batch,
            "--input-len",
            "256",
            "--output-len",
            "8",
            "--num-iters",
            "1",
            "--num-iters-warmup",
            "0",
            "--num-speculative-tokens",
            "2",
            "--max-model-len",
            "4096",
            "--draft",
            "synthetic:1",
            "--out",
            &out,
            "--dump-metadata",
            &dump,
        ]);
        assert_eq!(run.code, Some(0), "{run:?}");
        let dump = scratch.json("dump.json");
        for (_, scorer, mode, file) in cases.iter().filter(|case| case.0 == batch) {
            let text = std::fs::read_to_string(golden.join(file)).unwrap();
            let golden: Value = serde_json::from_str(&text).unwrap();
            let runs = dump["runs"].as_array().unwrap();
            let key = format!("synthetic {scorer} {mode}");
            let ours = runs.iter().find(|run| self::key(run) == key).unwrap();
            let padded = if *mode == "graph" { json!(4096 / 16) } else { Value::Null };
            assert_eq!(ours["block_tables_padded_to"], padded, "{file}");
            assert_eq!(ours["input_positions"], golden["input_positions"], "{file}");
            assert_eq!(
                ours["input_tokens"].as_array().unwrap().len(),
                golden["input_tokens"].as_array().unwrap().len()
            );
            for (field, value) in golden["metadata"].as_object().unwrap() {
                assert_eq!(ours["metadata"][field], *value, "{file}: {field}");
            }
        }
    }
}
