//! KV tiers: how often tier 0 has what a step needs, by policy, and what tiers cost.
//!
//! `cargo bench --bench tiers [-- --rounds N --threads N --only steps|load]`
//!
//! 1. *Hits.* Two stated traces of 1,024 blocks, 400 steps. A step touches 20 % of the blocks, 80 % of them again in the next one. Blocks
//!    that come anew are drawn evenly, or by popularity (the r-th with a weight of 1 / r). Tier 0 holds 25 %. LRU, the engine's own
//!    policy, and Belady's, who knows the future.
//! 2. *Step time.* One decode row at a context of 16,384 tokens, 16 heads, latents of 512 + 64 values in bf16, 2,040 keys in 204 of 1,024
//!    blocks as in the second trace, 4 layers, weights from a seed. Without tiers, with tiers that hold all, and with 25 % in tier 0 and a
//!    local pool in memory. Variants take turns step by step over the same selections; ratios are taken within a round.
//!    Then 10 % in tier 0 and a local pool in a file of which the system has nothing in memory: a step needs twice what tier 0 holds, and has
//!    half of what the last step selected fetched ahead, or not.
//! 3. *Throughput* on one thread with a pool of a third of what a load needs: preemption with recompute, against a tier 0 of that size with
//!    a local pool behind it. The model of 2, but with 2,048 values, 5,632 inside, and 64 keys a query: as with large models, a step of few
//!    rows costs nearly what one of many does, because it reads all weights. *Long answers*: 6 requests of 128 + 640 tokens. *Documents*: 6
//!    conversations about documents of 768 tokens, 3 turns of 32 + 64 tokens, all of which ask at once.
#![allow(clippy::expect_used, reason = "a test or a bench that fails says where")]

#[cfg(target_os = "linux")]
mod cold;
#[path = "../support/flag.rs"]
mod flag;
mod load;

use std::collections::HashMap;
use std::time::Instant;

use flag::flag;
use pagedraft_attention::MetadataBuilder;
use pagedraft_attention::isa::Isa;
use pagedraft_attention::metadata::MaskKind;
use pagedraft_block_manager::{Arena, BlockId, BlockSize, GroupId, PartKind};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cpu::{CpuDevice, CpuOptions, KvArena};
use pagedraft_model::dsa::SparseOp;
use pagedraft_model::tiers::{LocalPool, Policy, TierOptions, Uses};
use pagedraft_model::{Device, Dtype, Op, Runner, StepInputs, StepLimits};

const BLOCKS: u32 = 1024;
const TOUCHED: usize = 204;
const AGAIN: f64 = 0.8;
const SIZE: u32 = 16;
const CONTEXT: u32 = BLOCKS * SIZE;

struct Random(u64);

impl Random {
    /// A number from 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// The blocks that each step touches, ascending.
fn trace(steps: usize, popular: bool, seed: u64) -> Vec<Vec<u32>> {
    let mut random = Random(seed);
    let weight = |block: u32| if popular { 1.0 / f64::from(1 + block * 37 % BLOCKS) } else { 1.0 };
    let mut last: Vec<u32> = Vec::new();
    (0..steps)
        .map(|_| {
            let mut now = last.clone();
            while now.len() > (TOUCHED as f64 * AGAIN) as usize {
                now.swap_remove((random.next() * now.len() as f64) as usize);
            }
            while now.len() < TOUCHED {
                let block = (random.next() * f64::from(BLOCKS)) as u32;
                if random.next() < weight(block) && !now.contains(&block) && !last.contains(&block) {
                    now.push(block);
                }
            }
            now.sort_unstable();
            last.clone_from(&now);
            now
        })
        .collect()
}

/// The share of touches, from the second step on, that `frames` frames have. `victim` picks whom to drop.
fn hits(
    trace: &[Vec<u32>],
    frames: usize,
    mut victim: impl FnMut(&HashMap<u32, Uses>, &[u32], u64) -> u32,
) -> f64 {
    let mut held: HashMap<u32, Uses> = HashMap::new();
    let (mut hit, mut all) = (0, 0);
    for (step, touched) in (1..).zip(trace) {
        let missing: Vec<u32> = touched.iter().copied().filter(|block| !held.contains_key(block)).collect();
        if step > 1 {
            hit += touched.len() - missing.len();
            all += touched.len();
        }
        for block in touched {
            held.entry(*block).or_default().note(step);
        }
        while held.len() > frames {
            let gone = victim(&held, touched, step);
            held.remove(&gone);
        }
    }
    hit as f64 / all as f64
}

fn by_policy(policy: Policy) -> impl FnMut(&HashMap<u32, Uses>, &[u32], u64) -> u32 {
    move |held, touched, now| {
        let free = held.iter().filter(|(block, _)| touched.binary_search(block).is_err());
        let scored = free.map(|(&block, uses)| (uses.score(policy, now), block));
        scored.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1))).expect("a frame to empty").1
    }
}

