//! The text that a benchmark of batches prints before it begins.

use pagedraft::session::{InstructionSet, SessionInfo};

use super::machine;

/// The batch, and how often it runs.
#[derive(Clone, Copy, Debug)]
pub struct BatchShape {
    pub batch_size: u32,
    pub input_len: u32,
    pub output_len: u32,
    pub num_iters_warmup: u32,
    pub num_iters: u32,
    pub seed: u64,
}

/// The model, the machine, the cache, the batch and the number of runs, one line each.
pub fn header(info: &SessionInfo, shape: BatchShape) -> String {
    let weights = if info.dummy_weights { ", dummy weights" } else { "" };
    format!(
        "model    {}, {} parameters, {}{weights}\n\
         machine  {}; {}, {}\n\
         cache    {} KV blocks of {} tokens{}\n\
         batch    {} requests x {} prompt tokens -> {} tokens each, greedy\n\
         runs     {} warm-up, {} timed; seed {}, revision {}\n",
        info.model_id,
        count(info.parameters),
        info.types(),
        machine::name(),
        info.isa,
        processor(info),
        info.num_blocks,
        info.block_size,
        shared(info),
        shape.batch_size,
        shape.input_len,
        shape.output_len,
        shape.num_iters_warmup,
        shape.num_iters,
        shape.seed,
        pagedraft::REVISION,
    )
}

/// How several KV groups share the cache, and what that wastes at worst.
fn shared(info: &SessionInfo) -> String {
    match info.kv_groups {
        0 | 1 => String::new(),
        groups => {
            let waste = info.kv_padding_at_worst * 100.0;
            format!(", shared by {groups} KV groups; padding wastes {waste:.1} % of it at worst")
        }
    }
}

fn processor(info: &SessionInfo) -> String {
    match &info.isa {
        InstructionSet::Cpu(_) => plural(info.threads, "thread"),
        InstructionSet::Gpu { .. } if info.deterministic => "the same bits whatever the batch".to_owned(),
        InstructionSet::Gpu { .. } => "cuBLASLt's products: bits depend on the batch".to_owned(),
    }
}

fn count(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{:.0} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

pub(super) fn plural(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}
