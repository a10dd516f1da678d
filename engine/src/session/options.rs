//! The options of an engine.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::diffusion::Diffusion;
use super::tiers::KvTiers;
use pagedraft_attention::isa::Isa;
use pagedraft_model::checkpoint::IndexKeys;
use pagedraft_model::cuda::KvStorage;
use pagedraft_model::{ActivationType, Dtype, Quantization};
use pagedraft_scheduler::Policy;
use pagedraft_spec_decode::Scorer;
use pagedraft_spec_decode::acceptance::Acceptance;
use pagedraft_spec_decode::tensors::TensorTracing;
use pagedraft_workloads::run::LineFormat;
use pagedraft_workloads::trace::{DsaFormat, DsaRows, TraceTables};

use crate::prune::PruneChoice;

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// A Hugging Face style directory, or a GGUF file.
    Directory(PathBuf),
    /// An embedded model, by name.
    Builtin(String),
}

/// `builtin:NAME`, or the path of a directory or file, which need not be UTF-8.
impl From<OsString> for ModelRef {
    fn from(name: OsString) -> Self {
        match name.to_str().and_then(|text| text.strip_prefix("builtin:")) {
            Some(builtin) => ModelRef::Builtin(builtin.to_owned()),
            None => ModelRef::Directory(PathBuf::from(name)),
        }
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

/// Which prompts are pruned, and where the model is cut for them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PruneOptions {
    /// How requests are pruned that say nothing about it.
    pub all: Option<PruneChoice>,
    /// What other requests will ask for.
    pub others: Vec<PruneChoice>,
    /// The layers behind which the model is cut; by default those that `all` and `others` name.
    pub layers: Option<Vec<u16>>,
}

/// Where tokens of a canvas may skip the later layers of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SkipLayers {
    /// Nowhere.
    #[default]
    Never,
    /// Behind the first half of the layers.
    BehindHalf,
    /// Behind so many layers.
    Behind(u16),
}

impl SkipLayers {
    /// How many of `all` layers every token runs through, if the others can be skipped.
    #[must_use]
    pub fn of(self, all: u16) -> Option<u16> {
        match self {
            Self::Never => None,
            Self::BehindHalf => Some(all / 2),
            Self::Behind(layers) => Some(layers),
        }
    }
}

/// How an engine denoises canvases.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DiffusionOptions {
    /// How the canvases of requests are denoised that say nothing about it. Graphs are captured for its blocks.
    pub all: Diffusion,
    /// Where tokens of a canvas may skip the later layers.
    pub skip_layers: SkipLayers,
    /// Whether a model that has no canvas is refused.
    pub required: bool,
}

/// Where to run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceRef {
    /// On a GPU if one can be used, otherwise on the CPU.
    Auto,
    /// On the CPU.
    #[default]
    Cpu,
    /// On a GPU.
    Cuda,
}

/// Where the weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum LoadFormat {
    /// From the model's own files.
    #[default]
    Auto,
    /// Drawn from the seed. Only `config.json`, or the header of a GGUF file, is read.
    Dummy,
}

/// How the keys of the indexer of a model with sparse attention are cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
#[serde(rename_all = "kebab-case")]
pub enum IndexerKvDtype {
    /// As all other KV.
    #[default]
    Auto,
    /// In fp8 (e4m3) with an f32 scale a key.
    Fp8,
    /// In fp8, multiplied with a Hadamard matrix before.
    Fp8Hadamard,
}

impl IndexerKvDtype {
    /// What the model is told.
    #[must_use]
    pub fn keys(self) -> IndexKeys {
        match self {
            IndexerKvDtype::Auto => IndexKeys::Plain,
            IndexerKvDtype::Fp8 => IndexKeys::Fp8 { hadamard: false },
            IndexerKvDtype::Fp8Hadamard => IndexKeys::Fp8 { hadamard: true },
        }
    }
}

/// Who proposes drafts.
#[derive(Clone, Debug, PartialEq)]
pub enum DraftRef {
    /// A model of the same vocabulary.
    Model(ModelRef),
    /// N-gram look-up: the tokens that followed the last few tokens where these occurred before in the
    /// request.
    Ngram,
    /// Suffix look-up: the tokens that most often followed the last ones, where these occurred before in the request or in outputs of
    /// requests that ended.
    Suffix {
        /// Up to how many tokens of such outputs are kept. Drafts then depend on what ran before, and with them, under any
        /// acceptance but the coupled one, the tokens: only that one is allowed.
        store: u32,
    },
    /// The tokens of the run without speculation, each wrong with probability 1 - rate.
    Synthetic {
        /// The share of drafts that are right.
        rate: f64,
    },
}

impl DraftRef {
    /// The name that reports use.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Model(_) => "draft",
            Self::Ngram => "ngram",
            Self::Suffix { .. } => "suffix",
            Self::Synthetic { .. } => "synthetic",
        }
    }
}

