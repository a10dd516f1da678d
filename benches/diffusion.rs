//! Block diffusion: what caches, skipped layers and batches are worth on a LLaDA shape of about 100 million weights.
//!
//! `cargo bench --bench diffusion [-- --rounds N --threads N --part 1..5]`
//!
//! The model has 12 layers of width 768, 12 heads, feed-forward width 2,048, 32,000 tokens, bf16, weights drawn from a seed, and is
//! written to a temporary directory. Prompts have 64 tokens, blocks 32.
//!
//! 1. *Decoders*: 256 tokens, four a pass: baseline, prefix cache, dual cache. They take turns round by round.
//! 2. *Skip*: eight requests a step of 64 tokens, every second of which is given, one a pass; dual cache against half of a block's filled tokens skipping
//!    the layers behind the second (those around which the least was filled), and against 18 of its 32 tokens skipping the later half of the
//!    layers (those that moved least), with masks guarded and reused. Beside the time the share of the token-layers that is left:
//!    what the rows that are computed would allow. Weights drawn from a seed say nothing about the quality of what is skipped; at these shares
//!    of the layers and tokens `pagedraft bench infill` says it of `builtin:llada`.
//! 3. *Batches*: eight requests that arrive in different blocks, together and one after another, with blocks of 4, 8 and 32.
//! 4. *Graphs*: the dual cache from graphs and eagerly.
//! 5. *Traces of tensors*: one request of 64 tokens, four a pass, in the dual cache: traced without tensors, with their shapes, and with
//!    their statistics, all eagerly.
#![allow(clippy::expect_used, reason = "a test or a bench that fails says where")]

#[path = "support/flag.rs"]
mod flag;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use flag::flag;
use pagedraft::session::{
    Decoder, Diffusion, DiffusionOptions, EngineOptions, LoadFormat, ModelRef, Request, Session, SkipLayers,
    TraceOptions,
};
use pagedraft_spec_decode::tensors::{TensorLevel, TensorTracing};
use pagedraft_spec_decode::{Guard, SkipPolicy};
use pagedraft_workloads::run::LineFormat;
use pagedraft_workloads::trace::TraceTables;

const CONFIG: &str = r#"{"architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 768, "n_heads": 12,
    "n_layers": 12, "mlp_hidden_size": 2048, "vocab_size": 32000, "embedding_size": 32000, "max_sequence_length": 2048,
    "weight_tying": true, "mask_token_id": 31999, "eos_token_id": 31998, "torch_dtype": "bfloat16"}"#;

/// The id of the mask in that configuration.
const MASK: u32 = 31_999;

/// What a run took, and what it computed.
#[derive(Clone, Copy, Default)]
struct Ran {
    seconds: f64,
    passes: u32,
    token_layers: u64,
}

fn requests(count: u32, len: u32, how: &Diffusion) -> Vec<Request> {
    let prompt = |i: u32| (0..64).map(|p| (p * 37 + i * 101) % 31_000).collect();
    let one =
        |i: u32| Request { diffusion: Some(how.clone()), ..Request::new(i.to_string(), prompt(i), len) };
    (0..count).map(one).collect()
}

