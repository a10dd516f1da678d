//! `pagedraft replay`: workloads through the engine and through its simulation.

mod datasets;
mod directory;
mod files;
mod flags;
mod replicas;
mod seats;
mod sparse;
#[cfg(unix)]
mod stopped;
mod tokens;
mod trace;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::program::{Run, Scratch, pagedraft};

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
