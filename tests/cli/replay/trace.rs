//! Step traces of simulations.

use pagedraft_workloads::trace::{SchemaOf, schema};

use super::{done, replay};
use crate::program::{Scratch, pagedraft};

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
fn a_trace_of_several_engines_tells_them_apart() {
    let scratch = Scratch::new("replay-replicas");
    let common = ["--workload", "random", "--num-requests", "30", "--input-len", "60", "--output-len", "8"];
    let several = ["--executor", "sim", "--trace-steps", "--replicas", "3", "--request-rate", "2000"];
    let valid = jsonschema::validator_for(&schema(SchemaOf::Steps)).unwrap();
    for tables in ["full", "delta"] {
        let out = scratch.path(tables);
        done(&replay(&out, &[&common[..], &several, &["--trace-tables", tables]].concat()));
        let check = pagedraft(&["trace", "check", &out]);
        assert_eq!(check.code, Some(0), "{tables}: {}", check.stderr);
        assert!(check.stdout.contains("30 requests, 30 finished"), "{}", check.stdout);
        assert!(check.stdout.contains("of 3 engines"), "{}", check.stdout);
        let lines = scratch.json_lines(&format!("{tables}/trace_steps.jsonl"));
        lines.iter().for_each(|line| assert!(valid.is_valid(line), "{line}"));
        let mut steps = [0; 3];
        lines.iter().for_each(|line| steps[line["replica"].as_u64().unwrap() as usize] += 1);
        assert!(steps.iter().all(|&steps| steps > 0), "{steps:?}");
        let (page, others) = (scratch.read(&format!("{tables}/report.html")), steps[1] + steps[2]);
        assert!(page.contains(&format!("those of engine 0, {others} steps of the others")), "{tables}");
        assert!(page.contains(&format!("{} steps, 0 to ", steps[0])), "{tables}: {steps:?}");
        let page = scratch.path("second.html");
        let run = pagedraft(&["report", &out, "--replica", "2", "--out", &page]);
        assert_eq!(run.code, Some(0), "{tables}: {}", run.stderr);
        let others = steps[0] + steps[1];
        assert!(
            scratch.read("second.html").contains(&format!("those of engine 2, {others} steps of the others"))
        );
        let run = pagedraft(&["report", &out, "--replica", "3", "--out", &page]);
        assert_eq!(run.code, Some(2), "{tables}: {run:?}");
        assert!(run.stderr.contains("--replica 3") && run.stderr.contains("engines 0 to 2"), "{run:?}");
        // Another engine's step is found out.
        let text = scratch.read(&format!("{tables}/trace_steps.jsonl"));
        scratch.write(
            &format!("{tables}/trace_steps.jsonl"),
            text.replacen("\"replica\":2", "\"replica\":1", 1).as_bytes(),
        );
        assert_eq!(pagedraft(&["trace", "check", &out]).code, Some(1), "{tables}");
    }
}
