//! Absurd magnitudes: refused with what they take and what there is, or without effect; never an abort, and never a process that
//! does not answer.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::program::{Run, Scratch, command, pagedraft};

const SIM: &str =
    "replay --executor sim --no-report --workload random --num-requests 3 --input-len 10 --output-len 4";
const LATENCY: &str =
    "bench latency --threads 1 --num-iters 1 --num-iters-warmup 0 --input-len 4 --output-len 2";
const MOST: &str = "4294967295";

fn with(line: &str, more: &[&str]) -> Run {
    pagedraft(&[&line.split(' ').collect::<Vec<_>>()[..], more].concat())
}

#[test]
fn what_there_is_no_memory_for_is_refused_with_both_figures() {
    let scratch = Scratch::new("magnitudes");
    let out = scratch.path("out");
    let workload = scratch.write("w.json", b"{\"requests\": []}");
    let config = scratch.write("c.json", format!("{{\"num_blocks\": {MOST}}}").as_bytes());
    for (line, more, what) in [
        (SIM, vec!["--out", &out, "--num-blocks", MOST], "--num-blocks 4294967295 takes 549755813760 bytes"),
        (
            SIM,
            vec!["--out", &out, "--num-blocks", "100000000", "--replicas", "4096"],
            "of each of --replicas 4096 takes",
        ),
        (LATENCY, vec!["--batch-size", MOST], "--batch-size 4294967295 with 4 + 2 tokens a request takes"),
        ("generate --prompt hi --threads 1", vec!["--num-blocks", MOST], "--num-blocks 4294967295 takes"),
        ("generate --prompt hi --threads 1", vec!["--kv-cache-memory", "8000000000G"], "--kv-cache-memory"),
        (
            "generate --prompt hi --threads 1",
            vec!["--max-num-batched-tokens", MOST],
            "--max-num-batched-tokens 4294967295 takes",
        ),
        (
            "bench scheduler",
            vec!["--workload", &workload, "--config", &config, "--trace-out", &out],
            "num_blocks 4294967295 takes",
        ),
    ] {
        let run = with(line, &more);
        assert_eq!(run.code, Some(2), "{line} {more:?}: {run:?}");
        assert!(
            run.stderr.contains(what) && run.stderr.contains(", and this machine has "),
            "{what}: {run:?}"
        );
    }
    assert_eq!(scratch.names(), ["c.json", "w.json"], "nothing half-written");
}

#[test]
fn what_cannot_be_meant_is_refused_and_what_has_no_effect_is_taken() {
    let generate = "generate --prompt hi --max-tokens 9 --threads 1";
    let scratch = Scratch::new("no-effect");
    let plain = with(generate, &[]);
    for more in [
        vec!["--max-num-seqs", MOST],
        vec!["--prefill-chunk", MOST],
        vec!["--top-k", MOST],
        vec!["--graph-sizes", MOST],
        vec!["--draft", "ngram", "--ngram-max", MOST],
        vec!["--draft", "ngram", "--num-speculative-tokens", "8", "--ngram-min", MOST, "--ngram-max", MOST],
    ] {
        let run = with(generate, &more);
        assert_eq!((run.code, &run.stdout), (Some(0), &plain.stdout), "{more:?}: {run:?}");
    }
    for more in [
        ["--max-num-seqs", MOST],
        ["--max-num-batched-tokens", MOST],
        ["--max-model-len", MOST],
        ["--max-concurrency", MOST],
    ] {
        let out = scratch.path(more[0]);
        let run = with(SIM, &[&more[..], &["--out", &out]].concat());
        assert_eq!(run.code, Some(0), "{more:?}: {run:?}");
    }
    let out = scratch.path("refused");
    for (line, more) in [
        (generate, ["--draft-cost", "1e300"]),
        (generate, ["--draft-cost", "nan"]),
        (generate, ["--temperature", "inf"]),
        (generate, ["--top-p", "-1"]),
        (generate, ["--n", MOST]),
        (SIM, ["--request-rate", "1e-300"]),
        (SIM, ["--length-scale", "nan"]),
        ("replay --executor sim --workload random", ["--num-requests", "18446744073709551615"]),
    ] {
        let more = if line == generate { more.to_vec() } else { [&more[..], &["--out", &out]].concat() };
        let run = with(line, &more);
        assert_eq!(run.code, Some(2), "{more:?}: {run:?}");
    }
}

#[test]
fn a_limit_of_the_process_counts_as_the_machines_memory_does() {
    // Enough for the engine, but not for the pool that is asked for: some 1.5 GB.
    let line = format!(
        "ulimit -v 2000000 && exec {} {SIM} --out {} --num-blocks 100000000",
        env!("CARGO_BIN_EXE_pagedraft"),
        std::env::temp_dir().join("pagedraft-never-made").display()
    );
    let output = Command::new("sh").args(["-c", &line]).output().unwrap();
    let told = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(
        told.contains("takes 12800000000 bytes") && told.contains("for this process (ulimit -v)"),
        "{told}"
    );
}

#[test]
fn a_signal_is_answered_while_a_huge_batch_is_prepared_and_while_it_runs() {
    let scratch = Scratch::new("signals");
    let out = scratch.path("out.json");
    for (signal, after_ms) in [("-INT", 700), ("-TERM", 1500), ("-INT", 2500)] {
        let arguments = LATENCY.split(' ').chain(["--batch-size", "300000", "--output-json", &out]);
        let arguments: Vec<&str> = arguments.collect();
        let mut child = command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after_ms));
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let pressed = Instant::now();
        let code = child.wait().unwrap().code();
        // A machine that runs other tests beside this one takes longer than the second that it has alone.
        assert!(
            pressed.elapsed() < Duration::from_secs(4),
            "{signal} after {after_ms} ms: {:?}",
            pressed.elapsed()
        );
        assert_eq!(code, Some(130), "{signal} after {after_ms} ms");
        assert!(scratch.names().is_empty(), "{:?}", scratch.names());
    }
}
