//! Traces of tensors from the command line: what is written, what two runs differ in, and what is refused.

use serde_json::json;

use crate::diffusion;
use crate::program::{Run, Scratch, pagedraft};

fn generate(model: &str, flags: &[&str]) -> Run {
    let canvas = ["--gen-length", "32", "--steps", "8", "--output-json", "-"];
    diffusion::generate(model, &[&canvas[..], flags].concat())
}

#[test]
fn two_runs_are_traced_counted_compared_exported_and_drawn() {
    let scratch = Scratch::new("tensors");
    let (model, a, b) = (diffusion::model(&scratch), scratch.path("a"), scratch.path("b"));
    let full = ["--trace-tensors", "full", "--trace-out"];
    let plain = generate(&model, &[&full[..], &[&a]].concat());
    assert_eq!(plain.code, Some(0), "{}", plain.stderr);
    let skip = ["--decoder", "dual-cache-skip", "--skip-policy", "least-moved", "--skip-threshold", "0.5"];
    let skipped = generate(&model, &[&full[..], &[&b], &skip].concat());
    assert_eq!(skipped.code, Some(0), "{}", skipped.stderr);

    let counted = pagedraft(&["trace", "summary", &b]);
    assert_eq!(counted.code, Some(0), "{}", counted.stderr);
    for line in ["ATTN_ENTRY: 32", "KV_CACHE_UPDATE: 28", "SKIP_JUDGE_RESULT: 7", "layers 0 to 3"] {
        assert!(counted.stdout.contains(line), "{line}\n{}", counted.stdout);
    }
    let counts = pagedraft(&["trace", "summary", &b, "--json"]);
    let counts: serde_json::Value = serde_json::from_str(&counts.stdout).unwrap();
    assert_eq!((&counts["events"]["ROPE_TOKENSKIP_RESULT"], &counts["left_out"]), (&json!(14), &json!(0)));

    let same = pagedraft(&["trace", "diff", &a, &a]);
    assert_eq!((same.code, same.stdout.starts_with("no difference\n")), (Some(0), true), "{}", same.stdout);
    let found = scratch.path("diff.json");
    let parted = pagedraft(&["trace", "diff", &a, &b, "--output-json", &found]);
    assert_eq!(parted.code, Some(1), "{}", parted.stderr);
    assert!(parted.stdout.contains("first difference: step "), "{}", parted.stdout);
    assert!(parted.stdout.contains("stable"), "{}", parted.stdout);
    let found = scratch.json("diff.json");
    assert_eq!(found["first_difference"]["layer"], 2);
    assert_eq!(found["tokens"].as_array().unwrap().len(), 32);
    assert_eq!(found["layers"].as_array().unwrap().len(), 4);

    let exported = pagedraft(&["trace", "export", &b, "--event", "tensor", "--format", "jsonl.zst"]);
    assert_eq!(exported.code, Some(0), "{}", exported.stderr);
    let page = scratch.path("page.html");
    let drawn = pagedraft(&["report", &a, &b, "--out", &page]);
    assert_eq!(drawn.code, Some(0), "{}", drawn.stderr);
    assert!(scratch.read("page.html").contains("Where b parts from a: differences in step"));
}

#[test]
fn what_is_left_out_is_told_and_what_cannot_be_traced_is_refused() {
    let scratch = Scratch::new("tensors-refused");
    let (model, dir) = (diffusion::model(&scratch), scratch.path("trace"));
    let bounded = ["--trace-tensors", "stats", "--trace-max-entries", "5", "--trace-out", &dir];
    let bounded = generate(&model, &bounded);
    assert_eq!(bounded.code, Some(0), "{}", bounded.stderr);
    assert!(bounded.stderr.contains("has 5 events of tensors, and "), "{}", bounded.stderr);
    assert!(pagedraft(&["trace", "summary", &dir]).stdout.contains("Left out (--trace-max-entries): "));

    let refused = |flags: &[&str], words: &str| {
        let run = generate(&model, flags);
        assert_eq!(run.code, Some(2), "{flags:?}: {}", run.stderr);
        assert!(run.stderr.contains(words), "{flags:?}: {}", run.stderr);
    };
    refused(&["--trace-tensors", "full"], "--trace-tensors: the engine writes no trace");
    refused(&["--trace-tensor-layers", "0-1"], "--trace-tensors");
    refused(&["--trace-tensors", "stats", "--trace-tensor-layers", "3-1"], "the first number is the greater");
    let out = scratch.path("simulated");
    let simulated =
        ["replay", "--workload", "random", "--num-requests", "2", "--executor", "sim", "--out", &out];
    let simulated = pagedraft(&[&simulated[..], &["--trace-tensors", "stats"]].concat());
    assert_eq!(simulated.code, Some(2), "{}", simulated.stderr);
    assert!(simulated.stderr.contains("--trace-tensors: a simulated engine"), "{}", simulated.stderr);

    let empty = scratch.path("");
    for command in [&["trace", "summary", &empty][..], &["trace", "diff", &empty, &dir]] {
        let run = pagedraft(command);
        assert_eq!(run.code, Some(2), "{command:?}: {}", run.stderr);
        assert!(run.stderr.contains("tensors"), "{command:?}: {}", run.stderr);
    }
}
