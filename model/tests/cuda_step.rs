//! Whole steps on the CUDA device, its kernels emulated: they agree with the CPU's, and have the same bits however a sequence
//! is computed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that fails says where")]

#[path = "emulated/mod.rs"]
mod emulated;
#[path = "../../attention/tests/emulator/mod.rs"]
mod emulator;

use emulated::Emulated;
use pagedraft_attention::isa::Isa;
use pagedraft_attention::{MaskKind, MetadataBuilder};
use pagedraft_block_manager::{BlockCopy, BlockId};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cpu::{CpuDevice, CpuOptions};
use pagedraft_model::cuda::{CudaDevice, CudaOptions, KvStorage};
use pagedraft_model::{
    CaptureSizes, Choice, Device, Dtype, Fallback, NO_CHOICE, Ran, Runner, StepInputs, StepLimits,
};

const VOCAB: u32 = 52;
const NUM_BLOCKS: u32 = 64;
const ROWS: usize = 160;
const LENGTH: usize = 640;
const BLOCKS: u32 = LENGTH as u32 / 16;

/// Norms of heads and grouped queries; biases; wide groups.
const CONFIGS: [&str; 3] = [
    r#"{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 52, "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "max_position_embeddings": 640, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true}"#,
    r#"{"architectures": ["Qwen2ForCausalLM"], "vocab_size": 52, "hidden_size": 48, "intermediate_size": 72,
        "num_hidden_layers": 2, "num_attention_heads": 3, "num_key_value_heads": 3,
        "max_position_embeddings": 640, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": false}"#,
    r#"{"architectures": ["LlamaForCausalLM"], "vocab_size": 52, "hidden_size": 1024, "intermediate_size": 512,
        "num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 64,
        "max_position_embeddings": 640, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false}"#,
];

fn checkpoint(config: usize) -> Checkpoint {
    Checkpoint::dummy(ModelConfig::parse("config.json".as_ref(), CONFIGS[config].as_bytes()).unwrap(), 9)
}

fn limits() -> StepLimits {
    StepLimits { token_rows: ROWS, logit_rows: ROWS, max_model_len: LENGTH }
}

fn options(dtype: Dtype) -> CudaOptions {
    CudaOptions {
        dtype,
        kv: KvStorage::Model,
        block_size: 16,
        num_blocks: NUM_BLOCKS,
        token_rows: ROWS,
        logit_rows: ROWS,
        max_model_len: LENGTH,
        deterministic: true,
        overlap: false,
    }
}

type Gpu = Runner<CudaDevice<Emulated>>;

fn gpu(config: usize, dtype: Dtype, multiprocessors: u32, seed: u64) -> Gpu {
    gpu_of(config, options(dtype), multiprocessors, seed)
}

fn gpu_of(config: usize, options: CudaOptions, multiprocessors: u32, seed: u64) -> Gpu {
    let checkpoint = checkpoint(config);
    let backend = Emulated::new(checkpoint.config(), &options, multiprocessors, seed);
    let device = CudaDevice::on(backend, &options, checkpoint.config()).unwrap();
    Runner::load(device, &checkpoint, limits()).unwrap()
}

fn cpu(config: usize, dtype: Dtype) -> Runner<CpuDevice> {
    let checkpoint = checkpoint(config);
    let layout = CpuDevice::kv_layout(checkpoint.config(), dtype, 16).unwrap();
    let isa = Isa::detect();
    let options = CpuOptions { isa, threads: 2, dtype, layout, num_blocks: NUM_BLOCKS, token_rows: ROWS };
    Runner::load(CpuDevice::new(&options, checkpoint.config()).unwrap(), &checkpoint, limits()).unwrap()
}

/// A row of a step: which sequence, its context, its query tokens.
type Row = (u32, u32, u32);

/// Blocks of a sequence, scattered; sequences share none. The first takes most of the pool.
fn table(sequence: u32) -> Vec<BlockId> {
    let block = |n: u32| BlockId(n * 37 % NUM_BLOCKS);
    match sequence {
        0 => (0..BLOCKS).map(block).collect(),
        s => (0..4).map(|b| block(BLOCKS + (s - 1) * 4 + b)).collect(),
    }
}

fn token(sequence: u32, position: u32) -> u32 {
    (position * 7 + sequence * 11 + position / 5) % VOCAB
}

fn step(rows: &[Row]) -> StepInputs {
    let mut builder = MetadataBuilder::new(16).unwrap();
    let (mut tokens, mut positions) = (Vec::new(), Vec::new());
    for &(sequence, context, queries) in rows {
        builder.push_row(context, queries, &table(sequence), MaskKind::Causal).unwrap();
        positions.extend(context..context + queries);
        tokens.extend((context..context + queries).map(|p| token(sequence, p)));
    }
    StepInputs { tokens, positions, metadata: builder.finish().clone() }
}

