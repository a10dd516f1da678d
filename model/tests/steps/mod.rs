//! Models, steps of every kind, and what has to hold of them on a CUDA device: emulated in tests, real in the bench.
#![allow(dead_code, reason = "each file takes what it needs")]

use pagedraft_attention::isa::Isa;
use pagedraft_attention::{MaskKind, MetadataBuilder};
use pagedraft_block_manager::{Arena, BlockId};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cpu::CpuDevice;
use pagedraft_model::cuda::{Backend, CudaDevice, CudaOptions, KvStorage, part_bytes};
use pagedraft_model::dense::kv_groups;
use pagedraft_model::{CaptureSizes, Device, Dtype, Fallback, Ran, Runner, StepInputs, StepLimits};

use crate::devices;

/// A model on a CUDA device.
pub type Gpu<B> = Runner<CudaDevice<B>>;

pub const VOCAB: u32 = 52;
pub const NUM_BLOCKS: u32 = 64;
pub const ROWS: usize = 160;
pub const LENGTH: usize = 640;
pub const BLOCKS: u32 = LENGTH as u32 / 16;

/// Norms of heads and grouped queries; biases; wide groups.
pub const CONFIGS: [&str; 3] = [
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

pub fn checkpoint(config: usize) -> Checkpoint {
    Checkpoint::dummy(ModelConfig::parse("config.json".as_ref(), CONFIGS[config].as_bytes()).unwrap(), 9)
}

pub fn limits() -> StepLimits {
    StepLimits { token_rows: ROWS, logit_rows: ROWS, max_model_len: LENGTH }
}

pub fn options(dtype: Dtype) -> CudaOptions {
    CudaOptions {
        dtype,
        kv: KvStorage::Model,
        block_size: 16,
        token_rows: ROWS,
        logit_rows: ROWS,
        max_model_len: LENGTH,
        deterministic: true,
        overlap: false,
    }
}

/// The KV arena of a model on a CUDA device of these options.
pub fn plan(config: &ModelConfig, options: &CudaOptions) -> Arena {
    let bytes = part_bytes(config, options.dtype, options.kv, options.block_size);
    let groups = kv_groups(&config.windows, LENGTH, bytes / options.block_size as usize);
    devices::plan(&groups, NUM_BLOCKS)
}

pub fn cpu(config: usize, dtype: Dtype) -> Runner<CpuDevice> {
    let checkpoint = checkpoint(config);
    let device = devices::cpu(checkpoint.config(), (Isa::detect(), 2, dtype), NUM_BLOCKS, LENGTH);
    Runner::load(device, &checkpoint, limits()).unwrap()
}

/// A row of a step: which sequence, its context, its query tokens.
pub type Row = (u32, u32, u32);

/// Blocks of a sequence, scattered; sequences share none. The first takes most of the pool.
pub fn table(sequence: u32) -> Vec<BlockId> {
    let block = |n: u32| BlockId(n * 37 % NUM_BLOCKS);
    match sequence {
        0 => (0..BLOCKS).map(block).collect(),
        s => (0..4).map(|b| block(BLOCKS + (s - 1) * 4 + b)).collect(),
    }
}

pub fn token(sequence: u32, position: u32) -> u32 {
    (position * 7 + sequence * 11 + position / 5) % VOCAB
}

pub fn step(rows: &[Row]) -> StepInputs {
    let mut builder = MetadataBuilder::new(16).unwrap();
    let (mut tokens, mut positions) = (Vec::new(), Vec::new());
    for &(sequence, context, queries) in rows {
        builder.push_row(context, queries, &table(sequence), MaskKind::Causal).unwrap();
        positions.extend(context..context + queries);
        tokens.extend((context..context + queries).map(|p| token(sequence, p)));
    }
    StepInputs::dense(tokens, positions, builder.finish().clone())
}

/// Steps of all kinds: prefills whole, in chunks and beside decodes; decodes at batch 1 and more; verify rows of equal and of
/// ragged lengths, and as rows of single tokens; a long context, which is split.
pub fn steps() -> Vec<Vec<Row>> {
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

pub fn logits<D: Device>(runner: &mut Runner<D>, rows: &[Row]) -> (Ran, Vec<f32>) {
    let inputs = step(rows);
    let ran = runner.forward(&inputs).unwrap();
    let all: Vec<u32> = (0..inputs.tokens.len() as u32).collect();
    (ran, runner.logits(&all).unwrap().block(0..all.len()).to_vec())
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Every kind of step agrees with the CPU's, within a share of the greatest logit.
pub fn agrees_with_the_cpu<B: Backend>(config: usize, dtype: Dtype, tolerance: f32, mut gpu: Gpu<B>) {
    let mut cpu = cpu(config, dtype);
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

/// A sequence has the same bits in chunks, in verify rows and among others as in one step, alone.
pub fn has_the_same_bits_however_it_is_cut<B: Backend>(config: usize, mut alone: Gpu<B>, mut gpu: Gpu<B>) {
    let (_, want) = logits(&mut alone, &[(1, 0, 37)]);
    let at = |position: u32| bits(&want[position as usize * VOCAB as usize..][..VOCAB as usize]);
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

/// Replays give the bits of eager steps, and touch no block that is not theirs: those are NaN before, and after.
pub fn replays_as_eager_and_touches_nothing_else<B: Backend>(
    config: usize,
    mut eager: Gpu<B>,
    mut graph: Gpu<B>,
) {
    // Few sizes, so that nearly every step is padded in rows and in sequences.
    let report = graph.capture(&CaptureSizes::new(vec![2, 16], (1..=5).collect())).unwrap();
    assert!(report.graphs > 5, "{report:?}");
    let words = graph.device().geometry().block_stride() / 4;
    let cache = graph.device().cache();
    let all = words * NUM_BLOCKS as usize;
    graph.device_mut().backend().write(cache, &vec![0xff; 4 * all]).unwrap();
    let mut owned = vec![false; NUM_BLOCKS as usize];
    let mut replays = 0;
    for rows in steps() {
        let (_, want) = logits(&mut eager, &rows);
        for slot in &step(&rows).metadata().slot_mapping {
            owned[*slot as usize / 16] = true;
        }
        let (ran, got) = logits(&mut graph, &rows);
        assert!(bits(&got) == bits(&want), "model {config}: {ran:?} of {rows:?} differs from the eager step");
        replays += usize::from(matches!(ran, Ran::Graph(_)));
        let memory = graph.device_mut().backend().fetch(cache, all).unwrap();
        for (block, part) in memory.chunks_exact(words).enumerate() {
            let untouched = part.iter().all(|&word| word == u32::MAX);
            assert_eq!(untouched, !owned[block], "model {config}: block {block} after {rows:?}");
        }
    }
    assert!(replays >= 8, "{replays} replays: this proves little");
    assert_eq!(graph.forward(&step(&[(1, 0, 6)])).unwrap(), Ran::Eager(Some(Fallback::QueryTooLong)));
}
