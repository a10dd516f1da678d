//! The simulated engine beside the real one: is what virtual time says what happens?
//!
//! `cargo bench --bench fidelity [-- --quick] [--seconds S] [--calibration S] [--rounds N] [--only NAME] [--keep DIR]`
//!
//! Replays each workload through the real engine, then all of them a second time, calibrates each engine
//! (`pagedraft bench calibrate`) piece by piece between them, and simulates each with the calibrated costs: three `summary.json` a configuration, written by the program a
//! user runs. A measure passes when the simulation is within the goal of the mean of both real runs, or within 1.5 times
//! their difference, where the machine is noisier than the goal.
//!
//! With more than two rounds the mean of the further real runs is judged in the same way: what a forecast without any error of
//! its own passes on this machine, about.
//!
//! Which drafts are accepted is a property of the texts, not of the engine's time: for a draft model the simulation is given
//! the real run's acceptance by position. Synthetic drafts have the rate they are asked for.
#![allow(clippy::expect_used, clippy::panic, reason = "a test or a bench that fails says where")]

#[path = "support/flag.rs"]
mod flag;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flag::flag;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_pagedraft");

/// An engine that is calibrated once.
struct Engine {
    name: &'static str,
    flags: &'static [&'static str],
}

const TARGET: Engine = Engine { name: "target", flags: &["--model", "builtin:target"] };
const DRAFTED: Engine = Engine {
    name: "drafted",
    flags: &["--model", "builtin:target", "--draft", "builtin:draft", "--num-speculative-tokens", "4"],
};
const SMALL: Engine = Engine { name: "small", flags: &["--model", "builtin:draft"] };

/// A workload on an engine.
struct Configuration {
    name: &'static str,
    engine: &'static Engine,
    /// Of the engine, beside those it is calibrated with.
    more: &'static [&'static str],
    input: u32,
    output: u32,
    prefix_share: &'static str,
    load: Load,
    quick: bool,
}

