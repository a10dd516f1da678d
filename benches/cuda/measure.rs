//! The timings, and the lower bounds and goals that they are compared with.

use std::time::Instant;

use pagedraft_attention::MetadataBuilder;
use pagedraft_attention::metadata::MaskKind;
use pagedraft_block_manager::BlockId;
use pagedraft_model::cuda::{Backend, CudaDevice, Purpose};
use pagedraft_model::{Choice, Device, KvRef, Op, Precision, Runner, StepInputs};
use pagedraft_workloads::latency::Spread;

use crate::data::fill;
use crate::shapes::{LLAMA_8B, ONE_LAYER, QWEN3_0_6B, Room, Shape, scaled, small};
use crate::table::Table;

/// The number of steps that are timed, after the steps of the warm-up.
const STEPS: usize = 40;
const WARM_UP: usize = 5;
/// The operations per second of an H100 SXM on dense bf16 with f32 sums, from its data sheet. A step's operations divided
/// by this are a lower bound of its time, as is the time to read its bytes.
const FLOPS: f64 = 989e12;

/// A step of equal rows: the number of sequences, the context of each, and its number of query tokens. With `expanded`,
/// each query token is a row of its own.
#[derive(Clone, Copy)]
pub struct Case {
    pub sequences: u32,
    pub context: u32,
    pub queries: u32,
    pub expanded: bool,
}

impl Case {
    pub fn inputs(self, length: u32) -> StepInputs {
        let Self { sequences, context, queries, expanded } = self;
        let per_sequence = length.div_ceil(16);
        let mut builder = MetadataBuilder::new(16).expect("a block size");
        let mut positions = Vec::new();
        for s in 0..sequences {
            // The blocks are scattered, as they are in a pool after some use.
            let all = sequences * per_sequence;
            let block = |b: u32| BlockId((u64::from(s * per_sequence + b) * 7919 % u64::from(all)) as u32);
            let table: Vec<_> = (0..(context + queries).div_ceil(16)).map(block).collect();
            if expanded {
                for q in 0..queries {
                    builder.push_row(context + q, 1, &table, MaskKind::Causal).expect("a row");
                }
            } else {
                builder.push_row(context, queries, &table, MaskKind::Causal).expect("a row");
            }
            positions.extend(context..context + queries);
        }
        let tokens = (0..positions.len() as u32).map(|t| t * 37 % 150).collect();
        StepInputs::dense(tokens, positions, builder.finish().clone())
    }
}

/// The median times of a step in seconds, by the GPU's clock and by the host's.
#[derive(Clone, Copy, Debug)]
pub struct Time {
    pub gpu: f64,
    pub wall: f64,
}

fn median(values: &[f64]) -> f64 {
    Spread::of(values).expect("some values").median()
}

const GREEDY: Choice =
    Choice { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0, sample: 0, position: 0 };

/// The rows for which a step chooses a token: all, or the last one alone if logits are not kept for so many rows.
fn chosen_rows(runner: &Runner<CudaDevice>, inputs: &StepInputs) -> Vec<u32> {
    let rows = inputs.tokens.len() as u32;
    let first = if rows as usize > runner.limits().logit_rows { rows - 1 } else { 0 };
    (first..rows).collect()
}

/// Measures steps that end with the choice of tokens.
fn time(runner: &mut Runner<CudaDevice>, inputs: &StepInputs) -> Time {
    let rows = chosen_rows(runner, inputs);
    let choices = vec![GREEDY; rows.len()];
    let (mut gpu, mut wall) = (Vec::new(), Vec::new());
    let steps = if small() { 2 } else { STEPS };
    for i in 0..WARM_UP + steps {
        let start = Instant::now();
        runner.forward(inputs).expect("a step");
        runner.choose(&rows, &choices).expect("tokens");
        let elapsed = start.elapsed().as_secs_f64();
        let busy = busy(runner.device_mut());
        if i >= WARM_UP {
            gpu.push(busy);
            wall.push(elapsed);
        }
    }
    Time { gpu: median(&gpu), wall: median(&wall) }
}

/// The seconds that the GPU was at work since the last call, without copies of inputs.
fn busy(device: &mut CudaDevice) -> f64 {
    device.busy().map_or(0.0, |busy| (busy.forward + busy.choice).as_secs_f64())
}

