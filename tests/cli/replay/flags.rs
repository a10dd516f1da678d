//! What is asked for, and what can't be.

use super::datasets::FILES;
use super::replay;
use crate::program::Scratch;

#[test]
fn flags_that_do_not_go_together_are_told_and_leave_nothing() {
    let scratch = Scratch::new("replay-flags");
    let file = scratch.write("azure.csv", FILES[0].2.as_bytes());
    let out = scratch.path("run");
    let cases: &[(&[&str], &str)] = &[
        (&["--workload", "azure"], "--path"),
        (&["--workload", "azure", "--path", "/nowhere.csv"], "no such file"),
        (&["--workload", "azure", "--path", &file, "--router", "least-loaded"], "--replicas"),
        (&["--workload", "azure", "--path", &file, "--cost-model", "x"], "--executor sim"),
        (
            &["--workload", "random", "--endpoint", "http://localhost:1", "--replicas", "2"],
            "cannot be used with",
        ),
        (&["--workload", "random", "--replicas", "2", "--kv-local-pool", "1G"], "leave out --replicas"),
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