impl DraftRef {
    /// Reads a name from the command line: whatever `from_str` reads, or the path of a directory or
    /// file that is not UTF-8.
    ///
    /// # Errors
    ///
    /// Those of `from_str`: the name is empty, or the rate of synthetic drafts is not valid.
    pub fn named(name: OsString) -> Result<Self, String> {
        match name.to_str() {
            Some(text) => text.parse(),
            None => Ok(Self::Model(name.into())),
        }
    }
}

impl FromStr for DraftRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(
                "name a directory, a GGUF file, builtin:NAME, ngram, suffix or synthetic:RATE".to_owned()
            );
        }
        if text == "ngram" {
            return Ok(Self::Ngram);
        }
        if text == "suffix" {
            return Ok(Self::Suffix { store: 0 });
        }
        if let Some(store) = text.strip_prefix("suffix:") {
            return store.parse().map(|store| Self::Suffix { store }).map_err(|_| {
                "suffix:TOKENS says how many tokens of past outputs are kept, such as suffix:100000"
                    .to_owned()
            });
        }
        if let Some(rate) = text.strip_prefix("synthetic:") {
            let rate = rate.parse().ok().filter(|rate| (0.0..=1.0).contains(rate));
            return rate
                .map(|rate| Self::Synthetic { rate })
                .ok_or_else(|| "the rate of synthetic:RATE is a number from 0 to 1".to_owned());
        }
        if text == "synthetic" {
            return Err("write synthetic:RATE, the share of drafts that are right, from 0 to 1".to_owned());
        }
        Ok(Self::Model(OsString::from(text).into()))
    }
}

impl fmt::Display for DraftRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Model(model) => model.fmt(f),
            Self::Ngram => f.write_str("ngram"),
            Self::Suffix { store: 0 } => f.write_str("suffix"),
            Self::Suffix { store } => write!(f, "suffix:{store}"),
            Self::Synthetic { rate } => write!(f, "synthetic:{rate}"),
        }
    }
}

/// How many drafts a row may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DraftLength {
    /// As many as pay, decided for each request and step. This is never slower than no drafts.
    #[default]
    Auto,
    /// This many, if there is room.
    Fixed(u16),
}

impl DraftLength {
    /// The most drafts of a row under `Auto`.
    pub const AUTO_MAX: u16 = 8;
    /// The most drafts of a row that can be asked for.
    pub const MAX: u16 = 64;

    /// The most drafts of a row.
    pub fn most(self) -> u16 {
        match self {
            Self::Auto => Self::AUTO_MAX,
            Self::Fixed(k) => k,
        }
    }
}

impl FromStr for DraftLength {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let number = text.parse().ok().filter(|k| *k <= Self::MAX);
        number.map(Self::Fixed).ok_or_else(|| format!("a number from 0 to {}, or auto", Self::MAX))
    }
}

impl fmt::Display for DraftLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Fixed(k) => k.fmt(f),
        }
    }
}

/// How an engine speculates.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeculationOptions {
    /// The proposer; without one there are no drafts.
    pub draft: Option<DraftRef>,
    /// The time that a token of the synthetic proposer is made to take, as a share of a decode step.
    pub draft_cost: f64,
    /// The lengths of the shortest and the longest n-gram that is looked up.
    pub ngram: (u32, u32),
    /// The number of drafts of a row.
    pub length: DraftLength,
    /// How verify rows become metadata.
    pub scorer: Scorer,
    /// The acceptance rule.
    pub acceptance: Acceptance,
}

impl Default for SpeculationOptions {
    fn default() -> Self {
        Self {
            draft: None,
            draft_cost: 0.0,
            ngram: (1, 4),
            length: DraftLength::default(),
            scorer: Scorer::default(),
            acceptance: Acceptance::default(),
        }
    }
}

/// Where a trace goes.
#[derive(Clone, Debug)]
pub struct TraceOptions {
    /// The directory. It is made if it does not exist.
    pub dir: PathBuf,
    /// How block tables are written.
    pub tables: TraceTables,
    /// How its lines are stored.
    pub format: LineFormat,
}

/// What a trace records of what a model with sparse attention attends to. It has no effect on other models.
#[derive(Clone, Debug, PartialEq)]
pub struct DsaTraceOptions {
    /// Which rows have records.
    pub rows: DsaRows,
    /// The share of the query tokens that have records, from 0 to 1.
    pub sample_rate: f64,
    /// How many tokens of a prompt `prefix_key` stands for, at most.
    pub prefix_key_tokens: u32,
    /// Whether the records have the score of each chosen key.
    pub store_scores: bool,
    /// How the records are stored.
    pub format: DsaFormat,
}

impl Default for DsaTraceOptions {
    fn default() -> Self {
        Self {
            rows: DsaRows::default(),
            sample_rate: 1.0,
            prefix_key_tokens: 256,
            store_scores: false,
            format: DsaFormat::default(),
        }
    }
}

