//! Requests a minute of virtual time: a BurstGPT-like stream through one simulated engine, without a step trace.
//!
//! ```text
//! cargo bench -p pagedraft-workloads --bench simulate -- [--requests N] [--no-prefix-caching]
//! ```
//!
//! The stream is made here, as it is asked for: gamma gaps of burstiness 0.5, prompts of 568 random tokens and outputs of
//! 275 on average (both exponential, as heavy as the published trace's to the eye), sent a little faster than 256
//! sequences can be served, so that as many run. What is timed is all of `simulate`, the making of the prompts included.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a bench")]

use std::time::Instant;

use pagedraft_scheduler::{CostCurve, SchedulerConfig};
use pagedraft_workloads::Error;
use pagedraft_workloads::dataset::DatasetError;
use pagedraft_workloads::measures::{Recorder, RecorderOptions};
use pagedraft_workloads::replay::{Incoming, PlannedRequest, RequestLine, StepReport};
use pagedraft_workloads::sim::{CostModel, Observer, Router, SimOptions, simulate};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Exp, Gamma};

/// Mean tokens of the stream's prompts and outputs.
const PROMPT: f64 = 568.0;
const OUTPUT: f64 = 275.0;
const SEATS: u32 = 256;

#[derive(Default)]
struct Counted {
    lines: u64,
    steps: u64,
    rows: u64,
    most_waiting: u32,
}

impl Observer for Counted {
    fn line(&mut self, _: &RequestLine) -> Result<(), Error> {
        self.lines += 1;
        Ok(())
    }

    fn step(&mut self, report: &StepReport) -> Result<(), Error> {
        self.steps += 1;
        self.rows += report.rows.len() as u64;
        self.most_waiting = self.most_waiting.max(report.waiting);
        Ok(())
    }
}

/// Tokens, 0 or more, of an exponential distribution, at least 1 and 4,000 at most.
fn length(mean: f64, rng: &mut ChaCha8Rng) -> u32 {
    (Exp::new(1.0 / mean).unwrap().sample(rng) as u32).clamp(1, 4000)
}

fn stream(requests: u64, rate: f64) -> impl Iterator<Item = Result<Incoming, DatasetError>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let gaps = Gamma::new(0.5, 1e9 / rate / 0.5).unwrap();
    let mut at = 0.0;
    (0..requests).map(move |index| {
        at += gaps.sample(&mut rng);
        let prompt = (0..length(PROMPT, &mut rng)).map(|_| rng.random_range(0..32_000)).collect();
        Ok(Incoming::Request(PlannedRequest {
            index,
            source_id: None,
            category: None,
            arrival_ns: Some(at as u64),
            prompt,
            text: None,
            max_tokens: length(OUTPUT, &mut rng),
            until_stop: false,
            expect: None,
        }))
    })
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let after = |flag: &str| args.iter().position(|arg| arg == flag).and_then(|at| args.get(at + 1));
    let requests: u64 = after("--requests").map_or(20_000, |n| n.parse().expect("--requests is a number"));
    let caching = !args.iter().any(|arg| arg == "--no-prefix-caching");

    let points = vec![(1, 20_000.0), (64, 24_000.0), (256, 32_000.0), (2048, 200_000.0)];
    let options = SimOptions {
        scheduler: SchedulerConfig {
            num_blocks: 32_768,
            max_num_seqs: SEATS,
            enable_prefix_caching: caching,
            ..SchedulerConfig::default()
        },
        cost: CostModel {
            name: "an 8B model on one GPU, roughly".to_owned(),
            target: CostCurve { points, ..CostCurve::default() },
            ..CostModel::default()
        },
        speculation: None,
        prune: None,
        enforce_eager: false,
        replicas: 1,
        router: Router::RoundRobin,
        // Who runs and some who wait: the seats are always full, the queue does not grow.
        max_concurrency: Some(SEATS + SEATS / 4),
        seed: 0,
    };
    let mut recorder =
        Recorder::new(RecorderOptions { items: requests, block_size: 16, ..Default::default() });
    let mut counted = Counted::default();
    let start = Instant::now();
    let report = simulate(&mut stream(requests, 1000.0), &options, &mut recorder, &mut counted).unwrap();
    let taken = start.elapsed().as_secs_f64();
    assert_eq!(counted.lines, requests, "every request ends");
    let Counted { steps, rows, most_waiting, .. } = counted;
    println!(
        "{requests} requests, {steps} steps, {rows} rows ({:.1} a step, at most {most_waiting} waiting), prefix caching {caching}",
        rows as f64 / steps as f64
    );
    println!(
        "{taken:.2} s: {:.0} requests a minute, {:.1} us a request, {:.1} ns a row; {:.0} s of virtual time",
        requests as f64 / taken * 60.0,
        taken * 1e6 / requests as f64,
        taken * 1e9 / rows as f64,
        report.end_ns as f64 * 1e-9
    );
    println!("event log {}", report.event_log_sha256);
}
