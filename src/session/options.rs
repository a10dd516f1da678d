//! What an engine is built from.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use pagedraft_attention::isa::Isa;
use pagedraft_model::Dtype;
use pagedraft_scheduler::Policy;
use pagedraft_workloads::trace::TraceTables;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// A Hugging Face style directory.
    Directory(PathBuf),
    /// An embedded model, by name.
    Builtin(String),
}

impl FromStr for ModelRef {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text.strip_prefix("builtin:") {
            Some(name) => ModelRef::Builtin(name.to_owned()),
            None => ModelRef::Directory(PathBuf::from(text)),
        })
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelRef::Directory(path) => write!(f, "{}", path.display()),
            ModelRef::Builtin(name) => write!(f, "builtin:{name}"),
        }
    }
}

/// Where the weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LoadFormat {
    /// The model's safetensors.
    #[default]
    Auto,
    /// Drawn from the seed; only `config.json` is read.
    Dummy,
}

/// Where a trace goes.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// Directory; made if missing.
    pub dir: PathBuf,
    /// How block tables are written.
    pub tables: TraceTables,
}

/// What an engine is built from: the engine flags of the command line.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The model.
    pub model: ModelRef,
    /// Its weights.
    pub load_format: LoadFormat,
    /// Tokens a KV block.
    pub block_size: u32,
    /// KV blocks; by default as many as `kv_cache_memory` holds.
    pub num_blocks: Option<u32>,
    /// Bytes of KV cache where `num_blocks` is not given (default 1 GiB).
    pub kv_cache_memory: Option<u64>,
    /// Greatest number of requests in a step.
    pub max_num_seqs: u32,
    /// Token budget of a step.
    pub max_num_batched_tokens: u32,
    /// Greatest length of a sequence; by default the model's.
    pub max_model_len: Option<u32>,
    /// Greatest piece of a prompt in a step; by default what the budget leaves.
    pub prefill_chunk: Option<u32>,
    /// Whether prompts reuse the KV of equal prefixes.
    pub enable_prefix_caching: bool,
    /// Whether a prompt may be computed in pieces.
    pub enable_chunked_prefill: bool,
    /// Who is served first.
    pub policy: Policy,
    /// Data type of weights and KV; by default the checkpoint's.
    pub dtype: Option<Dtype>,
    /// Threads of the CPU device.
    pub threads: usize,
    /// Instruction set; by default the machine's best.
    pub isa: Option<Isa>,
    /// Seed of dummy weights and of anything drawn.
    pub seed: u64,
    /// The trace to write.
    pub trace: Option<TraceOptions>,
}

impl EngineOptions {
    /// What `model` runs with where nothing is said: blocks of 16 tokens, a step of 2,048 tokens and 256 sequences at most,
    /// chunked prefill and the prefix cache on, first come first served, one thread, seed 0, no trace.
    pub fn new(model: ModelRef) -> Self {
        Self {
            model,
            load_format: LoadFormat::default(),
            block_size: 16,
            num_blocks: None,
            kv_cache_memory: None,
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            max_model_len: None,
            prefill_chunk: None,
            enable_prefix_caching: true,
            enable_chunked_prefill: true,
            policy: Policy::default(),
            dtype: None,
            threads: 1,
            isa: None,
            seed: 0,
            trace: None,
        }
    }
}