/// Two pieces of the GPU's memory, for plain copies from one to the other.
struct Copies {
    from: u64,
    to: u64,
    bytes: usize,
}

impl Copies {
    fn new(runner: &mut Runner<CudaDevice>) -> Self {
        let bytes = if small() { 1 << 16 } else { 1 << 30 };
        let backend = runner.device_mut().backend();
        let (from, to) = (
            backend.allocate(bytes, Purpose::Step).expect("memory"),
            backend.allocate(bytes, Purpose::Step).expect("memory"),
        );
        fill(backend, from, bytes);
        Self { from, to, bytes }
    }

    fn copy(&self, backend: &mut impl Backend, bytes: usize) {
        backend.copy(self.from, self.to, bytes.min(self.bytes)).expect("a copy");
    }

    /// The bytes per second that a copy reads and writes.
    fn bandwidth(&self, runner: &mut Runner<CudaDevice>) -> f64 {
        const TIMES: usize = 20;
        let backend = runner.device_mut().backend();
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            backend.fetch(self.to, 1).expect("a read");
            let start = Instant::now();
            (0..TIMES).for_each(|_| self.copy(backend, self.bytes));
            backend.fetch(self.to, 1).expect("a read");
            best = best.min(start.elapsed().as_secs_f64() / TIMES as f64);
        }
        2.0 * self.bytes as f64 / best
    }

    /// The median of the GPU's time for `work` behind a copy. The copy leaves nothing useful in the GPU's cache, and it
    /// takes longer than the host needs to issue the work.
    fn time_behind(
        &self,
        runner: &mut Runner<CudaDevice>,
        mut work: impl FnMut(&mut Runner<CudaDevice>),
    ) -> f64 {
        let times: Vec<f64> = (0..7)
            .map(|_| {
                busy(runner.device_mut());
                self.copy(runner.device_mut().backend(), 256 << 20);
                work(runner);
                runner.device_mut().wait().expect("the GPU");
                busy(runner.device_mut())
            })
            .collect();
        median(&times)
    }
}

/// The bytes that a step must read: every weight once, and the KV of every sequence. Of the embedding only the rows of the
/// tokens are read, unless it is the head's weight as well.
fn bytes(shape: &Shape, case: Case) -> f64 {
    let c = shape.config();
    let embedding = if c.tie_word_embeddings { 0 } else { c.vocab_size * c.hidden_size };
    let weights = 2.0 * (c.num_parameters() as f64 - embedding as f64);
    let kv = 2 * 2 * c.num_kv_heads * c.head_dim * c.num_layers;
    weights + f64::from(case.sequences) * f64::from(case.context) * kv as f64
}

/// The floating point operations of a step: every row is multiplied by the layers' weights, every row whose token is chosen
/// by the head's, and every query by the keys and values that it sees.
fn flops(shape: &Shape, case: Case, chosen: usize) -> f64 {
    let c = shape.config();
    let head = (c.vocab_size * c.hidden_size) as f64;
    let matrices = if c.tie_word_embeddings { 1.0 } else { 2.0 };
    let layers = c.num_parameters() as f64 - matrices * head;
    let [sequences, context, queries] = [case.sequences, case.context, case.queries].map(f64::from);
    let seen = sequences * (queries * context + queries * (queries + 1.0) / 2.0);
    let attention = 4.0 * seen * (c.num_heads * c.head_dim * c.num_layers) as f64;
    2.0 * (sequences * queries * layers + chosen as f64 * head) + attention
}

fn decode_case(sequences: u32, context: u32) -> Case {
    Case { sequences, context, queries: 1, expanded: false }
}

