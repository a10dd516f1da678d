//! `pagedraft bench compare`, from outside.

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::program::{Run, Scratch, command, interrupt, pagedraft};

const SMALL: [[&str; 2]; 7] = [
    ["--batch-size", "3"],
    ["--input-len", "40"],
    ["--output-len", "24"],
    ["--num-iters", "2"],
    ["--num-iters-warmup", "1"],
    ["--num-speculative-tokens", "3"],
    ["--num-blocks", "256"],
];

/// The arguments of a small comparison with its files in `scratch`; a flag in `more` takes the place of its own.
fn arguments(scratch: &Scratch, more: &[&str]) -> Vec<String> {
    let own = SMALL.into_iter().filter(|[flag, _]| !more.contains(flag)).flatten();
    let command = ["bench", "compare"].into_iter().chain(own).chain(more.iter().copied());
    let mut arguments: Vec<String> = command.map(str::to_owned).collect();
    arguments.extend(["--out".to_owned(), scratch.path("run")]);
    arguments.extend(["--output-json".to_owned(), scratch.path("out.json")]);
    arguments
}

fn compare(scratch: &Scratch, more: &[&str]) -> Run {
    let arguments = arguments(scratch, more);
    pagedraft(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

#[cfg(unix)]
fn start(scratch: &Scratch, more: &[&str]) -> Child {
    let arguments = arguments(scratch, more);
    let mut command = command(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
}

#[track_caller]
fn refused(run: &Run, words: &[&str]) {
    assert_eq!(run.code, Some(2), "{run:?}");
    for word in words {
        assert!(run.stderr.contains(word), "{word:?} is not in {run:?}");
    }
    assert_eq!(run.stdout, "", "{run:?}");
}

fn key(run: &Value) -> String {
    let part = |name: &str| run[name].as_str().unwrap().to_owned();
    format!("{} {} {}", part("proposer"), part("scorer"), part("mode"))
}

#[test]
fn eight_runs_are_compared_and_every_bit_is_equal() {
    let scratch = Scratch::new("compare");
    let run = compare(&scratch, &[]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let json = scratch.json("out.json");
    assert_eq!(json, scratch.json("run/summary.json"));
    assert!(!run.stdout.contains("device busy"), "{run:?}");
    let runs = json["runs"].as_array().unwrap();
    let keys: Vec<_> = runs.iter().map(key).collect();
    let wanted = [
        "none none eager",
        "none none graph",
        "ngram mqa eager",
        "ngram mqa graph",
        "draft batch-expansion eager",
        "draft batch-expansion graph",
        "draft mqa eager",
        "draft mqa graph",
    ];
    assert_eq!(keys, wanted);
    for run in runs {
        let name = key(run);
        let parity = &run["parity"];
        assert_eq!(parity["requests"], 3, "{name}");
        assert_eq!(parity["requests_equal"], 3, "{name}");
        assert_eq!(parity["tokens"], 3 * 24, "{name}");
        assert_eq!(parity["first_difference"], Value::Null, "{name}");
        assert_eq!(parity["rows_different"], json!([]), "{name}");
        assert_eq!(parity["max_abs_hidden_diff"], json!(0.0), "{name}");
        assert_eq!(parity["max_abs_logit_diff"], json!(0.0), "{name}");
        assert_eq!(parity["timed_batches_different"], 0, "{name}");
        let latency = run["avg_latency"].as_f64().unwrap();
        let latencies: Vec<f64> =
            run["latencies"].as_array().unwrap().iter().flat_map(Value::as_f64).collect();
        assert_eq!(latencies.len(), 2, "{name}");
        assert!((latency - (latencies[0] + latencies[1]) / 2.0).abs() < 1e-12, "{name}");
        for p in ["10", "25", "50", "75", "90", "99"] {
            assert!(run["percentiles"][p].as_f64() > Some(0.0), "{name}");
        }
        let plain = runs[usize::from(run["mode"] == "graph")]["avg_latency"].as_f64().unwrap();
        assert!((run["speedup_vs_no_spec"].as_f64().unwrap() - plain / latency).abs() < 1e-9, "{name}");
        assert!((0.0..1.0).contains(&run["share_outside_model"].as_f64().unwrap()), "{name}");
        assert!(run["wall_ms_per_step"]["execute"].as_f64() > Some(0.0), "{name}");
        // The CPU has no clock but the host's.
        assert!(run.get("device_ms_per_step").is_some_and(Value::is_null), "{name}");
        let graph = run["mode"] == "graph";
        assert_eq!(run["graph_replays"].as_u64() > Some(0), graph, "{name}");
        assert_eq!(run["graph_vs_eager"].is_number(), graph, "{name}");
        assert!(run["graph_fallbacks"].is_object(), "{name}");
        speculation(run);
    }
    for field in ["model_id", "machine", "instruction_set", "dtype", "revision", "draft"] {
        assert!(json[field].is_string(), "{field}");
    }
    for field in ["k", "batch", "input_len", "output_len", "iterations", "warmup", "seed", "threads"] {
        assert!(json[field].is_u64(), "{field}");
    }
    assert!(json["capture"]["graphs"].as_u64() > Some(0) && json["capture"]["bytes"].is_u64());
    assert_eq!((&json["partial"], &json["equal"]), (&json!(false), &json!(true)));
    assert_eq!(scratch.names(), ["out.json", "run"]);
    assert_eq!(scratch.json("run/config.json")["batch"], 3);
    let drafted = runs.iter().filter(|run| run["num_draft_tokens"].as_u64() > Some(0)).count();
    assert!(drafted >= 4, "{json}");
    printed(&run.stdout, &scratch.read("run/compare.svg"), drafted);
}

/// The figures of speculation that a run must have, and how they hang together.
fn speculation(run: &Value) {
    let name = key(run);
    let rates = [
        "draft_acceptance_rate",
        "draft_acceptance_rate_noncausal",
        "system_efficiency",
        "mean_acceptance_length",
        "average_time_per_proposal_tok_ms",
        "scoring_time_ms",
        "verification_time_ms",
    ];
    if run["proposer"] == "none" {
        assert!(rates.iter().all(|rate| run[rate].is_null()), "{name}");
        assert_eq!(run["num_draft_tokens"], 0, "{name}");
        return;
    }
    let count = |field: &str| run[field].as_u64().unwrap_or_else(|| panic!("{name}: {field}"));
    let (drafts, accepted) = (count("num_draft_tokens"), count("num_accepted_tokens"));
    assert_eq!(count("num_emitted_tokens"), accepted + count("num_verify_rows"), "{name}");
    if drafts == 0 {
        // N-grams of a short text may never match.
        assert_eq!(run["proposer"], "ngram");
        return;
    }
    for rate in rates {
        assert!(run[rate].as_f64() >= Some(0.0), "{name}: {rate}");
    }
    let rate = run["draft_acceptance_rate"].as_f64().unwrap();
    assert!((rate - accepted as f64 / drafts as f64).abs() < 1e-12, "{name}");
    assert!(run["draft_acceptance_rate_noncausal"].as_f64() >= Some(rate), "{name}");
    assert!(run["rate_by_position"].as_array().unwrap().len() <= 3, "{name}");
}

/// The table has a row a run, the log lines are in the form of the notes for the runs with drafts, the picture is whole.
fn printed(table: &str, svg: &str, drafted: usize) {
    for row in ["no speculation", "ngram, mqa", "draft, batch-expansion", "draft, mqa"] {
        for mode in ["eager", "graph"] {
            let start = format!("{row:<29}{mode}");
            assert_eq!(table.lines().filter(|line| line.starts_with(&start)).count(), 3, "{start}\n{table}");
        }
        assert!(svg.contains(row), "{row}");
    }
    let stages = table.lines().filter(|line| line.starts_with("SpecDecodeWorker stage times: "));
    assert_eq!(stages.count(), drafted, "{table}");
    let metrics = "Number of speculative tokens: 3, Number of accepted tokens: ";
    assert_eq!(table.matches(metrics).count(), drafted, "{table}");
    assert!(!table.contains("nan"), "{table}");
    let tables = table.lines().filter(|line| !line.starts_with("Speculative metrics"));
    assert!(tables.clone().all(|line| line.chars().count() <= 160), "{table}");
    assert!(!table.contains("DIFFERENT"), "{table}");
    assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
}

#[test]
fn a_fault_in_the_graph_is_found_in_the_runs_that_have_it_and_nowhere_else() {
    let scratch = Scratch::new("compare-fault");
    let more = ["--draft", "synthetic:1", "--num-iters", "1", "--num-iters-warmup", "0"];
    let run = compare(&scratch, &[&more[..], &["--inject-fault", "decode-graph-for-verify"]].concat());
    assert_eq!(run.code, Some(1), "{run:?}");
    let json = scratch.json("out.json");
    for run in json["runs"].as_array().unwrap() {
        let name = key(run);
        let rows = run["parity"]["rows_different"].as_array().unwrap();
        if run["proposer"] == "ngram" && run["mode"] == "graph" {
            // They may find nothing to verify, then nothing goes wrong.
            continue;
        }
        let wrong = run["mode"] == "graph" && run["scorer"] == "mqa";
        assert_eq!(!rows.is_empty(), wrong, "{name}: {rows:?}");
        assert_eq!(run["parity"]["first_difference"].is_object(), wrong, "{name}");
        assert_eq!(run["parity"]["max_abs_hidden_diff"].as_f64() > Some(0.0), wrong, "{name}");
        if wrong {
            assert!(rows.contains(&json!(1)) && rows.contains(&json!(2)), "{name}: {rows:?}");
        }
    }
    assert!(run.stdout.contains("DIFFERENT: synthetic, mqa, graph: sequence rows "), "{run:?}");
    assert!(scratch.read("run/compare.svg").contains("DIFFERENT"));
    assert_eq!(json["equal"], false);
}

#[test]
fn synthetic_drafts_are_the_reference_runs_own_tokens() {
    let scratch = Scratch::new("compare-synthetic");
    let run =
        compare(&scratch, &["--draft", "synthetic:1", "--num-iters", "1", "--scorer", "batch-expansion"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let json = scratch.json("out.json");
    let keys: Vec<_> = json["runs"].as_array().unwrap().iter().skip(2).step_by(2).map(key).collect();
    assert_eq!(
        keys,
        ["ngram batch-expansion eager", "synthetic batch-expansion eager", "synthetic mqa eager"]
    );
    for run in json["runs"].as_array().unwrap().iter().filter(|run| run["proposer"] == "synthetic") {
        assert_eq!(run["draft_acceptance_rate"], json!(1.0), "{run}");
        assert_eq!(run["system_efficiency"], json!(1.0), "{run}");
    }
}

#[test]
fn parity_holds_with_chunks_prefix_hits_and_preemption() {
    let scratch = Scratch::new("compare-mixed");
    let more = [
        "--num-blocks",
        "10",
        "--max-num-batched-tokens",
        "24",
        "--enable-prefix-caching",
        "--num-iters",
        "1",
    ];
    let run = compare(&scratch, &more);
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.stdout.contains("the batch needs 12 KV blocks"), "{run:?}");
    let json = scratch.json("out.json");
    for run in json["runs"].as_array().unwrap() {
        assert!(run["num_preemptions"].as_u64() > Some(0), "{run}");
    }
}

#[test]
fn what_cannot_be_compared_is_refused_and_leaves_nothing() {
    let scratch = Scratch::new("compare-refused");
    let engine = ["--draft", "ngram", "--num-speculative-tokens", "0"];
    let refuse = |more: &[&str], words: &[&str]| {
        refused(&compare(&scratch, &[&engine[..], more].concat()), words);
        assert!(scratch.names().is_empty(), "{:?}", scratch.names());
    };
    refuse(&["--max-model-len", "63"], &["40 + 24", "63"]);
    refuse(&["--num-blocks", "3"], &["--num-blocks", "64 tokens"]);
    refuse(&["--batch-size", "4000000000"], &["--batch-size", "memory"]);
    refuse(&["--scorer", "tree"], &["tree", "--scorer"]);
    refuse(&["--inject-fault", "lightning"], &["lightning"]);
    refuse(&["--shadow-rate", "1.5"], &["--shadow-rate"]);
    refuse(&["--num-iters", "0"], &["--num-iters"]);
    refuse(&["--dump-metadata", &scratch.path("nowhere/x.json")], &["nowhere"]);
    let held = scratch.write("run/summary.json", b"{}");
    refused(&compare(&scratch, &engine), &["holds a summary.json", "--out"]);
    assert_eq!(std::fs::read(held).unwrap(), b"{}");
}

#[test]
fn without_drafts_every_run_is_plain() {
    let scratch = Scratch::new("compare-plain");
    let run = compare(&scratch, &["--draft", "ngram", "--num-speculative-tokens", "0", "--enforce-eager"]);
    assert_eq!(run.code, Some(0), "{run:?}");
    let json = scratch.json("out.json");
    for run in json["runs"].as_array().unwrap() {
        assert_eq!(run["num_draft_tokens"], 0);
        assert_eq!(run["draft_acceptance_rate"], Value::Null);
        assert_eq!(run["graph_replays"].as_u64() > Some(0), run["mode"] == "graph");
    }
    for (mode, way) in [("eager", "ngram, mqa"), ("graph", "ngram, batch-expansion")] {
        let line = format!("{way}, {mode}: no drafts: none were asked for");
        assert!(run.stdout.lines().any(|own| own == line), "{line:?} is not in {run:?}");
    }
    assert!(!run.stdout.contains("nan"), "{run:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_prints_what_was_measured() {
    let scratch = Scratch::new("compare-ctrl-c");
    let engine = ["--draft", "ngram", "--num-speculative-tokens", "0", "--num-iters"];
    let mut wait = Duration::from_millis(500);
    let text = loop {
        let mut child = start(&scratch, &[&engine[..], &["1000000"]].concat());
        // The header comes, so Ctrl-C is listened for.
        child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
        std::thread::sleep(wait);
        let text = interrupt(child);
        // On a busy machine the first timed iteration may take longer.
        if !text.contains("stopped before every run was timed once") || wait > Duration::from_secs(60) {
            break text;
        }
        wait *= 2;
    };
    assert!(text.contains("partial: stopped after ") && text.contains("no speculation"), "{text}");
    let json = scratch.json("out.json");
    assert_eq!(json["partial"], true);
    assert!(json["iterations"].as_u64() >= Some(1));
    assert_eq!(scratch.names(), ["out.json", "run"], "nothing half-written");
    let entries = std::fs::read_dir(scratch.path("run")).unwrap().count();
    assert_eq!(entries, 3);
}

#[cfg(unix)]
#[test]
fn ctrl_c_before_anything_was_timed_leaves_no_files() {
    let scratch = Scratch::new("compare-ctrl-c-early");
    let engine = ["--draft", "ngram", "--num-speculative-tokens", "0", "--num-blocks", "4096"];
    let mut child = start(&scratch, &[&engine[..], &["--output-len", "20000"]].concat());
    // The header comes, so the run is under way.
    child.stdout.as_mut().unwrap().read_exact(&mut [0; 4]).unwrap();
    let text = interrupt(child);
    assert!(text.contains("stopped before every run was timed once"), "{text}");
    assert!(scratch.names().is_empty(), "{:?}", scratch.names());
}
