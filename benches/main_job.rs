//! The main job, with and without a trace: what being on record costs a step.
//!
//! `cargo bench --bench main_job [-- --rounds N --threads N]`
//!
//! Two engines run the same batch in turn, one of them writing a trace. The ratio is taken round by round, of the
//! median decode step and of the whole batch. Also printed: what of a decode step is spent outside the model.
#![allow(clippy::expect_used, reason = "a test or a bench that fails says where")]

#[path = "support/flag.rs"]
mod flag;

use std::path::PathBuf;
use std::time::Instant;

use flag::flag;
use pagedraft::session::{EngineOptions, ModelRef, Request, Session, TraceOptions};
use pagedraft::workloads::trace::TraceTables;

const TEXT: &str = include_str!("../assets/held_out.txt");
const BATCH: usize = 8;
const INPUT: usize = 256;
const OUTPUT: u32 = 128;
const ROUNDS_A_PAIR: usize = 4;

fn engine(threads: usize, trace: Option<PathBuf>) -> Session {
    Session::open(&EngineOptions {
        enable_prefix_caching: false,
        threads,
        trace: trace.map(|dir| TraceOptions { dir, tables: TraceTables::Full, format: Default::default() }),
        ..EngineOptions::new(ModelRef::Builtin("target".into()))
    })
    .expect("an engine")
}

/// One batch: its seconds, and the seconds of each of its decode steps.
fn batch(session: &mut Session, round: usize) -> (f64, Vec<f64>) {
    let tokens = session.tokenizer().expect("a tokenizer").encode(TEXT, false).expect("tokens");
    let start = Instant::now();
    for (i, prompt) in tokens.chunks_exact(INPUT).take(BATCH).enumerate() {
        let request = Request::new(format!("{round}-{i}"), prompt.to_vec(), OUTPUT);
        let request = Request { ignore_eos: true, ..request };
        session.submit(request).expect("a request");
    }
    let mut steps = Vec::new();
    while session.has_unfinished() {
        let report = session.step().expect("a step");
        if report.prefill_tokens == 0 {
            steps.push(report.elapsed.as_secs_f64());
        }
    }
    (start.elapsed().as_secs_f64(), steps)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn main() {
    let (rounds, threads) = (flag("--rounds", 40usize), flag("--threads", 2usize));
    let dir = std::env::temp_dir().join(format!("pagedraft-main-job-{}", std::process::id()));
    let (mut step_ratios, mut batch_ratios, mut steps, mut batches) = (vec![], vec![], vec![], vec![]);
    for pair in 0..rounds.div_ceil(ROUNDS_A_PAIR) {
        // Where an engine's memory lies makes some per cent of difference for its whole life: pairs are made anew, and
        // who is made first alternates, as does who runs first.
        let trace = || Some(dir.join(pair.to_string()));
        let (mut plain, mut traced) = if pair % 2 == 0 {
            let plain = engine(threads, None);
            (plain, engine(threads, trace()))
        } else {
            let traced = engine(threads, trace());
            (engine(threads, None), traced)
        };
        for round in 0..=ROUNDS_A_PAIR {
            let (a, b) = if round % 2 == 0 {
                let a = batch(&mut plain, round);
                (a, batch(&mut traced, round))
            } else {
                let b = batch(&mut traced, round);
                (batch(&mut plain, round), b)
            };
            // The first round of a pair warms up.
            if round > 0 {
                step_ratios.push(median(&b.1) / median(&a.1));
                batch_ratios.push(b.0 / a.0);
                steps.push(median(&a.1));
                batches.push(a.0);
            }
        }
        traced.close(&serde_json::json!({ "rounds": ROUNDS_A_PAIR })).expect("a trace");
    }
    let rounds = batches.len();
    let spread =
        |v: &[f64]| (v.iter().copied().fold(f64::INFINITY, f64::min), v.iter().copied().fold(0.0, f64::max));
    println!("main job, {BATCH} x {INPUT} -> {OUTPUT}, {threads} threads, {rounds} rounds");
    println!(
        "batch        {:8.4} s  median, {:.4} .. {:.4}",
        median(&batches),
        spread(&batches).0,
        spread(&batches).1
    );
    println!("decode step  {:8.4} ms median", median(&steps) * 1e3);
    let (low, high) = spread(&step_ratios);
    println!(
        "trace on / off, decode step: {:.3} median of pairs ({low:.3} .. {high:.3})",
        median(&step_ratios)
    );
    let (low, high) = spread(&batch_ratios);
    println!(
        "trace on / off, batch:       {:.3} median of pairs ({low:.3} .. {high:.3})",
        median(&batch_ratios)
    );
    // What is left of the trace is a temporary file.
    let _ = std::fs::remove_dir_all(dir);
}
