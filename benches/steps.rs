//! Whole steps of a 1.1B model in bf16, beside a plain read of the same bytes: the figures the engine is held to.
//!
//! `cargo bench --bench steps [-- --rounds N --threads N --dtype bf16|f32 --isa ISA --steps WORDS]`
//!
//! Every round times the read and each step once, one after the other; ratios are taken within a round. The weights are
//! drawn from a seed. A decode step is everything from token ids to the sampled rows' logits, and so is scoring: the
//! two scorers of speculation are timed on the same drafts, which differ in the metadata alone. `--steps` runs those
//! whose names contain the words (and the first step, which is the measure).
#![allow(clippy::expect_used, reason = "a test or a bench that fails says where")]

#[path = "support/flag.rs"]
mod flag;
#[path = "support/plain_read.rs"]
mod plain_read;

use std::time::Instant;

use flag::flag;
use pagedraft_attention::MetadataBuilder;
use pagedraft_attention::isa::Isa;
use pagedraft_attention::metadata::MaskKind;
use pagedraft_block_manager::{Arena, BlockCopy, BlockId, BlockSize, GroupId};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cpu::team::Team;
use pagedraft_model::cpu::{CpuDevice, CpuOptions, KvArena};
use pagedraft_model::dense::kv_groups;
use pagedraft_model::{Dtype, Runner, StepInputs, StepLimits};
use plain_read::PlainRead;

const CONFIG: &[u8] = br#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false}"#;
const BLOCK_SIZE: u32 = 16;
/// Room for the largest step, and no multiple of the 37 by which blocks are scattered.
const NUM_BLOCKS: u32 = 2080;
const LONGEST_PREFILL: usize = 512;
const MOST_LOGITS: usize = 40;

/// A step: sequences, the context of each, query tokens of each.
struct Case {
    name: &'static str,
    sequences: u32,
    context: u32,
    queries: u32,
    /// Each query token is a metadata row of its own (batch expansion).
    expanded: bool,
}

const fn case(name: &'static str, sequences: u32, context: u32, queries: u32) -> Case {
    Case { name, sequences, context, queries, expanded: false }
}

const CASES: [Case; 10] = [
    case("decode, 1 row, context 128", 1, 128, 1),
    case("decode, 8 rows, context 128", 8, 128, 1),
    case("decode, 16 rows, context 128", 16, 128, 1),
    case("decode, 1 row, context 2048", 1, 2048, 1),
    case("verify, 5 rows, context 128", 1, 128, 5),
    case("verify, 8 rows, context 128", 1, 128, 8),
    case("prefill, 512 tokens", 1, 0, 512),
    case("decode, 8 rows, context 4096", 8, 4096, 1),
    case("verify, 8 x 5 by MQA, 4096", 8, 4096, 5),
    Case { expanded: true, ..case("verify, 8 x 5 expanded, 4096", 8, 4096, 5) },
];

fn inputs(case: &Case) -> StepInputs {
    let mut builder = MetadataBuilder::new(BLOCK_SIZE).expect("a block size");
    let blocks = (case.context + case.queries).div_ceil(BLOCK_SIZE);
    let mut positions = Vec::new();
    for s in 0..case.sequences {
        // Blocks anywhere in the pool: an odd stride visits each once.
        let table: Vec<_> = (0..blocks).map(|b| BlockId((s * blocks + b) * 37 % NUM_BLOCKS)).collect();
        let (rows, queries) = if case.expanded { (case.queries, 1) } else { (1, case.queries) };
        for row in 0..rows {
            builder.push_row(case.context + row, queries, &table, MaskKind::Causal).expect("a row");
        }
        positions.extend(case.context..case.context + case.queries);
    }
    let tokens = (0..positions.len() as u32).map(|i| i * 7919 % 32_000).collect();
    StepInputs::dense(tokens, positions, builder.finish().clone())
}

