//! The flags of `pagedraft bench latency`.

use std::path::PathBuf;

use clap::Args;

use super::engine_flags::EngineFlags;

#[derive(Clone, Debug, Args)]
pub struct Latency {
    /// Prompt tokens of each request
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub input_len: u32,
    /// Tokens that each request generates
    #[arg(long, value_name = "TOKENS", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub output_len: u32,
    /// Requests of a batch
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: u32,
    /// Batches before those that are timed
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub num_iters_warmup: u32,
    /// Timed batches
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub num_iters: u32,
    /// Run every batch without the promise of determinism as well, and tell what it costs (on a GPU)
    ///
    /// Each iteration then is two batches, one with the deterministic kernels and one with those that cuBLASLt chooses, first one and
    /// then the other first, in one engine on one copy of the weights. Every other figure is of the deterministic batches alone.
    #[arg(long, conflicts_with_all = ["no_deterministic", "trace_out", "shadow_rate"])]
    pub deterministic_cost: bool,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    pub output_json: Option<PathBuf>,
    #[command(flatten)]
    pub engine: EngineFlags,
}