enum Load {
    /// Requests a second, and the burstiness of their arrivals.
    Open(f64, &'static str),
    /// So many in flight, so many requests a second of the bench's time.
    Closed(&'static str, f64),
}

use Load::{Closed, Open};

const CONFIGURATIONS: [Configuration; 12] = [
    Configuration {
        name: "plain",
        engine: &TARGET,
        more: &[],
        input: 512,
        output: 128,
        prefix_share: "0",
        load: Open(8.0, "1"),
        quick: true,
    },
    Configuration {
        name: "no prefix cache",
        engine: &TARGET,
        more: &["--no-enable-prefix-caching"],
        input: 512,
        output: 128,
        prefix_share: "0.5",
        load: Open(8.0, "1"),
        quick: false,
    },
    Configuration {
        name: "prefix cache",
        engine: &TARGET,
        more: &[],
        input: 1024,
        output: 96,
        prefix_share: "0.75",
        load: Open(8.0, "1"),
        quick: true,
    },
    Configuration {
        name: "chunks of 256",
        engine: &TARGET,
        more: &["--prefill-chunk", "256"],
        input: 1536,
        output: 96,
        prefix_share: "0",
        load: Open(4.0, "1"),
        quick: true,
    },
    Configuration {
        name: "no chunks",
        engine: &TARGET,
        more: &["--no-enable-chunked-prefill"],
        input: 768,
        output: 128,
        prefix_share: "0",
        load: Open(6.0, "1"),
        quick: false,
    },
    Configuration {
        name: "bursts",
        engine: &TARGET,
        more: &[],
        input: 256,
        output: 192,
        prefix_share: "0",
        load: Open(8.0, "0.4"),
        quick: false,
    },
    Configuration {
        name: "closed loop of 8",
        engine: &TARGET,
        more: &[],
        input: 384,
        output: 128,
        prefix_share: "0",
        load: Closed("8", 12.0),
        quick: true,
    },
    Configuration {
        name: "draft model, mqa",
        engine: &DRAFTED,
        more: &[],
        input: 384,
        output: 160,
        prefix_share: "0",
        load: Open(6.0, "1"),
        quick: true,
    },
    Configuration {
        name: "draft model, expanded",
        engine: &DRAFTED,
        more: &["--scorer", "batch-expansion"],
        input: 256,
        output: 160,
        prefix_share: "0",
        load: Open(6.0, "1"),
        quick: false,
    },
    Configuration {
        name: "synthetic drafts",
        engine: &TARGET,
        more: &["--draft", "synthetic:0.7", "--num-speculative-tokens", "4"],
        input: 384,
        output: 160,
        prefix_share: "0",
        load: Open(8.0, "1"),
        quick: true,
    },
    Configuration {
        name: "small model",
        engine: &SMALL,
        more: &[],
        input: 512,
        output: 192,
        prefix_share: "0",
        load: Open(20.0, "1"),
        quick: true,
    },
    Configuration {
        name: "small model, closed",
        engine: &SMALL,
        more: &["--prefill-chunk", "512"],
        input: 1024,
        output: 128,
        prefix_share: "0.5",
        load: Closed("16", 30.0),
        quick: false,
    },
];

/// A measure: its name, where it lies in a summary, and the goal as a share.
const MEASURES: [(&str, &str, f64); 6] = [
    ("mean TTFT", "/mean_ttft_ms", 0.05),
    ("mean TPOT", "/mean_tpot_ms", 0.03),
    ("p99 TTFT", "/p99_ttft_ms", 0.08),
    ("p99 TPOT", "/p99_tpot_ms", 0.08),
    ("p99 E2EL", "/p99_e2el_ms", 0.08),
    ("peak KV", "/kv/peak_used", 0.01),
];

/// Flags that real and simulated engines are both given: a simulated one knows no model.
const BOTH: [&str; 8] = [
    "--num-blocks",
    "4096",
    "--max-model-len",
    "8192",
    "--max-num-seqs",
    "128",
    "--max-num-batched-tokens",
    "2048",
];

impl Configuration {
    fn replay(&self, executor: &str, seconds: f64, out: &Path) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args([
            "replay",
            "--workload",
            "random",
            "--random-range-ratio",
            "0.5",
            "--no-trace",
            "--executor",
            executor,
        ]);
        let requests = |rate: f64| ((rate * seconds) as u32).max(8).to_string();
        match self.load {
            Open(rate, burstiness) => command
                .args(["--num-requests", &requests(rate), "--burstiness", burstiness])
                .args(["--request-rate", &rate.to_string()]),
            Closed(most, rate) => {
                command.args(["--num-requests", &requests(rate), "--max-concurrency", most])
            }
        };
        command.args(["--input-len", &self.input.to_string(), "--output-len", &self.output.to_string()]);
        command.args(["--prefix-share", self.prefix_share, "--out"]).arg(out);
        command.args(self.engine.flags).args(BOTH).args(self.more);
        command
    }
}

fn run(mut command: Command) {
    let line = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().expect("the program starts");
    assert!(output.status.success(), "{line}\n{}", String::from_utf8_lossy(&output.stderr));
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The cost model with the acceptance that a real run had: at each place, of the drafts whose predecessors were accepted.
fn with_acceptance(cost: &Path, real: &Value, to: &Path) {
    let mut cost = read(cost);
    let counts = |key: &str| -> Vec<f64> {
        real[key].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
    };
    let (drafted, accepted) = (counts("drafted_by_position"), counts("accepted_by_position"));
    if let Some(&rows) = drafted.first() {
        // Rows near their request's end have fewer drafts; that changes the later places by less than their noise.
        let reached = std::iter::once(rows).chain(accepted.iter().copied());
        let shares: Vec<f64> =
            accepted.iter().zip(reached).map(|(hits, tried)| hits / tried.max(1.0)).collect();
        cost["acceptance"]["draft"] = json!({ "by_position": shares, "given": 1.0 });
    }
    std::fs::write(to, cost.to_string()).expect("a cost model is written");
}

fn main() {
    let (seconds, calibration) = (flag("--seconds", 25.0f64), flag("--calibration", 60.0f64));
    let (only, keep) = (flag("--only", String::new()), flag("--keep", String::new()));
    let rounds = flag("--rounds", 2usize).max(2);
    let quick = std::env::args().any(|argument| argument == "--quick");
    let dir = match keep.as_str() {
        "" => std::env::temp_dir().join(format!("pagedraft-fidelity-{}", std::process::id())),
        dir => PathBuf::from(dir),
    };
    std::fs::create_dir_all(&dir).expect("a directory for the runs");
    let chosen: Vec<&Configuration> =
        CONFIGURATIONS.iter().filter(|c| (!quick || c.quick) && c.name.contains(&only)).collect();
    // A machine is faster or slower for minutes: a piece of its engine's calibration goes before every replay,
    // of `--calibration` seconds in all, and of 3 at least.
    let mut pieces = BTreeMap::new();
    for configuration in &chosen {
        *pieces.entry(configuration.engine.name).or_insert(0.0) += rounds as f64;
    }
    let mut measured: Vec<&str> = Vec::new();
    for round in 0..rounds {
        for (i, configuration) in chosen.iter().enumerate() {
            let engine = configuration.engine;
            let (cost, steps) =
                (dir.join(format!("{}.json", engine.name)), format!("{}.steps.jsonl", engine.name));
            let steps = dir.join(steps);
            let mut command = Command::new(PROGRAM);
            let piece = (calibration / pieces[engine.name]).max(3.0);
            command
                .args(["bench", "calibrate", "--seconds", &piece.to_string()])
                .args(engine.flags)
                .args(BOTH);
            command.args(["--seed", &measured.len().to_string()]).arg("--output-json").arg(&cost);
            command.arg("--steps-out").arg(&steps);
            if measured.contains(&engine.name) {
                command.arg("--steps-in").arg(&steps);
            }
            measured.push(engine.name);
            run(command);
            run(configuration.replay("real", seconds, &dir.join(format!("{i}-real-{round}"))));
        }
    }
    for name in pieces.keys() {
        let fit = &read(&dir.join(format!("{name}.json")))["calibration"];
        println!("{name}: {} steps, {}", fit["steps"], fit["fit"]);
    }
    println!(
        "{:<22} {:<10} {:>10} {:>10} {:>10} {:>8} {:>8} {:>8}",
        "", "", "real 1", "real 2", "simulated", "error", "goal", ""
    );
    let (mut passed, mut all, mut further_passed) = (0, 0, 0);
    for (i, configuration) in chosen.iter().enumerate() {
        let real: Vec<Value> =
            (0..rounds).map(|round| read(&dir.join(format!("{i}-real-{round}/summary.json")))).collect();
        let cost = dir.join(format!("{i}-cost.json"));
        with_acceptance(&dir.join(format!("{}.json", configuration.engine.name)), &real[0], &cost);
        let out = dir.join(format!("{i}-sim"));
        let mut command = configuration.replay("sim", seconds, &out);
        command.arg("--cost-model").arg(&cost);
        run(command);
        let simulated = read(&out.join("summary.json"));
        let mut name = configuration.name;
        for (measure, at, goal) in MEASURES {
            let figure = |summary: &Value| {
                summary.pointer(at).and_then(Value::as_f64).expect("a summary has its measures")
            };
            let (a, b, told) = (figure(&real[0]), figure(&real[1]), figure(&simulated));
            let mean = (a + b) / 2.0;
            let error = (told - mean) / mean;
            let allowed = goal.max(1.5 * (a - b).abs() / mean);
            let good = error.abs() <= allowed;
            let further = &real[2..];
            let forecast = further.iter().map(figure).sum::<f64>() / further.len().max(1) as f64;
            further_passed += u32::from(((forecast - mean) / mean).abs() <= allowed);
            (passed, all) = (passed + u32::from(good), all + 1);
            println!(
                "{name:<22} {measure:<10} {a:>10.3} {b:>10.3} {told:>10.3} {:>6.1} % {:>6.1} % {:>8}",
                error * 100.0,
                allowed * 100.0,
                if good { "pass" } else { "FAIL" }
            );
            name = "";
        }
    }
    println!("{passed} of {all} measures pass");
    if rounds > 2 {
        println!("the mean of {} further real runs as a forecast: {further_passed} of {all}", rounds - 2);
    }
    if keep.is_empty() {
        // What is left in a temporary directory is nobody's loss.
        let _ = std::fs::remove_dir_all(&dir);
    }
}