fn print_hits() {
    println!("hits of tier 0 with 25 % of 1,024 blocks, 204 touched a step, 80 % again");
    println!("| trace | LRU | frequency (default) | Belady |\n|---|---|---|---|");
    for (name, popular) in [("new blocks even", false), ("new blocks by popularity", true)] {
        let trace = trace(400, popular, 5);
        let frames = BLOCKS as usize / 4;
        let belady = |held: &HashMap<u32, Uses>, touched: &[u32], now: u64| {
            let next = |block: u32| {
                let later = trace[now as usize..].iter().position(|step| step.binary_search(&block).is_ok());
                later.unwrap_or(usize::MAX)
            };
            let free = held.keys().copied().filter(|block| touched.binary_search(block).is_err());
            free.max_by_key(|&block| (next(block), block)).expect("a frame to empty")
        };
        let [lru, frequency] =
            [Policy::Lru, Policy::Frequency].map(|policy| hits(&trace, frames, by_policy(policy)));
        let best = hits(&trace, frames, belady);
        println!("| {name} | {:.2} % | {:.2} % | {:.2} % |", lru * 100.0, frequency * 100.0, best * 100.0);
    }
}

const CONFIG: &str = r#"{"architectures": ["DeepseekV32ForCausalLM"], "vocab_size": 4096, "hidden_size": 1024,
    "intermediate_size": 2816, "moe_intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 16, "q_lora_rank": 512,
    "kv_lora_rank": 512, "qk_nope_head_dim": 64, "qk_rope_head_dim": 64, "v_head_dim": 64, "index_n_heads": 16,
    "index_head_dim": 128, "index_topk": 2048, "first_k_dense_replace": 4, "n_routed_experts": 4, "num_experts_per_tok": 1,
    "n_group": 1, "topk_group": 1, "n_shared_experts": 1, "max_position_embeddings": 16384, "rope_theta": 10000.0,
    "tie_word_embeddings": true, "torch_dtype": "bfloat16"}"#;

struct World {
    runner: Runner<CpuDevice>,
    inputs: StepInputs,
}

impl World {
    fn new(threads: usize, tiers: Option<TierOptions>) -> Self {
        let config = ModelConfig::parse("config.json".as_ref(), CONFIG.as_bytes()).expect("a configuration");
        let dtype = Dtype::Bf16;
        let mut groups = CpuDevice::kv_groups(&config, dtype, SIZE, CONTEXT as usize).expect("groups");
        let parts = groups.iter_mut().flat_map(|group| &mut group.parts);
        parts.for_each(|part| part.tiered = tiers.is_some() && part.kind == PartKind::Latent);
        let plan = Arena::plan(BlockSize::new(SIZE).expect("a size"), BLOCKS, &groups).expect("a plan");
        let arena = KvArena::new(&plan).expect("memory");
        let options = CpuOptions { isa: Isa::detect(), threads, dtype, block_size: SIZE };
        let mut device = CpuDevice::new(&options, &arena, &[GroupId(0)]).expect("a device");
        if let Some(tiers) = tiers {
            device.keep_in_tiers(tiers);
        }
        let limits = StepLimits { token_rows: 512, logit_rows: 8, max_model_len: CONTEXT as usize };
        let mut runner = Runner::load(device, &Checkpoint::dummy(config, 3), limits).expect("a model");
        runner.touch().expect("memory");
        let table: Vec<BlockId> = (0..BLOCKS).map(BlockId).collect();
        let mut builder = MetadataBuilder::new(SIZE).expect("a builder");
        let mut inputs = |first: u32, count: u32| {
            builder.begin();
            builder.push_row(first, count, &table, MaskKind::Causal).expect("a row");
            let positions: Vec<u32> = (first..first + count).collect();
            StepInputs::dense(vec![7; count as usize], positions, builder.finish().clone())
        };
        // The latents of the context: what is stored does not matter here, where it lies does.
        for first in (0..CONTEXT).step_by(512) {
            let step = inputs(first, 512);
            runner.device_mut().bind(&step, None).expect("inputs");
            let stores = |op: &Op<_>| matches!(op, Op::Sparse(SparseOp::CacheLatents { .. }));
            let ops: Vec<_> = runner.operations(512).into_iter().filter(stores).collect();
            runner.device_mut().run(&ops).expect("stored");
        }
        let inputs = inputs(CONTEXT - 1, 1);
        Self { runner, inputs }
    }

