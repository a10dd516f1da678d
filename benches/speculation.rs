//! What speculation is worth: the figures the engine is held to.
//!
//! `cargo bench --bench speculation [-- --section allowed|auto|share] [--rounds N] [--threads N] ..`
//!
//! - `allowed`: batch 1 on the 1.1B shape in bf16, synthetic drafts right at `--rate`, each made to take `--cost` of a decode
//!   step: the speed-up of automatic draft lengths beside what acceptance and the measured costs allow.
//! - `auto`: the embedded target at batch 1 to 64 and acceptance 0.1 to 0.9, synthetic drafts at the embedded draft's measured
//!   cost: automatic draft lengths beside none and every fixed length.
//! - `share`: the embedded pair: what of a replayed step is spent outside the kernels (the device's operations, the draft
//!   model's too), and graph beside eager.
//!
//! Every round runs each way once, in turns that rotate; ratios are taken within a round, medians are told.
#![allow(clippy::expect_used, reason = "a bench that fails says where")]

#[path = "support/flag.rs"]
mod flag;

use std::sync::Arc;
use std::time::Duration;

use flag::flag;
use pagedraft::model::Dtype;
use pagedraft::session::{
    DraftLength, DraftRef, EngineOptions, LoadFormat, ModelRef, Request, Session, SetupId, SpeculationOptions,
};
use pagedraft::spec_decode::metrics::SpeculationMetrics;

const SHAPE: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false}"#;

/// What a batch came to, prefill steps left out.
#[derive(Clone, Default)]
struct Batch {
    /// Seconds of all steps behind the prefill.
    seconds: f64,
    tokens: usize,
    steps: Vec<Duration>,
    outside_us: f64,
    metrics: SpeculationMetrics,
    outputs: Vec<Vec<u32>>,
}

impl Batch {
    fn us_a_token(&self) -> f64 {
        self.seconds * 1e6 / self.tokens as f64
    }
}

