//! Replayed steps: of padded and ragged shapes they give the bits of eager ones, and they allocate nothing.
#![allow(clippy::unwrap_used, reason = "a test or a bench that fails says where")]

mod devices;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use pagedraft_attention::isa::Isa;
use pagedraft_attention::{MaskKind, MetadataBuilder};
use pagedraft_block_manager::{BlockId, KvGroup};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cpu::{CpuDevice, CpuOptions};
use pagedraft_model::dense::kv_groups;
use pagedraft_model::{CaptureSizes, Dtype, Fallback, GraphKey, Ran, Runner, StepInputs, StepLimits};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator, counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const CONFIG: &[u8] = br#"{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 50, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true}"#;
const ROWS: u32 = 24;
const SEQUENCES: u32 = 8;

fn runner(dtype: Dtype, isa: Isa, threads: usize) -> Runner<CpuDevice> {
    let checkpoint = Checkpoint::dummy(ModelConfig::parse("config.json".as_ref(), CONFIG).unwrap(), 9);
    let (num_blocks, token_rows) = (SEQUENCES * 4, ROWS as usize);
    let device = devices::cpu(checkpoint.config(), (isa, threads, dtype), num_blocks, 64);
    let limits = StepLimits { token_rows, logit_rows: token_rows, max_model_len: 64 };
    Runner::load(device, &checkpoint, limits).unwrap()
}

/// A step: of each sequence its context and its query tokens, the longer queries first.
fn step(rows: &[(u32, u32)]) -> StepInputs {
    let mut builder = MetadataBuilder::new(16).unwrap();
    let mut positions = Vec::new();
    for (s, &(context, queries)) in (0..).zip(rows) {
        let table: Vec<BlockId> = (0..4).map(|b| BlockId((s * 4 + b) * 5 % (SEQUENCES * 4))).collect();
        builder.push_row(context, queries, &table, MaskKind::Causal).unwrap();
        positions.extend(context..context + queries);
    }
    let tokens = positions.iter().zip(0..).map(|(p, i)| (p * 7 + i * 3) % 50).collect();
    StepInputs::dense(tokens, positions, builder.finish().clone())
}

/// Steps of all kinds: plain decodes, verify rows of equal and of ragged lengths, one sequence and many.
fn steps() -> Vec<StepInputs> {
    [
        &[(0, 5), (0, 4), (0, 3)][..],
        &[(5, 1), (4, 1), (3, 1)],
        &[(6, 3), (5, 2), (4, 1)],
        &[(9, 5)],
        &[(14, 5), (7, 5), (5, 1), (0, 1), (0, 1)],
        &[(19, 1)],
        &[(0, 3), (0, 3), (0, 3), (0, 3), (0, 3), (0, 3), (0, 3)],
    ]
    .map(step)
    .to_vec()
}

/// The windows of a model whose KV is in two groups.
const WINDOWS: [Option<u32>; 2] = [None, Some(4)];

/// The model with windows in its second layer, and its groups.
fn windowed(dtype: Dtype, isa: Isa, threads: usize) -> (Runner<CpuDevice>, Vec<KvGroup>) {
    let mut config = ModelConfig::parse("config.json".as_ref(), CONFIG).unwrap();
    config.windows = WINDOWS.to_vec();
    let groups = kv_groups(&config.windows, 64, devices::token_bytes(&config, dtype));
    let options = CpuOptions { isa, threads, dtype, block_size: devices::BLOCK_SIZE };
    let (device, _) = devices::of_groups(&groups, &options, SEQUENCES * 4);
    let limits = StepLimits { token_rows: ROWS as usize, logit_rows: ROWS as usize, max_model_len: 64 };
    (Runner::load(device, &Checkpoint::dummy(config, 9), limits).unwrap(), groups)
}

/// The same step for a model with windows. Each group has block ids of its own, for both have blocks of one size.
fn in_groups(inputs: &StepInputs, groups: &[KvGroup]) -> StepInputs {
    let of_group = |(number, group): (u32, &KvGroup)| {
        let mut builder = MetadataBuilder::new(16).unwrap();
        builder.set_window(group.window);
        let metadata = inputs.metadata();
        for row in 0..metadata.num_rows() {
            let first = number * SEQUENCES * 4;
            let table = metadata.block_tables.get(row).unwrap().iter().map(|block| BlockId(first + block.0));
            let (context, seq) = (metadata.context_lens[row], metadata.seq_lens[row]);
            builder.push_row(context, seq - context, &table.collect::<Vec<_>>(), MaskKind::Causal).unwrap();
        }
        builder.finish().clone()
    };
    let groups = (0..).zip(groups).map(of_group).collect();
    StepInputs { tokens: inputs.tokens.clone(), positions: inputs.positions.clone(), groups }
}