    /// Runs a decode step in which every layer selects these keys; seconds.
    fn step(&mut self, keys: &[u32]) -> f64 {
        let ops = self.runner.operations(1);
        let device = self.runner.device_mut();
        device.select(&[0]).expect("a row");
        let start = Instant::now();
        device.bind(&self.inputs, None).expect("inputs");
        for op in ops {
            match op {
                Op::Sparse(SparseOp::Select { out, .. }) => device.set_choices(out, 0, keys).expect("keys"),
                op => device.run(&[op]).expect("an operation"),
            }
        }
        start.elapsed().as_secs_f64()
    }
}

/// The median and the least.
fn of(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[0])
}

/// The bytes that a layer holds of a block.
fn cell() -> usize {
    let config = ModelConfig::parse("config.json".as_ref(), CONFIG.as_bytes()).expect("a configuration");
    let groups = CpuDevice::kv_groups(&config, Dtype::Bf16, SIZE, CONTEXT as usize).expect("groups");
    groups[0].parts[0].bytes_per_token * SIZE as usize
}

fn print_steps(rounds: usize, threads: usize) {
    let cell = cell();
    let local = |frames, policy| {
        let pool = LocalPool { bytes: u64::from(BLOCKS) * 4 * cell as u64, file: None };
        let options = TierOptions { frames, policy, ..TierOptions::default() };
        Some(options.with_local(&pool, cell).expect("a pool"))
    };
    let mut worlds = [
        ("no tiers", World::new(threads, None)),
        ("tiers, all resident", World::new(threads, local(None, Policy::Frequency))),
        ("25 % in tier 0, frequency", World::new(threads, local(Some(BLOCKS / 4), Policy::Frequency))),
        ("25 % in tier 0, LRU", World::new(threads, local(Some(BLOCKS / 4), Policy::Lru))),
    ];
    let mut ratios = vec![Vec::new(); worlds.len()];
    let mut times = vec![Vec::new(); worlds.len()];
    let mut random = Random(11);
    for (round, blocks) in trace(rounds + 5, true, 6).iter().enumerate() {
        let offset = (random.next() * 6.0) as u32;
        let keys: Vec<u32> =
            blocks.iter().flat_map(|b| (0..10).map(move |i| b * SIZE + offset + i)).collect();
        let count = worlds.len();
        let mut taken = vec![0.0; count];
        // Who begins changes from round to round.
        for at in (0..count).map(|at| (at + round) % count) {
            taken[at] = worlds[at].1.step(&keys);
        }
        if round >= 5 {
            for (at, &time) in taken.iter().enumerate() {
                times[at].push(time * 1e3);
                ratios[at].push(time / taken[0]);
            }
        }
    }
    println!("\ndecode step, {rounds} rounds, {threads} threads, {}", Isa::detect());
    println!(
        "| | ms, median | ms, least | ratio, median | hits | fetched a step |\n|---|---|---|---|---|---|"
    );
    for (((name, world), times), ratios) in worlds.iter_mut().zip(times).zip(ratios) {
        let counts = world.runner.device_mut().tiers().map(|tiers| tiers.counts()).unwrap_or_default();
        let (median, least) = of(times);
        let fetched = counts.local_pool.cells;
        let hits = counts.hits as f64 / (counts.hits + fetched).max(1) as f64;
        println!(
            "| {name} | {median:.3} | {least:.3} | {:.3} | {:.1} % | {:.0} cells |",
            of(ratios).0,
            hits * 100.0,
            fetched as f64 / (rounds + 5) as f64
        );
    }
}

fn main() {
    let rounds = flag("--rounds", 60);
    let threads = flag("--threads", 1);
    let only: String = flag("--only", String::new());
    if only != "load" {
        print_hits();
        print_steps(rounds, threads);
        #[cfg(target_os = "linux")]
        cold::print(rounds, threads, cell());
    }
    if only != "steps" {
        load::print((rounds / 20).max(1));
    }
}