/// Steps of all kinds: prefills whole, in chunks and beside decodes; decodes at batch 1 and more; verify rows of equal and of
/// ragged lengths, and as rows of single tokens; a long context, which is split.
fn steps() -> Vec<Vec<Row>> {
    vec![
        vec![(1, 0, 20), (2, 0, 7)],
        vec![(3, 0, 5), (1, 20, 1), (2, 7, 1)],
        vec![(1, 21, 1)],
        vec![(2, 8, 1), (3, 5, 1), (1, 22, 1)],
        vec![(1, 23, 5), (2, 9, 5), (3, 6, 5)],
        vec![(1, 24, 4), (3, 7, 2), (2, 10, 1)],
        vec![(1, 28, 1), (1, 29, 1), (1, 30, 1), (2, 11, 1), (2, 12, 1)],
        vec![(0, 0, 150)],
        vec![(0, 150, 150)],
        vec![(0, 300, 150)],
        vec![(0, 450, 120), (1, 31, 3), (4, 0, 1)],
        vec![(0, 570, 1), (1, 34, 1)],
        vec![(0, 571, 5)],
    ]
}

fn logits<D: Device>(runner: &mut Runner<D>, rows: &[Row]) -> (Ran, Vec<f32>) {
    let inputs = step(rows);
    let ran = runner.forward(&inputs).unwrap();
    let all: Vec<u32> = (0..inputs.tokens.len() as u32).collect();
    (ran, runner.logits(&all).unwrap().block(0..all.len()).to_vec())
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn every_kind_of_step_agrees_with_the_cpu() {
    if !emulator::available() {
        return;
    }
    for (config, dtype, tolerance) in [(0, Dtype::Bf16, 0.02), (1, Dtype::F16, 0.004), (2, Dtype::Bf16, 0.02)]
    {
        let (mut cpu, mut gpu) = (cpu(config, dtype), gpu(config, dtype, 3, 1));
        for (number, rows) in steps().iter().enumerate() {
            let ((_, want), (ran, got)) = (logits(&mut cpu, rows), logits(&mut gpu, rows));
            assert_eq!(ran, Ran::Eager(None));
            let greatest = want.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!(
                    (got - want).abs() <= tolerance * greatest,
                    "model {config}, step {number}, row {}: logit {} is {got}, the CPU's {want}",
                    i / VOCAB as usize,
                    i % VOCAB as usize
                );
            }
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_in_chunks_in_verify_rows_among_others_and_on_any_gpu() {
    if !emulator::available() {
        return;
    }
    for (config, dtype) in [(0, Dtype::Bf16), (2, Dtype::F16)] {
        // All of sequence 1 in one step, alone.
        let (_, want) = logits(&mut gpu(config, dtype, 132, 1), &[(1, 0, 37)]);
        let at = |position: u32| bits(&want[position as usize * VOCAB as usize..][..VOCAB as usize]);
        for (multiprocessors, seed) in [(1, 2), (7, 3)] {
            let mut gpu = gpu(config, dtype, multiprocessors, seed);
            for rows in steps() {
                let (_, got) = logits(&mut gpu, &rows);
                let mut first = 0;
                for &(sequence, context, queries) in &rows {
                    for q in (0..queries).filter(|_| sequence == 1) {
                        let row = (first + q) as usize * VOCAB as usize;
                        let same = bits(&got[row..row + VOCAB as usize]) == at(context + q);
                        assert!(same, "position {}, {rows:?}, model {config}", context + q);
                    }
                    first += queries;
                }
            }
        }
    }
}

#[test]
fn replays_give_the_bits_of_eager_steps_and_touch_no_block_that_is_not_theirs() {
    if !emulator::available() {
        return;
    }
    for (config, dtype) in [(0, Dtype::F16), (1, Dtype::Bf16)] {
        let (mut eager, mut graph) = (gpu(config, dtype, 3, 1), gpu(config, dtype, 3, 2));
        // Few sizes, so that nearly every step is padded in rows and in sequences.
        let report = graph.capture(&CaptureSizes::new(vec![2, 16], 5)).unwrap();
        assert!(report.graphs > 5 && report.bytes > 0);
        let stride = graph.device().geometry().block_stride();
        let cache = graph.device().cache();
        let mut owned = vec![false; NUM_BLOCKS as usize];
        // NaN wherever nobody has written yet.
        graph.device_mut().backend().memory(cache).fill(0xff);
        let mut replays = 0;
        for rows in steps() {
            let (_, want) = logits(&mut eager, &rows);
            let inputs = step(&rows);
            for slot in &inputs.metadata.slot_mapping {
                owned[*slot as usize / 16] = true;
            }
            let (ran, got) = logits(&mut graph, &rows);
            assert!(
                bits(&got) == bits(&want),
                "model {config}: {ran:?} of {rows:?} differs from the eager step"
            );
            replays += usize::from(matches!(ran, Ran::Graph(_)));
            let memory = graph.device_mut().backend().memory(cache);
            for (block, part) in memory.chunks_exact(stride).take(NUM_BLOCKS as usize).enumerate() {
                let untouched = part.iter().all(|&byte| byte == 0xff);
                assert_eq!(untouched, !owned[block], "model {config}: block {block} after {rows:?}");
            }
        }
        assert!(replays >= 8, "{replays} replays: the test proves little");
        assert_eq!(graph.forward(&step(&[(1, 0, 6)])).unwrap(), Ran::Eager(Some(Fallback::QueryTooLong)));
    }
}

#[test]
fn the_injected_fault_shows_in_the_logits() {
    if !emulator::available() {
        return;
    }
    let (mut sound, mut faulty) = (gpu(0, Dtype::Bf16, 3, 1), gpu(0, Dtype::Bf16, 3, 1));
    faulty.capture(&CaptureSizes::new(vec![2, 16], 5)).unwrap();
    faulty.inject_decode_graph_for_verify(16).unwrap();
    let mut differ = false;
    for rows in &steps()[..5] {
        let ((_, want), (_, got)) = (logits(&mut sound, rows), logits(&mut faulty, rows));
        differ = bits(&want) != bits(&got);
    }
    assert!(differ, "verify rows on a graph of single tokens gave the right logits");
}

#[test]
fn tokens_are_chosen_from_the_logits_that_stay_on_the_device() {
    if !emulator::available() {
        return;
    }
    let greedy = |temperature: f32| Choice {
        temperature,
        top_k: if temperature > 0.0 { 1 } else { 0 },
        top_p: 1.0,
        min_p: 0.0,
        seed: 1,
        sample: 0,
        position: 3,
    };
    let best = |logits: &[f32]| {
        (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
    };
    for graphs in [false, true] {
        let mut gpu = gpu(0, Dtype::Bf16, 3, 1);
        if graphs {
            gpu.capture(&CaptureSizes::new(vec![4, 16], 5)).unwrap();
        }
        for rows in &steps()[1..6] {
            let inputs = step(rows);
            gpu.forward(&inputs).unwrap();
            // Some of the rows, not in their order.
            let picked: Vec<u32> = (0..inputs.tokens.len() as u32).rev().step_by(2).collect();
            let want: Vec<u32> = {
                let logits = gpu.logits(&picked).unwrap();
                (0..picked.len()).map(|i| best(logits.row(i))).collect()
            };
            // Of one candidate the noise picks that: the sampler's way to the argmax.
            for temperature in [0.0, 0.7] {
                let choices = vec![greedy(temperature); picked.len()];
                assert_eq!(gpu.choose(&picked, &choices).unwrap(), want, "{rows:?} at {temperature}");
            }
        }
        assert!(gpu.choose(&[0], &[greedy(0.0)]).unwrap()[0] != NO_CHOICE);
    }
}

#[test]
fn copied_blocks_hold_what_their_sources_held() {
    if !emulator::available() {
        return;
    }
    let mut gpu = gpu(0, Dtype::Bf16, 3, 1);
    logits(&mut gpu, &[(1, 0, 37)]);
    let (cache, stride) = (gpu.device().cache(), gpu.device().geometry().block_stride());
    let source = table(1)[1];
    let target = BlockId((0..NUM_BLOCKS).find(|&b| !table(1).contains(&BlockId(b))).unwrap());
    gpu.copy_blocks(&[BlockCopy { src: source, dst: target }]).unwrap();
    let memory = gpu.device_mut().backend().memory(cache);
    let block = |id: BlockId| &memory[id.0 as usize * stride..][..stride];
    assert!(block(source) == block(target) && block(source).iter().any(|&byte| byte != 0));
    assert!(gpu.copy_blocks(&[BlockCopy { src: source, dst: BlockId(NUM_BLOCKS) }]).is_err());
}

#[test]
fn eight_bit_keys_and_values_stay_near_sixteen() {
    if !emulator::available() {
        return;
    }
    let (mut cpu, mut gpu) =
        (cpu(0, Dtype::Bf16), gpu_of(0, CudaOptions { kv: KvStorage::Fp8, ..options(Dtype::Bf16) }, 3, 1));
    for rows in &steps()[..7] {
        let ((_, want), (_, got)) = (logits(&mut cpu, rows), logits(&mut gpu, rows));
        let greatest = want.iter().fold(0.0f32, |most, value| most.max(value.abs()));
        let worst = got.iter().zip(&want).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
        assert!(worst <= 0.1 * greatest, "{worst} of {greatest}: {rows:?}");
    }
}