/// Times decode steps at batch sizes 1, 8 and 64, with graphs and eagerly, against the lower bounds.
pub fn decode(table: &mut Table, shape: &Shape) {
    let length = scaled(2048);
    let name = shape.name;
    let room =
        Room { sequences: scaled(64), length, token_rows: scaled(512), deterministic: true, overlap: false };
    for overlap in [false, true] {
        let mut runner = shape.open(Room { overlap, ..room }, &[1, scaled(8), scaled(64)], 1);
        let how = if overlap { ", overlapped" } else { "" };
        let copies = Copies::new(&mut runner);
        let bandwidth = copies.bandwidth(&mut runner);
        if !overlap {
            table.figure(&format!("{name}: plain copy, GB/s"), format!("{:.0}", bandwidth / 1e9), "");
        }
        for (sequences, goal) in [(1, 0.85), (8, 0.75), (64, 0.75)] {
            let case = decode_case(scaled(sequences), scaled(1024));
            let inputs = case.inputs(length);
            let graph = time(&mut runner, &inputs);
            runner.set_enforce_eager(true);
            let eager = time(&mut runner, &inputs);
            runner.set_enforce_eager(false);
            let computing = flops(shape, case, case.sequences as usize) / FLOPS;
            let floor = (bytes(shape, case) / bandwidth).max(computing);
            let label = format!("{name}: decode, batch {sequences}, context 1024{how}");
            table.figure(
                &format!("{label}, ms (wall, eager GPU, eager wall)"),
                format!("{:.3}", graph.gpu * 1e3),
                &format!("{:.3} {:.3} {:.3}", graph.wall * 1e3, eager.gpu * 1e3, eager.wall * 1e3),
            );
            table.figure(
                &format!("{label}, tokens/s"),
                format!("{:.0}", f64::from(case.sequences) / graph.wall),
                "",
            );
            table.at_least(&format!("{label}, floor / step"), floor / graph.gpu, goal);
            if sequences == 1 {
                let (replay, kernels) = replay_and_kernels(&mut runner, &inputs, &copies);
                table.at_most(&format!("{label}, replay / sum of kernels"), replay / kernels, 1.15);
            }
        }
    }
}