/// The options of an engine, which are the engine flags of the command line.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// The model.
    pub model: ModelRef,
    /// Where its weights come from.
    pub load_format: LoadFormat,
    /// How many tokens a KV block holds.
    pub block_size: u32,
    /// The number of KV blocks; by default as many as `kv_cache_memory` holds.
    pub num_blocks: Option<u32>,
    /// The bytes of KV cache if `num_blocks` is not given (default 1 GiB).
    pub kv_cache_memory: Option<u64>,
    /// The most requests in a step.
    pub max_num_seqs: u32,
    /// The most token rows in a step.
    pub max_num_batched_tokens: u32,
    /// The greatest length of a sequence; by default the model's.
    pub max_model_len: Option<u32>,
    /// The most keys that a query attends to in a target with sparse attention; by default the model's.
    pub index_topk: Option<u32>,
    /// Where the latents of a target with sparse attention are kept.
    pub kv_tiers: KvTiers,
    /// How the keys of the target's indexer are cached.
    pub indexer_kv_dtype: IndexerKvDtype,
    /// The most tokens of a prompt in one step; by default what the budget leaves.
    pub prefill_chunk: Option<u32>,
    /// Whether prompts reuse the KV of equal prefixes.
    pub enable_prefix_caching: bool,
    /// Whether a prompt may be computed in pieces.
    pub enable_chunked_prefill: bool,
    /// In which order requests are served.
    pub policy: Policy,
    /// The device that it runs on.
    pub device: DeviceRef,
    /// The type of weights and KV; by default the checkpoint's.
    pub dtype: Option<Dtype>,
    /// How the matrices of the models' layers are quantised; by default as the checkpoint is.
    pub quantization: Option<Quantization>,
    /// What products with 8-bit weights round their activations to; by default to 8 bits. It is refused where weights are not in 8 bits.
    pub activations: Option<ActivationType>,
    /// How keys and values are stored.
    pub kv: KvStorage,
    /// Whether a GPU's results depend on the request alone, as the CPU's always do.
    pub deterministic: bool,
    /// The number of threads of the CPU device.
    pub threads: usize,
    /// The instruction set; by default the machine's best.
    pub isa: Option<Isa>,
    /// The seed of dummy weights and of everything that is drawn.
    pub seed: u64,
    /// How it speculates.
    pub speculation: SpeculationOptions,
    /// Whether every step is run operation by operation, without capturing graphs.
    pub enforce_eager: bool,
    /// The numbers of token rows that graphs are captured for, up to 512 or the token budget. By default
    /// they go up to what `max_num_seqs` rows can have, in steps of at most a quarter.
    pub graph_sizes: Option<Vec<u32>>,
    /// The share of replayed steps that are also run eagerly and compared. A difference fails the step.
    pub shadow_rate: f64,
    /// Whether verify steps are replayed on graphs of single tokens, which is wrong. It serves to show that
    /// the fault is noticed.
    pub inject_decode_graph_for_verify: bool,
    /// Whether requests may ask for the keys that the indexers chose
    /// ([`Request::return_indexer_topk`](super::Request::return_indexer_topk)). The target must have sparse
    /// attention.
    pub return_indexer_topk: bool,
    /// Where the model is cut for requests whose prompts are pruned.
    pub prune: PruneOptions,
    /// How canvases are denoised, of a model that fills masks.
    pub diffusion: DiffusionOptions,
    /// The trace to write; `None` for none.
    pub trace: Option<TraceOptions>,
    /// How many bytes of lines a file with that trace's steps may have: it is then given a number, and another one is begun. A trace
    /// with such files that is there already is gone on with.
    pub trace_rotate_bytes: Option<u64>,
    /// What that trace records of sparse attention.
    pub trace_dsa: DsaTraceOptions,
    /// Which tensors that trace records; `None` for none.
    pub trace_tensors: Option<TensorTracing>,
    /// Whether a trace will be [attached](crate::session::Session::attach_trace).
    pub attaches_trace: bool,
    /// Ends the step that runs while it is set: [`Session::step`](super::Session::step) then fails with an error that
    /// [is an interrupt](crate::error::EngineError::is_interrupt). The CPU looks at it once a layer; a GPU's steps are short, and are not interrupted.
    pub interrupt: Option<Arc<AtomicBool>>,
}

impl EngineOptions {
    /// The defaults for `model`: blocks of 16 tokens, at most 2,048 tokens and 256 sequences in a step,
    /// chunked prefill and the prefix cache on, first come first served, the CPU with one thread, seed 0,
    /// no drafts, graphs, and no trace.
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
            index_topk: None,
            kv_tiers: KvTiers::default(),
            indexer_kv_dtype: IndexerKvDtype::default(),
            prefill_chunk: None,
            enable_prefix_caching: true,
            enable_chunked_prefill: true,
            policy: Policy::default(),
            device: DeviceRef::default(),
            dtype: None,
            quantization: None,
            activations: None,
            kv: KvStorage::default(),
            deterministic: true,
            threads: 1,
            isa: None,
            seed: 0,
            speculation: SpeculationOptions::default(),
            enforce_eager: false,
            graph_sizes: None,
            shadow_rate: 0.0,
            inject_decode_graph_for_verify: false,
            return_indexer_topk: false,
            prune: PruneOptions::default(),
            diffusion: DiffusionOptions::default(),
            trace: None,
            trace_rotate_bytes: None,
            trace_dsa: DsaTraceOptions::default(),
            trace_tensors: None,
            attaches_trace: false,
            interrupt: None,
        }
    }
}