fn requests(batch: usize, input: usize, output: u32, vocab: u32, seed: u64) -> Vec<Request> {
    (0..batch as u64)
        .map(|i| {
            let token = |p: u64| {
                let z = (seed * 1_000_003 + i * 4_099 + p + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                ((z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 33) as u32 % vocab
            };
            let mut request = Request::new(i.to_string(), (0..input as u64).map(token).collect(), output);
            request.ignore_eos = true;
            request.sampling.seed = seed * 977 + i;
            request
        })
        .collect()
}

fn run(session: &mut Session, setup: SetupId, requests: &[Request]) -> Batch {
    session.switch(setup).expect("nothing runs");
    session.take_metrics();
    let ids: Vec<_> = requests.iter().map(|r| session.submit(r.clone()).expect("a request")[0]).collect();
    let mut batch = Batch::default();
    let in_kernels = |session: &mut Session| {
        let (target, draft) = session.run_counts();
        target.in_kernels + draft.map_or(Duration::ZERO, |draft| draft.in_kernels)
    };
    while session.has_unfinished() {
        let before = in_kernels(session);
        let step = session.step().expect("a step");
        if step.prefill_tokens > 0 {
            continue;
        }
        batch.seconds += step.elapsed.as_secs_f64();
        let kernels = in_kernels(session) - before;
        batch.outside_us += (step.elapsed.as_secs_f64() - kernels.as_secs_f64()) * 1e6;
        batch.tokens += step.emitted.iter().map(|e| e.tokens.len()).sum::<usize>();
        batch.steps.push(step.elapsed);
    }
    batch.metrics = session.take_metrics();
    batch.outputs = ids.iter().map(|&id| session.take_output(id).expect("an output").token_ids).collect();
    batch
}

/// The same requests with the tokens of their plain run.
fn record(requests: &[Request], plain: &Batch) -> Vec<Request> {
    let with = |(r, o): (&Request, &Vec<u32>)| Request { recorded: vec![Arc::from(&o[..])], ..r.clone() };
    requests.iter().zip(&plain.outputs).map(with).collect()
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn synthetic(rate: f64, cost: f64, length: DraftLength) -> SpeculationOptions {
    SpeculationOptions {
        draft: Some(DraftRef::Synthetic { rate }),
        draft_cost: cost,
        length,
        ..SpeculationOptions::default()
    }
}

/// Runs all ways in each round, in turns that rotate: `[way][round]`.
fn rounds(
    session: &mut Session,
    setups: &[SetupId],
    rounds: usize,
    warm_up: usize,
    of: impl Fn(u64) -> Vec<Request>,
) -> Vec<Vec<Batch>> {
    let mut batches = vec![Vec::new(); setups.len()];
    for round in 0..warm_up + rounds {
        let requests = of(round as u64);
        // The first way is the plain one; its tokens are what the others are told.
        let plain = run(session, setups[0], &requests);
        let requests = record(&requests, &plain);
        for turn in 0..setups.len() {
            let way = (turn + round) % setups.len();
            let batch = run(session, setups[way], &requests);
            assert_eq!(batch.outputs, plain.outputs, "way {way}: other tokens than the plain run");
            if round >= warm_up {
                batches[way].push(batch);
            }
        }
    }
    batches
}

fn allowed(threads: usize) {
    let (rate, cost) = (flag("--rate", 0.7f64), flag("--cost", 0.1f64));
    let count = flag("--rounds", 5usize);
    let dir = std::env::temp_dir().join(format!("pagedraft-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    std::fs::write(dir.join("config.json"), SHAPE).expect("a file");
    let options = EngineOptions {
        load_format: LoadFormat::Dummy,
        dtype: Some(Dtype::Bf16),
        threads,
        max_num_seqs: 4,
        max_num_batched_tokens: 256,
        num_blocks: Some(64),
        speculation: synthetic(rate, cost, DraftLength::Auto),
        ..EngineOptions::new(ModelRef::Directory(dir.clone()))
    };
    let mut session = Session::open(&options).expect("a session");
    std::fs::remove_dir_all(&dir).expect("the directory");
    let plain = session.prepare(&SpeculationOptions::default(), false).expect("a setup");
    let auto = session.prepare(&options.speculation, false).expect("a setup");
    let lengths = [1u16, 2, 3, 4, 5, 6, 8];
    let mut setups = vec![plain, auto];
    for k in lengths {
        setups.push(session.prepare(&synthetic(rate, cost, DraftLength::Fixed(k)), false).expect("a setup"));
    }
    let of = |round| requests(1, 64, 96, 32_000, round + 1);
    let all = rounds(&mut session, &setups, count, 1, of);
    let decode_us = median(all[0].iter().flat_map(|b| b.steps.iter().map(|s| s.as_secs_f64() * 1e6)));
    println!(
        "1.1B shape, bf16, batch 1, {threads} threads, {count} rounds of 96 tokens; decode step {:.1} ms",
        decode_us / 1e3
    );
    println!(
        "{:>5} {:>9} {:>9} {:>9} {:>8} {:>10} {:>9}",
        "k", "accepted", "v(k+1)", "c", "length", "allowed", "speed-up"
    );
    let speed =
        |way: usize| median(all[way].iter().zip(&all[0]).map(|(b, p)| p.us_a_token() / b.us_a_token()));
    let mut best: f64 = 1.0;
    for (i, k) in lengths.into_iter().enumerate() {
        let runs = &all[i + 2];
        let sum = |f: &dyn Fn(&SpeculationMetrics) -> f64| runs.iter().map(|b| f(&b.metrics)).sum::<f64>();
        // A draft behind an accepted one stands with the rate; those behind a miss are not judged by it.
        let reached = sum(&|m| m.reached_by_position.iter().sum::<u64>() as f64);
        let a = sum(&|m| m.num_accepted_tokens as f64) / reached;
        let scoring = sum(&|m| m.scoring_us + m.verification_us) / sum(&|m| m.num_steps as f64);
        let c = sum(&|m| m.propose_us) / sum(&|m| m.proposal_rounds as f64) / decode_us;
        let v = scoring / decode_us;
        let length = (1.0 - rate.powi(i32::from(k) + 1)) / (1.0 - rate);
        let limit = length / (v + c * f64::from(k));
        best = best.max(limit);
        println!("{k:>5} {a:>9.3} {v:>9.3} {c:>9.3} {length:>8.2} {limit:>10.3} {:>9.3}", speed(i + 2));
    }
    let drafts = all[1].iter().map(|b| b.metrics.num_draft_tokens as f64).sum::<f64>()
        / all[1].iter().map(|b| b.metrics.num_verify_rows as f64).sum::<f64>();
    println!(
        " auto: {drafts:.2} drafts a verify row, speed-up {:.3}; the most that is allowed {best:.3}; {:.1} % of it (goal 90)",
        speed(1),
        speed(1) / best * 100.0
    );
}

fn auto(threads: usize) {
    let count = flag("--rounds", 9usize);
    let target = ModelRef::Builtin("target".into());
    let draft = SpeculationOptions {
        draft: Some(DraftRef::Model(ModelRef::Builtin("draft".into()))),
        length: DraftLength::Fixed(4),
        ..SpeculationOptions::default()
    };
    let options = EngineOptions {
        threads,
        enable_prefix_caching: false,
        speculation: draft.clone(),
        ..EngineOptions::new(target)
    };
    let mut session = Session::open(&options).expect("a session");
    let plain = session.prepare(&SpeculationOptions::default(), false).expect("a setup");
    let with_draft = session.prepare(&draft, false).expect("a setup");
    let lengths = [1u16, 2, 3, 4, 6, 8];
    println!(
        "embedded target, {threads} threads, {count} rounds of 64 + 128 tokens; time a token, us, medians"
    );
    println!(
        "{:>5} {:>6} {:>6} {:>8} {} {:>8} {:>7}  {:>9} {:>9}",
        "batch",
        "rate",
        "c",
        "none",
        lengths.map(|k| format!("{:>8}", format!("k={k}"))).join(" "),
        "auto",
        "drafts",
        "to best",
        "to none"
    );
    let (mut worst_best, mut worst_none) = (f64::INFINITY, f64::INFINITY);
    let only = flag("--batch", 0usize);
    for batch in [1usize, 2, 4, 8, 16, 32, 64].into_iter().filter(|&b| only == 0 || b == only) {
        let of = |round| requests(batch, 64, 128, 2048, round + 1);
        // What a round of the embedded draft costs at this batch.
        let pair = rounds(&mut session, &[plain, with_draft], 3, 1, of);
        let decode = median(pair[0].iter().flat_map(|b| b.steps.iter().map(|s| s.as_secs_f64() * 1e6)));
        let round = median(pair[1].iter().map(|b| b.metrics.propose_us / b.metrics.proposal_rounds as f64));
        let cost = round / decode;
        for rate in [0.1, 0.3, 0.5, 0.7, 0.9] {
            let mut setups = vec![plain];
            for k in lengths {
                let fixed = synthetic(rate, cost, DraftLength::Fixed(k));
                setups.push(session.prepare(&fixed, false).expect("a setup"));
            }
            setups.push(session.prepare(&synthetic(rate, cost, DraftLength::Auto), false).expect("a setup"));
            let all = rounds(&mut session, &setups, count, 3, of);
            let times: Vec<f64> = all.iter().map(|way| median(way.iter().map(Batch::us_a_token))).collect();
            let last = all.len() - 1;
            let best = (0..last).min_by(|&a, &b| times[a].total_cmp(&times[b])).expect("some way");
            let to = |way: usize| {
                median(all[way].iter().zip(&all[last]).map(|(w, a)| w.us_a_token() / a.us_a_token()))
            };
            let (to_best, to_none) = (to(best), to(0));
            worst_best = worst_best.min(to_best);
            worst_none = worst_none.min(to_none);
            let rows = all[last].iter().map(|b| b.steps.len()).sum::<usize>() * batch;
            let drafts =
                all[last].iter().map(|b| b.metrics.num_draft_tokens).sum::<u64>() as f64 / rows as f64;
            let columns: Vec<String> = times[1..last].iter().map(|t| format!("{t:>8.1}")).collect();
            println!(
                "{batch:>5} {rate:>6.1} {cost:>6.3} {:>8.1} {} {:>8.1} {drafts:>7.2}  {to_best:>9.3} {to_none:>9.3}",
                times[0],
                columns.join(" "),
                times[last]
            );
        }
    }
    println!("least: {worst_best:.3} of the best fixed length or none, {worst_none:.3} of none (goal 0.98)");
}

fn share(threads: usize) {
    let count = flag("--rounds", 15usize);
    let draft = SpeculationOptions {
        draft: Some(DraftRef::Model(ModelRef::Builtin("draft".into()))),
        length: DraftLength::Fixed(3),
        ..SpeculationOptions::default()
    };
    let target = ModelRef::Builtin("target".into());
    let options = EngineOptions {
        threads,
        enable_prefix_caching: false,
        speculation: draft.clone(),
        ..EngineOptions::new(target)
    };
    let mut session = Session::open(&options).expect("a session");
    let setups: Vec<SetupId> = [
        (SpeculationOptions::default(), false),
        (SpeculationOptions::default(), true),
        (draft.clone(), false),
        (draft, true),
    ]
    .iter()
    .map(|(speculation, eager)| session.prepare(speculation, *eager).expect("a setup"))
    .collect();
    println!("embedded pair, {threads} threads, {count} rounds of 64 + 128 tokens; medians");
    println!(
        "{:>5} {:<8} {:>11} {:>11} {:>13} {:>13}",
        "batch", "drafts", "graph us", "eager us", "eager / graph", "outside, graph"
    );
    for batch in [1usize, 8, 32] {
        let all = rounds(&mut session, &setups, count, 2, |round| requests(batch, 64, 128, 2048, round + 1));
        for (name, graph, eager) in [("none", 0, 1), ("k = 3", 2, 3)] {
            let step = |way: usize| median(all[way].iter().map(|b| b.seconds * 1e6 / b.steps.len() as f64));
            let ratio = median(all[eager].iter().zip(&all[graph]).map(|(e, g)| e.seconds / g.seconds));
            let outside = median(all[graph].iter().map(|b| b.outside_us / b.seconds / 1e6));
            println!(
                "{batch:>5} {name:<8} {:>11.1} {:>11.1} {ratio:>13.3} {:>12.1} %",
                step(graph),
                step(eager),
                outside * 100.0
            );
        }
    }
}

fn main() {
    let threads = flag("--threads", 2usize);
    let section = flag("--section", String::from("all"));
    if section == "all" || section == "share" {
        share(threads);
    }
    if section == "all" || section == "allowed" {
        allowed(threads);
    }
    if section == "all" || section == "auto" {
        auto(threads);
    }
}