fn run(runner: &mut Runner<CpuDevice>, inputs: &StepInputs) -> (Ran, Vec<u32>) {
    let ran = runner.forward(inputs).unwrap();
    let rows: Vec<u32> = (0..inputs.tokens.len() as u32).collect();
    let logits = runner.logits(&rows).unwrap();
    (ran, logits.block(0..rows.len()).iter().map(|l| l.to_bits()).collect())
}

#[test]
fn padded_and_ragged_replays_give_the_bits_of_eager_steps_and_allocate_nothing() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.available()) {
        for (dtype, threads) in [(Dtype::F32, 1), (Dtype::Bf16, 2), (Dtype::F16, 1)] {
            let what = format!("{isa}, {dtype:?}, {threads} threads");
            let pair = (runner(dtype, isa, threads), runner(dtype, isa, threads));
            replays_are_eager_steps(pair, &steps(), threads == 1, &what);
        }
    }
    let ((eager, groups), (graph, _)) =
        (windowed(Dtype::F32, Isa::detect(), 1), windowed(Dtype::F32, Isa::detect(), 1));
    let steps: Vec<_> = steps().iter().map(|inputs| in_groups(inputs, &groups)).collect();
    replays_are_eager_steps((eager, graph), &steps, true, "two groups");
    what_was_not_captured_runs_eagerly_and_says_why();
}

fn replays_are_eager_steps(
    (mut eager, mut graph): (Runner<CpuDevice>, Runner<CpuDevice>),
    steps: &[StepInputs],
    one_thread: bool,
    what: &str,
) {
    // Few sizes, so that nearly every step is padded in rows and in sequences.
    graph.capture(&CaptureSizes::new(vec![4, 16, ROWS], (1..=5).collect())).unwrap();
    for inputs in steps {
        let (_, expected) = run(&mut eager, inputs);
        let (ran, found) = run(&mut graph, inputs);
        assert!(
            matches!(ran, Ran::Graph(key) if key.token_rows as usize >= inputs.tokens.len()),
            "{what}: {ran:?}"
        );
        assert!(found == expected, "{what}: {ran:?} differs from the eager step");
    }
    let rows: Vec<u32> = (0..ROWS).collect();
    // A second thread may get its first work very late, so that eager steps are looked at on one thread only.
    let eager = one_thread.then_some((&mut eager, "eagerly"));
    for (runner, how) in [(&mut graph, "by graphs")].into_iter().chain(eager) {
        // Each thread's buffers grow when it first gets the work: once all have, there is nothing to ask for.
        let mut round = || {
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            for inputs in steps {
                runner.forward(inputs).unwrap();
                runner.logits(&rows[..inputs.tokens.len()]).unwrap();
            }
            ALLOCATIONS.load(Ordering::Relaxed) - before
        };
        // The first piece of work that a thread takes grows its buffers. On a busy machine that may be late; then never again.
        // (Collecting the counts allocates between the rounds, not in them.)
        let mut last = Vec::new();
        let steady = (0..20).any(|_| {
            last = (0..50).map(|_| round()).collect();
            last.iter().all(|&allocations| allocations == 0)
        });
        assert!(steady, "{what}, {how}: allocations of the last 50 rounds {last:?}");
    }
}

/// In the same test, as another thread's allocations would be counted.
fn what_was_not_captured_runs_eagerly_and_says_why() {
    let mut runner = runner(Dtype::F32, Isa::detect(), 1);
    runner.capture(&CaptureSizes::new(vec![1, 8], vec![1, 2])).unwrap();
    assert_eq!(runner.forward(&step(&[(0, 3)])).unwrap(), Ran::Eager(Some(Fallback::QueryTooLong)));
    let many = step(&[(0, 2), (0, 2), (0, 2), (0, 2), (0, 1)]);
    assert_eq!(runner.forward(&many).unwrap(), Ran::Eager(Some(Fallback::TooManyTokenRows)));
    let key = GraphKey { token_rows: 8, max_query_len: 2, sequences: 1, segment: 0 };
    assert_eq!(runner.forward(&step(&[(0, 2)])).unwrap(), Ran::Graph(key));
    runner.set_enforce_eager(true);
    assert_eq!(runner.forward(&step(&[(0, 2)])).unwrap(), Ran::Eager(None));
    let counts = runner.counts();
    assert_eq!((counts.replays, counts.eager), (1, 3));
    assert_eq!(counts.fallbacks.values().sum::<u64>(), 2);
}