/// The time of a replayed step, and the sum of the times of its kernels one by one. Both include the choice of the token.
/// Each is measured behind a copy, less the time that measuring nothing takes.
fn replay_and_kernels(runner: &mut Runner<CudaDevice>, inputs: &StepInputs, copies: &Copies) -> (f64, f64) {
    let rows = chosen_rows(runner, inputs);
    let choices = vec![GREEDY; rows.len()];
    let choose = |runner: &mut Runner<CudaDevice>| {
        runner.choose(&rows, &choices).expect("tokens");
    };
    let nothing = copies.time_behind(runner, |runner| runner.device_mut().run(&[]).expect("nothing"));
    let replay = copies.time_behind(runner, |runner| {
        runner.forward(inputs).expect("a step");
        choose(runner);
    });
    // The logits of the replayed step are still there, so this times the choice alone.
    let choice = copies.time_behind(runner, choose);
    runner.forward_eager(inputs).expect("a step");
    let mut each = vec![("choice".to_owned(), (choice - nothing).max(0.0))];
    for op in runner.operations(inputs.tokens.len()) {
        let kind = format!("{op:?}").split([' ', '{']).next().unwrap_or_default().to_owned();
        let time = copies.time_behind(runner, |runner| {
            runner.device_mut().run(std::slice::from_ref(&op)).expect("a kernel")
        });
        each.push((kind, (time - nothing).max(0.0)));
    }
    let mut kinds: Vec<&str> = each.iter().map(|(kind, _)| kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in kinds {
        let times: Vec<f64> = each.iter().filter(|(k, _)| k == kind).map(|&(_, time)| time).collect();
        println!("  {kind:<14}{:>4} x {:>8.2} us", times.len(), median(&times) * 1e6);
    }
    // A replayed step is measured as two spans: the graph and the choice.
    (replay - 2.0 * nothing, each.iter().map(|(_, time)| time).sum())
}

/// Times decode attention of 64 sequences of 8K tokens against a copy, and verify rows against decode rows.
pub fn attention(table: &mut Table) {
    let (sequences, context, length) = (scaled(64), scaled(8192), scaled(8448));
    let room = Room { sequences, length, token_rows: scaled(512), deterministic: true, overlap: false };
    let mut runner = ONE_LAYER.open(room, &[], 1);
    let bandwidth = Copies::new(&mut runner).bandwidth(&mut runner);
    let config = ONE_LAYER.config();
    let device = runner.device_mut();
    let width = config.num_heads * config.head_dim;
    let q = device.activations(scaled(512) as usize, width, Precision::Working).expect("memory");
    let out = device.activations(scaled(512) as usize, width, Precision::Working).expect("memory");
    let mut alone = |queries: u32, expanded: bool| {
        const TIMES: usize = 20;
        let case = Case { sequences, context, queries, expanded };
        device.bind(&case.inputs(length), None).expect("inputs");
        let rows = (sequences * queries) as usize;
        let scale = 1.0 / (config.head_dim as f32).sqrt();
        let ops = vec![Op::Attention { q, out, kv: KvRef::dense(0), scale, rows }; TIMES];
        let times: Vec<f64> = (0..9)
            .map(|_| {
                device.run(&ops).expect("attention");
                device.wait().expect("the GPU");
                busy(device) / TIMES as f64
            })
            .collect();
        median(&times)
    };
    let (decode, verify, expanded) = (alone(1, false), alone(5, false), alone(5, true));
    let bytes = f64::from(sequences * context) * (2 * 2 * config.num_kv_heads * config.head_dim) as f64;
    table.figure("attention: decode, 64 x 8192, us", format!("{:.1}", decode * 1e6), "");
    table.at_least("attention: decode / copy bandwidth", bytes / decode / bandwidth, 0.8);
    table.at_most("attention: verify rows (k = 4) / decode rows", verify / decode, 1.15);
    table.figure("attention: the same as single tokens / decode", format!("{:.2}", expanded / decode), "");
}

/// Times the MQA scorer against batch expansion.
pub fn scoring(table: &mut Table) {
    let (sequences, length) = (scaled(64), scaled(1040) + 6);
    let room = Room { sequences, length, token_rows: scaled(512), deterministic: true, overlap: false };
    let mut runner = LLAMA_8B.open(room, &[sequences, 6 * sequences], 6);
    for context in [256, 1024] {
        let mut score = |expanded| {
            let case = Case { sequences, context: scaled(context), queries: 6, expanded };
            time(&mut runner, &case.inputs(length)).gpu
        };
        let (mqa, expansion) = (score(false), score(true));
        table.figure(
            &format!("8B: scoring, batch 64, k 5, context {context}, ms (batch expansion)"),
            format!("{:.2}", mqa * 1e3),
            &format!("{:.2}", expansion * 1e3),
        );
        table.at_least(
            &format!("8B: batch expansion / MQA, context {context}"),
            expansion / mqa,
            if context == 1024 { 1.5 } else { 1.0 },
        );
    }
}

/// Times prefills of 2K tokens.
pub fn prefill(table: &mut Table) {
    for shape in [&QWEN3_0_6B, &LLAMA_8B] {
        let (tokens, length) = (scaled(2048), scaled(2064));
        let room = Room { sequences: 1, length, token_rows: tokens, deterministic: true, overlap: false };
        let mut runner = shape.open(room, &[], 1);
        let case = Case { sequences: 1, context: 0, queries: tokens, expanded: false };
        let inputs = case.inputs(length);
        let chosen = chosen_rows(&runner, &inputs).len();
        let found = time(&mut runner, &inputs);
        let name = format!("{}: prefill of 2048 tokens", shape.name);
        table.figure(&format!("{name}, ms"), format!("{:.2}", found.gpu * 1e3), "");
        table.figure(&format!("{name}, tokens/s"), format!("{:.0}", f64::from(tokens) / found.wall), "");
        let share = flops(shape, case, chosen) / FLOPS / found.gpu;
        table.figure(&format!("{name}, share of 989 TFLOP/s"), format!("{share:.3}"), "");
    }
}

/// Times what it costs to get the same bits for every batch, against the free choice of kernels by cuBLASLt.
pub fn promise(table: &mut Table) {
    for shape in [&QWEN3_0_6B, &LLAMA_8B] {
        let (length, batches) = (scaled(1040), [1, 8, 64].map(scaled));
        let room = Room {
            sequences: batches[2],
            length,
            token_rows: scaled(512),
            deterministic: true,
            overlap: false,
        };
        let times = |deterministic| -> Vec<f64> {
            let mut runner = shape.open(Room { deterministic, ..room }, &batches, 1);
            batches.map(|s| time(&mut runner, &decode_case(s, scaled(1008)).inputs(length)).gpu).to_vec()
        };
        let (ours, free) = (times(true), times(false));
        for (i, batch) in [1, 8, 64].into_iter().enumerate() {
            let name = format!("{}: decode, batch {batch}, deterministic / free choice", shape.name);
            table.at_most(&name, ours[i] / free[i], 1.1);
        }
    }
}