/// Writes every block of the pool: memory that nobody has written is one page of zeros, and is read from cache.
fn fill(runner: &mut Runner<CpuDevice>) {
    let mut builder = MetadataBuilder::new(BLOCK_SIZE).expect("a block size");
    let written = LONGEST_PREFILL as u32 / BLOCK_SIZE;
    let table: Vec<_> = (0..written).map(BlockId).collect();
    builder.push_row(0, LONGEST_PREFILL as u32, &table, MaskKind::Causal).expect("a row");
    let positions: Vec<u32> = (0..LONGEST_PREFILL as u32).collect();
    let tokens = positions.iter().map(|p| p * 7919 % 32_000).collect();
    runner.forward(&StepInputs::dense(tokens, positions, builder.finish().clone())).expect("a prefill");
    let copies: Vec<_> = (written..NUM_BLOCKS)
        .map(|block| BlockCopy { group: GroupId(0), src: BlockId(block % written), dst: BlockId(block) })
        .collect();
    runner.copy_blocks(&copies).expect("copies");
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let (rounds, threads) = (flag("--rounds", 15usize), flag("--threads", 2usize));
    let (dtype, isa) = (flag("--dtype", Dtype::Bf16), flag("--isa", Isa::detect()));
    let config = ModelConfig::parse("config.json".as_ref(), CONFIG).expect("a configuration");
    let embedding = config.vocab_size * config.hidden_size;
    let weights = (config.num_parameters() as usize - embedding) * dtype.size();
    let kv_token = 2 * config.num_layers * config.kv_size() * dtype.size();
    let layout = CpuDevice::kv_layout(&config, dtype, BLOCK_SIZE).expect("a layout");
    let options = CpuOptions { isa, threads, dtype, block_size: BLOCK_SIZE };
    let groups = kv_groups(&config.windows, 8192, layout.token_bytes());
    let plan = Arena::plan(BlockSize::new(BLOCK_SIZE).expect("a block size"), NUM_BLOCKS, &groups);
    let arena = KvArena::new(&plan.expect("a plan")).expect("memory");
    let device = CpuDevice::new(&options, &arena, &[GroupId(0)]).expect("a device");
    let limits = StepLimits { token_rows: LONGEST_PREFILL, logit_rows: MOST_LOGITS, max_model_len: 8192 };
    let start = Instant::now();
    let mut runner = Runner::load(device, &Checkpoint::dummy(config, 1), limits).expect("a model");
    println!(
        "1.1B shape, {dtype:?} on {isa}, {threads} threads, {:.2} GB of weights, loaded in {:.1} s, {rounds} rounds",
        weights as f64 / 1e9,
        start.elapsed().as_secs_f64()
    );

    fill(&mut runner);
    let wanted = flag("--steps", String::new());
    let cases: Vec<_> = CASES
        .iter()
        .enumerate()
        .filter(|(i, c)| *i == 0 || c.name.contains(&wanted))
        .map(|(_, c)| c)
        .collect();

    let team = Team::new(threads).expect("threads");
    let read = PlainRead::new(isa, weights);
    let steps: Vec<_> = cases.iter().map(|case| inputs(case)).collect();
    let mut reads = Vec::new();
    let mut times = vec![Vec::new(); cases.len()];
    for round in 0..=rounds {
        let seconds = read.seconds(&team);
        for (i, (case, inputs)) in cases.iter().zip(&steps).enumerate() {
            // A prefill gives one row of logits, the other steps one for every token row.
            let rows = inputs.tokens.len() as u32;
            let selected: Vec<u32> =
                if rows as usize > MOST_LOGITS { vec![rows - 1] } else { (0..rows).collect() };
            let start = Instant::now();
            runner.forward(inputs).expect(case.name);
            runner.logits(&selected).expect(case.name);
            if round > 0 {
                times[i].push(start.elapsed().as_secs_f64());
            }
        }
        // The first round warms up.
        if round > 0 {
            reads.push(seconds);
        }
    }

    let read_ms = median(&mut reads.clone()) * 1e3;
    println!(
        "plain read of the same bytes: {read_ms:.1} ms, {:.1} GB/s (median)",
        weights as f64 / read_ms / 1e6
    );
    println!(
        "{:<30} {:>9} {:>9} {:>9}  {:>11}  {:>13}",
        "step", "median ms", "min ms", "tokens/s", "of the read", "to 1 row @128"
    );
    for (i, case) in cases.iter().enumerate() {
        // Bandwidth of weights and KV over the read's, in the same round.
        let kv = (case.sequences * (case.context + case.queries)) as usize * kv_token;
        let bytes = (weights + kv) as f64 / weights as f64;
        let mut of_read: Vec<f64> = reads.iter().zip(&times[i]).map(|(r, t)| bytes * r / t).collect();
        let mut to_one: Vec<f64> = times[i].iter().zip(&times[0]).map(|(t, one)| t / one).collect();
        let ms = median(&mut times[i].clone()) * 1e3;
        let least = times[i].iter().copied().fold(f64::INFINITY, f64::min) * 1e3;
        let tokens = f64::from(case.sequences * case.queries);
        println!(
            "{:<30} {ms:>9.1} {least:>9.1} {:>9.1}  {:>10.0}%  {:>13.2}",
            case.name,
            tokens / ms * 1e3,
            median(&mut of_read) * 100.0,
            median(&mut to_one)
        );
    }
    let (expanded, mqa): (Vec<_>, Vec<_>) = (0..cases.len())
        .filter(|&i| cases[i].sequences > 1 && cases[i].queries > 1)
        .partition(|&i| cases[i].expanded);
    for (&mqa, &expanded) in mqa.iter().zip(&expanded) {
        let mut ratios: Vec<f64> = times[expanded].iter().zip(&times[mqa]).map(|(e, m)| e / m).collect();
        let ratio = median(&mut ratios);
        println!(
            "{} over {}: {ratio:.2} (median of rounds, {:.2} .. {:.2})",
            cases[expanded].name,
            cases[mqa].name,
            ratios[0],
            ratios[ratios.len() - 1]
        );
    }
}
