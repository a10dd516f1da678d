//! Steps of a mixed batch: a pruned and a dense prompt beside requests that decode, against the same with both prompts dense. A plain program:
//! `cargo bench --bench pruned_steps [-- --rounds N --threads N --tokens N --budget N]`.
//!
//! Two engines have a Llama of 109.5 million drawn weights (12 layers of 768), bf16, cut as the preset `keep07` says. Four requests decode. Then two prompts
//! of TOKENS tokens (2,048) arrive together; a step computes BUDGET tokens at most (512). In one engine the first of them is pruned, in
//! the other neither is. The engines take turns, step by step. Printed are the median time of each step from the arrival on, and of the longest
//! step and of all of them with the median over the rounds of their ratios. Steps of the same number do not do the same in both: rows of
//! the pruned prompt wait behind the first layer that drops tokens until all of them are there, and go on in later steps.
//!
//! Times are elapsed times of the steps.
#![allow(clippy::expect_used, reason = "a test or a bench that fails says where")]

#[path = "support/flag.rs"]
mod flag;

use std::path::Path;

use flag::flag;
use pagedraft::prune::{Preset, PruneChoice};
use pagedraft::session::{
    EngineOptions, LoadFormat, ModelRef, PruneOptions, Request, RequestPrune, Session, SessionStep,
};

const CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 768,
    "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 12,
    "max_position_embeddings": 32768, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
    "torch_dtype": "bfloat16"}"#;
const DECODING: u32 = 4;
/// Tokens of the prompts that decode, and the most that they generate.
const SHORT: (u32, u32) = (32, 400);
/// Tokens that each of the two prompts generates.
const OUTPUT: u32 = 4;

fn engine(model: &Path, threads: usize, tokens: u32, budget: u32) -> Session {
    let prune = PruneOptions { others: vec![PruneChoice::Preset(Preset::Keep07)], ..PruneOptions::default() };
    Session::open(&EngineOptions {
        load_format: LoadFormat::Dummy,
        enable_prefix_caching: false,
        num_blocks: Some((3 * tokens + DECODING * (SHORT.0 + SHORT.1)).div_ceil(16)),
        max_num_batched_tokens: budget,
        max_num_seqs: 8,
        threads,
        prune,
        ..EngineOptions::new(ModelRef::Directory(model.to_owned()))
    })
    .expect("an engine")
}

fn prompt(seed: u32, tokens: u32) -> Vec<u32> {
    (0..tokens).map(|at| (at * 7919 + seed * 104_729) % 31_000).collect()
}

fn submit(session: &mut Session, name: String, prompt: Vec<u32>, output: u32, prune: RequestPrune) {
    let request = Request { ignore_eos: true, prune, ..Request::new(name, prompt, output) };
    session.submit(request).expect("a request");
}

/// One of the two engines, and how it takes the first of the two prompts.
struct Side {
    session: Session,
    first: RequestPrune,
}

impl Side {
    /// Has the short requests decode.
    fn warm_up(&mut self) {
        for i in 0..DECODING {
            submit(&mut self.session, format!("short-{i}"), prompt(i, SHORT.0), SHORT.1, RequestPrune::Never);
        }
        while self.step().prefill_tokens > 0 {}
    }

    fn arrive(&mut self, round: usize, tokens: u32) {
        for (i, prune) in [self.first.clone(), RequestPrune::Never].into_iter().enumerate() {
            let prompt = prompt(100 + i as u32, tokens);
            submit(&mut self.session, format!("long-{round}-{i}"), prompt, OUTPUT, prune);
        }
    }

    fn step(&mut self) -> SessionStep {
        self.session.step().expect("a step")
    }

    /// Whether more than the short requests run or wait.
    fn busy(&self) -> bool {
        let stats = self.session.stats();
        stats.running + stats.waiting > DECODING as usize
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() {
    let (rounds, threads) = (flag("--rounds", 5usize), flag("--threads", 2usize));
    let (tokens, budget) = (flag("--tokens", 2048u32), flag("--budget", 512u32));
    let dir = std::env::temp_dir().join("pagedraft-bench-pruned-steps");
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    std::fs::write(dir.join("config.json"), CONFIG).expect("a file in it");
    let keep07 = RequestPrune::Choice(PruneChoice::Preset(Preset::Keep07));
    let mut sides = [RequestPrune::Never, keep07]
        .map(|first| Side { session: engine(&dir, threads, tokens, budget), first });
    // The milliseconds of each step, by side and round.
    let mut times: [Vec<Vec<f64>>; 2] = Default::default();
    for round in 0..rounds {
        sides.iter_mut().for_each(Side::warm_up);
        sides.iter_mut().for_each(|side| side.arrive(round, tokens));
        let mut run = [vec![], vec![]];
        while sides.iter().any(Side::busy) {
            for (side, times) in sides.iter_mut().zip(&mut run) {
                if side.busy() {
                    times.push(side.step().elapsed.as_secs_f64() * 1e3);
                }
            }
        }
        for (all, run) in times.iter_mut().zip(run) {
            all.push(run);
        }
        for side in &mut sides {
            while side.session.has_unfinished() {
                side.step();
            }
        }
    }
    println!(
        "two prompts of {tokens} tokens beside {DECODING} that decode, {budget} tokens a step, {threads} threads, {rounds} rounds"
    );
    println!("{:>8} {:>12} {:>12}", "step", "dense, ms", "mixed, ms");
    let steps = times.iter().flatten().map(Vec::len).max().unwrap_or(0);
    for at in 0..steps {
        let of = |side: usize| median(times[side].iter().filter_map(|run| run.get(at).copied()).collect());
        println!("{at:8} {:12.2} {:12.2}", of(0), of(1));
    }
    for (name, of) in [("longest", longest as fn(&[f64]) -> f64), ("in all", |run| run.iter().sum())] {
        let [dense, mixed] = [0, 1].map(|side| times[side].iter().map(|run| of(run)).collect::<Vec<_>>());
        let ratio = median(dense.iter().zip(&mixed).map(|(dense, mixed)| mixed / dense).collect());
        println!("{name:>8} {:12.2} {:12.2}   ratio {ratio:.3}", median(dense), median(mixed));
    }
}

fn longest(run: &[f64]) -> f64 {
    run.iter().copied().fold(0.0, f64::max)
}