/// Runs the requests, `apart` steps between two arrivals.
fn run(session: &mut Session, requests: &[Request], apart: u32) -> Ran {
    let start = Instant::now();
    let mut ids = Vec::new();
    for request in requests {
        ids.extend(session.submit(request.clone()).expect("a request that fits"));
        for _ in 0..apart {
            session.step().expect("a step");
        }
    }
    while session.has_unfinished() {
        session.step().expect("a step");
    }
    let mut ran = Ran { seconds: start.elapsed().as_secs_f64(), ..Ran::default() };
    for id in ids {
        let output = session.take_output(id).expect("an output");
        let canvas = output.diffusion.expect("a canvas");
        assert_eq!(canvas.masks_left, 0);
        ran.passes += canvas.nfe;
        ran.token_layers += canvas.token_layers;
    }
    ran
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs the ways in turn; each with its seconds of every round.
fn rounds<const N: usize>(
    rounds: usize,
    mut ways: [Box<dyn FnMut() -> Ran + '_>; N],
) -> [(Ran, Vec<f64>); N] {
    let mut all: [(Ran, Vec<f64>); N] = std::array::from_fn(|_| Default::default());
    for _ in 0..rounds {
        for (way, (last, seconds)) in ways.iter_mut().zip(&mut all) {
            *last = way();
            seconds.push(last.seconds);
        }
    }
    all
}

/// The median, over the rounds, of what one way took relative to another, and the ratio of their least times.
fn ratio(one: &[f64], other: &[f64]) -> (f64, f64) {
    let least = |seconds: &[f64]| seconds.iter().copied().fold(f64::INFINITY, f64::min);
    (median(one.iter().zip(other).map(|(a, b)| a / b).collect()), least(one) / least(other))
}

fn main() {
    let (count, threads, part) = (flag("--rounds", 3), flag("--threads", 1), flag("--part", 0));
    let dir = std::env::temp_dir().join("pagedraft-bench-llada");
    std::fs::create_dir_all(&dir).expect("a temporary directory");
    std::fs::write(dir.join("config.json"), CONFIG).expect("a file in it");
    let engine = |skip_layers: SkipLayers, enforce_eager: bool| {
        let diffusion = DiffusionOptions { skip_layers, ..DiffusionOptions::default() };
        EngineOptions {
            load_format: LoadFormat::Dummy,
            num_blocks: Some(512),
            max_num_seqs: 8,
            max_num_batched_tokens: 4096,
            threads,
            diffusion,
            enforce_eager,
            ..EngineOptions::new(ModelRef::Directory(PathBuf::from(&dir)))
        }
    };
    let open = |skip_layers: SkipLayers, enforce_eager: bool| {
        Session::open(&engine(skip_layers, enforce_eager)).expect("the model opens")
    };
    let how = |decoder| Diffusion { decoder, ..Diffusion::default() };

    let [mut a, mut b, mut c] = [(); 3].map(|()| open(SkipLayers::Never, true));
    let asked = |number: u32| part == 0 || part == number;
    if asked(1) {
        let one = |decoder| requests(1, 256, &Diffusion { steps: Some(64), ..how(decoder) });
        let all = rounds(
            count,
            [
                Box::new(|| run(&mut a, &one(Decoder::Baseline), 0)),
                Box::new(|| run(&mut b, &one(Decoder::PrefixCache), 0)),
                Box::new(|| run(&mut c, &one(Decoder::DualCache), 0)),
            ],
        );
        println!("256 tokens, four a pass, one request, {threads} threads, {count} rounds");
        for ((ran, seconds), name) in all.iter().zip(["baseline", "prefix-cache", "dual-cache"]) {
            let (median, least) = ratio(&all[0].1, seconds);
            println!(
                "  {name:14} {:7.3} s, {} passes, {:.2} tokens a pass; {median:.2} times as fast as baseline (least: {least:.2})",
                self::median(seconds.clone()),
                ran.passes,
                256.0 / f64::from(ran.passes)
            );
        }
    }
    if asked(2) {
        let skip = |policy, guard| Diffusion {
            skip_policy: policy,
            skip_guard: guard,
            ..how(Decoder::DualCacheSkip)
        };
        let (settled, moved) = (SkipPolicy::Settled { share: 0.5 }, SkipPolicy::LeastMoved { share: 0.57 });
        // As `bench infill` has it: masks are never skipped under guard, so that their share decides what can be.
        let given: Arc<[u32]> = (0..64).map(|p| if p % 2 == 1 { MASK } else { p * 53 % 31_000 }).collect();
        let eight = |how: Diffusion| requests(8, 64, &Diffusion { given: given.clone(), ..how });
        let mut f = open(SkipLayers::Behind(2), true);
        let mut s = open(SkipLayers::Behind(6), true);
        let mut t = open(SkipLayers::Behind(6), true);
        let all = rounds(
            count,
            [
                Box::new(|| run(&mut c, &eight(how(Decoder::DualCache)), 0)),
                Box::new(|| run(&mut f, &eight(skip(settled, Guard::Guard)), 0)),
                Box::new(|| run(&mut s, &eight(skip(moved, Guard::Guard)), 0)),
                Box::new(|| run(&mut t, &eight(skip(moved, Guard::Reuse)), 0)),
            ],
        );
        println!(
            "eight requests of 64 tokens a step, half of them given; settled: half of the filled tokens skip 10 of 12 layers; moved: 0.57 of all tokens skip 6"
        );
        for ((ran, seconds), name) in
            all.iter().zip(["dual-cache", "settled", "moved, guard", "moved, reuse"])
        {
            let (median, least) = ratio(&all[0].1, seconds);
            let allowed = all[0].0.token_layers as f64 / ran.token_layers as f64;
            println!(
                "  {name:14} {:7.3} s, {} passes; {median:.2} times as fast as dual-cache (least: {least:.2}), and the token-layers would allow {allowed:.2}",
                self::median(seconds.clone()),
                ran.passes
            );
        }
    }
    if asked(3) {
        let mut d = open(SkipLayers::Never, true);
        for block_length in [4, 8, 32] {
            let how = Diffusion { block_length, ..how(Decoder::DualCache) };
            let eight = requests(8, 64, &how);
            let all = rounds(
                count,
                [
                    Box::new(|| {
                        let runs = eight.iter().map(|one| run(&mut d, std::slice::from_ref(one), 0));
                        runs.fold(Ran::default(), |sum, ran| Ran {
                            seconds: sum.seconds + ran.seconds,
                            ..ran
                        })
                    }),
                    Box::new(|| run(&mut c, &eight, 5)),
                ],
            );
            let (median, least) = ratio(&all[0].1, &all[1].1);
            println!(
                "eight requests in different blocks of {block_length}: {median:.2} times the throughput of one after another (least: {least:.2})"
            );
        }
    }
    if asked(4) {
        let mut g = open(SkipLayers::Never, false);
        let all = rounds(
            count,
            [
                Box::new(|| run(&mut c, &requests(4, 64, &how(Decoder::DualCache)), 0)),
                Box::new(|| run(&mut g, &requests(4, 64, &how(Decoder::DualCache)), 0)),
            ],
        );
        let (median, least) = ratio(&all[0].1, &all[1].1);
        let replays = g.run_counts().0.replays;
        println!("graphs: {median:.2} times as fast as eager (least: {least:.2}), {replays} replays");
    }
    if asked(5) {
        let traced = |name: &str, level: Option<TensorLevel>| {
            let to = dir.join(format!("trace-{name}"));
            let _ = std::fs::remove_dir_all(&to);
            let all =
                |level| TensorTracing { level, layers: 0..=u16::MAX, steps: 0..=u64::MAX, most: u64::MAX };
            let options = EngineOptions {
                trace: Some(TraceOptions { dir: to, tables: TraceTables::Full, format: LineFormat::Jsonl }),
                trace_tensors: level.map(all),
                ..engine(SkipLayers::Never, true)
            };
            Session::open(&options).expect("the model opens")
        };
        let mut off = traced("off", None);
        let mut shapes = traced("summary", Some(TensorLevel::Summary));
        let mut stats = traced("stats", Some(TensorLevel::Stats));
        let one = || requests(1, 64, &Diffusion { steps: Some(16), ..how(Decoder::DualCache) });
        let all = rounds(
            count,
            [
                Box::new(|| run(&mut off, &one(), 0)),
                Box::new(|| run(&mut shapes, &one(), 0)),
                Box::new(|| run(&mut stats, &one(), 0)),
            ],
        );
        for ((_, seconds), name) in all.iter().zip(["no tensors", "summary", "stats"]) {
            let (median, least) = ratio(seconds, &all[0].1);
            println!("tensors, {name}: {median:.3} times the time without (least: {least:.3})");
        }
    }
}
