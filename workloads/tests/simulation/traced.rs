use std::path::PathBuf;

use pagedraft_workloads::run::LineFormat;
use pagedraft_workloads::sim::{Router, SimOptions};
use pagedraft_workloads::trace::{STEPS_FILE, TraceWriter, check_dir};
use serde_json::{Value, json};

use crate::world::{Seen, options, random_stream, speculating, try_run};

/// A directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("pagedraft-sim-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Lines of a traced simulation that the checker has gone through; and its hash.
fn traced(name: &str, options: &SimOptions) -> (Vec<Value>, String) {
    let scratch = Scratch::new(name);
    let config = json!({
        "block_size": options.scheduler.block_size,
        "num_blocks": options.scheduler.num_blocks,
        "num_speculative_tokens": options.speculation.as_ref().map_or(0, |s| s.most),
        "enable_prefix_caching": options.scheduler.enable_prefix_caching,
        "acceptance": "coupled",
        "trace_tables": "full",
        "replicas": options.replicas,
    });
    let seen = Seen {
        trace: Some(TraceWriter::create(&scratch.0, &config, LineFormat::Jsonl).unwrap()),
        ..Seen::default()
    };
    let mut outcome = try_run(random_stream(5, 60, 2_000_000, 120, 40), options, seen).unwrap();
    outcome.seen.trace.take().unwrap().finish(&json!({})).unwrap();
    let report = check_dir(&scratch.0).unwrap();
    assert!(report.violation.is_none(), "{name}: {:?}", report.violation);
    let text = std::fs::read_to_string(scratch.0.join(STEPS_FILE)).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), outcome.seen.steps.len());
    assert_eq!(report.engines, u64::from(options.replicas));
    (lines, outcome.report.event_log_sha256)
}

#[test]
fn the_trace_of_a_simulation_passes_the_check() {
    let small = || {
        let mut options = options();
        options.scheduler.num_blocks = 16;
        options.scheduler.max_num_batched_tokens = 64;
        options
    };
    let mut expanded = speculating(small(), false, 3, 0.6);
    expanded.speculation.as_mut().unwrap().batch_expansion = true;
    let mut eager = small();
    eager.enforce_eager = true;
    eager.scheduler.enable_prefix_caching = false;
    let cases = [
        ("plain", small()),
        ("eager", eager),
        ("mqa", speculating(small(), true, 3, 0.6)),
        ("expanded", expanded),
    ];
    for (name, options) in cases {
        let (lines, hash) = traced(name, &options);
        let has = |what: &dyn Fn(&Value) -> bool| lines.iter().any(what);
        assert!(has(&|line| line["preempted"].as_array().is_some_and(|p| !p.is_empty())), "{name}");
        assert_eq!(has(&|line| line["mode"] == "graph"), name != "eager", "{name}");
        let expands =
            |line: &Value| line["plan_rows"].as_array().map(Vec::len) > line["rows"].as_array().map(Vec::len);
        assert_eq!(has(&expands), name == "expanded", "{name}");
        let plain = try_run(random_stream(5, 60, 2_000_000, 120, 40), &options, Seen::default()).unwrap();
        assert_eq!(plain.report.event_log_sha256, hash, "{name}: tracing changes nothing");
    }
}

#[test]
fn a_trace_of_several_engines_says_whose_each_step_is_and_passes_the_check() {
    for router in [Router::RoundRobin, Router::PrefixAware] {
        let mut several = speculating(options(), true, 3, 0.6);
        (several.replicas, several.router) = (3, router);
        let (lines, _) = traced("replicas", &several);
        let of = |line: &Value| line["replica"].as_u64().unwrap();
        for replica in 0..3 {
            let steps: Vec<u64> = lines
                .iter()
                .filter(|line| of(line) == replica)
                .map(|line| line["step"].as_u64().unwrap())
                .collect();
            assert!(steps.len() > 5 && steps[0] == 0 && steps.is_sorted(), "{router:?} {replica}: {steps:?}");
        }
        assert!(lines.iter().all(|line| of(line) < 3 && line["groups"].is_null()));
    }
    let (lines, _) = traced("one", &options());
    assert!(lines.iter().all(|line| line.get("replica").is_none()), "one engine needs no number");
}

#[test]
fn the_times_of_a_line_are_the_cost_model_s() {
    let mut options = speculating(options(), false, 2, 0.5);
    options.cost.schedule.us_per_step = 11.0;
    options.cost.metadata.us_per_step = 12.0;
    options.cost.us_per_sampled_row = 1.5;
    options.cost.proposers.get_mut("some").unwrap().us_per_step = 14.0;
    let (lines, _) = traced("times", &options);
    for line in lines {
        let rows = line["rows"].as_array().unwrap();
        let times = &line["time_us"];
        assert_eq!((times["schedule"].as_f64(), times["metadata"].as_f64()), (Some(11.0), Some(12.0)));
        let asks = rows.iter().any(|row| row["drafts_max"].as_u64() > Some(0));
        assert_eq!(times["propose"].as_f64(), Some(if asks { 14.0 } else { 0.0 }));
        assert_eq!(times["execute"].as_f64(), Some(1000.0));
        assert!(times["sample"].as_f64() >= Some(0.0));
    }
}
