//! The flags that every command with an engine has.

use std::io::Write;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use pagedraft::exit::{usage, usage_hint};
use pagedraft::session::{
    DeviceRef, DsaTraceOptions, EngineOptions, IndexerKvDtype, InstructionSet, KvTiers, LoadFormat,
    MOST_LOGIT_ROWS, ModelRef, PruneOptions, Session, SessionInfo, TraceOptions, local_pool,
};
use pagedraft_attention::isa::Isa;
use pagedraft_model::cuda::{self, KvStorage};
use pagedraft_model::tiers::LocalPool;
use pagedraft_model::{ActivationType, Dtype, Quantization};
use pagedraft_scheduler::Policy;
use pagedraft_workloads::run::LineFormat;
use pagedraft_workloads::trace::{DsaFormat, DsaRows, TraceTables, TraceWriter};

use super::diffusion_flags::DiffusionFlags;
use super::interrupt;
use super::prune_flags::PruneFlags;
use super::speculation_flags::SpeculationFlags;
use super::tensor_flags::TensorFlags;

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Engine")]
pub struct EngineFlags {
    /// A Hugging Face style directory, a GGUF file, or `builtin:target`, `builtin:draft`, `builtin:dsa`, `builtin:recall` or `builtin:llada`
    #[arg(long, value_name = "DIR|FILE.gguf|builtin:NAME", default_value = "builtin:target")]
    pub model: ModelRef,
    /// `dummy`: weights drawn from --seed, only config.json (or a GGUF file's metadata) is needed
    #[arg(long, value_enum, default_value = "auto")]
    pub load_format: LoadFormat,
    /// Tokens a KV block: 16, 32 or 64
    #[arg(long, value_name = "TOKENS", default_value = "16", value_parser = block_size)]
    pub block_size: u32,
    /// KV blocks (default: what --kv-cache-memory holds)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub num_blocks: Option<u32>,
    /// Memory for KV blocks, as 512M or 4G (default 1G)
    #[arg(long, value_name = "BYTES", value_parser = bytes, conflicts_with = "num_blocks")]
    pub kv_cache_memory: Option<u64>,
    /// Most sequences in a step
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_num_seqs: u32,
    /// Most tokens in a step
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_num_batched_tokens: u32,
    /// Greatest length of a sequence (default: the model's)
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_model_len: Option<u32>,
    /// Most keys that a query attends to, of a model with sparse attention (default: the model's)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    index_topk: Option<u32>,
    /// KV blocks of a model with sparse attention that tier 0 holds in each layer (default: all); the others' latents lie in the pools
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    kv_hbm_blocks: Option<u32>,
    /// The pool behind tier 0: its size, as 4G, in host memory or in a file that is mapped
    #[arg(long, value_name = "SIZE[:FILE]", value_parser = |text: &str| local_pool(text, bytes))]
    kv_local_pool: Option<LocalPool>,
    /// The pool behind that: file:///DIRECTORY or redis://HOST:PORT, or s3://BUCKET/DIRECTORY where the program was built with `s3-pool`
    #[arg(long, value_name = "URL")]
    kv_remote_pool: Option<String>,
    /// How the indexer's keys of a model with sparse attention are cached
    #[arg(long, value_enum, default_value_t)]
    indexer_kv_dtype: IndexerKvDtype,
    /// Greatest piece of a prompt in a step (default: what the token budget leaves)
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub prefill_chunk: Option<u32>,
    /// Reuse the KV of equal prefixes (default on; off for benchmarks)
    #[arg(long, overrides_with = "no_enable_prefix_caching")]
    enable_prefix_caching: bool,
    /// Compute every prompt anew
    #[arg(long, overrides_with = "enable_prefix_caching")]
    no_enable_prefix_caching: bool,
    /// Compute long prompts in pieces (default on)
    #[arg(long, overrides_with = "no_enable_chunked_prefill")]
    enable_chunked_prefill: bool,
    /// Compute every prompt in one step
    #[arg(long, overrides_with = "enable_chunked_prefill")]
    no_enable_chunked_prefill: bool,
    /// Who is served first
    #[arg(long, value_enum, default_value = "fcfs")]
    policy: PolicyName,
    /// Data type of weights and KV (default: the checkpoint's)
    #[arg(long, value_enum, default_value = "auto")]
    dtype: DtypeName,
    /// The matrices of the layers and the output head in 8-bit integers, on the CPU, and those of a draft model; the embedding stays as it is
    #[arg(long, value_enum, value_name = "TYPE", default_value = "auto")]
    quantization: QuantizationName,
    /// What products with 8-bit weights round their inputs to [default: int8]
    #[arg(long, value_enum, value_name = "TYPE")]
    activations: Option<ActivationsName>,
    /// CPU threads (default: as many as there are cores)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Instruction set of the kernels (default: the machine's best)
    #[arg(long, value_enum, default_value = "auto")]
    isa: IsaName,
    /// Where to run (default: auto, a GPU where one can be used)
    #[arg(long, value_enum)]
    device: Option<Device>,
    /// `fp8`: keys and values in 8 bits, with a scale a token and head (on a GPU)
    #[arg(long, value_enum, value_name = "TYPE", default_value = "auto")]
    kv_cache_dtype: KvDtypeName,
    /// Let a GPU's libraries choose by the batch how they compute: results then depend on it
    #[arg(long)]
    no_deterministic: bool,
    /// Issue every operation, capture no graphs
    #[arg(long)]
    pub enforce_eager: bool,
    /// Token rows that graphs are captured at, 512 and --max-num-batched-tokens at most (default: up to what --max-num-seqs rows
    /// can have, in steps of a quarter at most)
    #[arg(long, value_name = "N,N,..", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    graph_sizes: Option<Vec<u32>>,
    /// Share of replayed steps that are run eagerly as well and compared; a difference is an error
    #[arg(long, value_name = "RATE", default_value_t = 0.0, value_parser = rate)]
    pub shadow_rate: f64,
    /// Replay verify steps on graphs captured for single tokens
    #[arg(long, value_enum, hide = true)]
    pub inject_fault: Option<Fault>,
    /// Seed of everything random
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Write a trace of every step to this directory
    #[arg(long, value_name = "DIR")]
    pub trace_out: Option<PathBuf>,
    /// `delta`: a block table only where it changed
    #[arg(long, value_enum, default_value = "full")]
    trace_tables: Tables,
    /// jsonl, jsonl.zst, or parquet (made when the run ends)
    #[arg(long, value_name = "FORMAT", default_value_t)]
    pub trace_format: LineFormat,
    /// Begin another file of a trace's steps, records of sparse attention or tensor events when one has this many bytes; a trace that is there
    /// already is then gone on with
    #[arg(long, value_name = "BYTES", value_parser = bytes, requires = "trace_out")]
    trace_rotate_bytes: Option<u64>,
    /// Which rows of a model with sparse attention have records of what they attended to, in `dsa_topk.*` beside the steps: off,
    /// decode, verify (those too), or all (prefills too) [default: decode]
    #[arg(long, value_name = "ROWS")]
    trace_dsa: Option<DsaRows>,
    /// How these records are stored
    #[arg(long, value_enum, default_value = "compact")]
    trace_dsa_format: DsaFormatName,
    /// Share of the query tokens that have such records
    #[arg(long, value_name = "RATE", default_value_t = 1.0, value_parser = rate)]
    trace_sample_rate: f64,
    /// Have the score of each chosen key in such records, and not only the least, the mean and the greatest
    #[arg(long)]
    trace_store_scores: bool,
    /// Tokens of a prompt that `prefix_key` in these records stands for, at most
    #[arg(long, value_name = "TOKENS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    trace_prefix_key_tokens: u32,
    #[command(flatten)]
    pub tensors: TensorFlags,
    #[command(flatten)]
    prune: PruneFlags,
    #[command(flatten)]
    pub diffusion: DiffusionFlags,
    #[command(flatten)]
    pub speculation: SpeculationFlags,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Fault {
    DecodeGraphForVerify,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PolicyName {
    /// First come, first served
    Fcfs,
    /// By the requests' priority, lower first
    Priority,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DtypeName {
    Auto,
    #[value(alias = "float32", alias = "float")]
    F32,
    #[value(alias = "float16", alias = "half")]
    F16,
    #[value(alias = "bfloat16")]
    Bf16,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum QuantizationName {
    /// As the checkpoint is: in 8 bits, as a GGUF file stores each matrix, or none
    Auto,
    /// In the type that --dtype says
    None,
    /// In 8-bit integers, with a scale for each 64 inputs of an output
    Int8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ActivationsName {
    /// To 8-bit integers, with a scale for each 64 inputs of a row
    Int8,
    /// To nothing: weights are widened to f32 for each product, which is many times slower
    F32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KvDtypeName {
    /// That of the weights
    Auto,
    Fp8,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum IsaName {
    Auto,
    Amx,
    Avx512bf16,
    Avx512,
    Avx2,
    Neon,
    Portable,
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Device {
    Auto,
    Cpu,
    Cuda,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DsaFormatName {
    /// Coded, some 40 times smaller; `trace export` makes JSON, Parquet or .npy of it
    Compact,
    /// A JSON object a line
    Jsonl,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Tables {
    Full,
    Delta,
}

impl EngineFlags {
    /// The options of the engine that these flags ask for. `prefix_caching` is used if no flag says
    /// anything about it.
    pub fn options(&self, prefix_caching: bool) -> anyhow::Result<EngineOptions> {
        Ok(EngineOptions {
            model: self.model.clone(),
            load_format: self.load_format,
            block_size: self.block_size,
            num_blocks: self.num_blocks,
            kv_cache_memory: self.kv_cache_memory,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            max_model_len: self.max_model_len,
            index_topk: self.index_topk,
            kv_tiers: KvTiers {
                hbm_blocks: self.kv_hbm_blocks,
                local_pool: self.kv_local_pool.clone(),
                remote_pool: self.kv_remote_pool.clone(),
                ..KvTiers::default()
            },
            indexer_kv_dtype: self.indexer_kv_dtype,
            prefill_chunk: self.prefill_chunk,
            enable_prefix_caching: said(self.enable_prefix_caching, self.no_enable_prefix_caching)
                .unwrap_or(prefix_caching),
            enable_chunked_prefill: said(self.enable_chunked_prefill, self.no_enable_chunked_prefill)
                .unwrap_or(true),
            policy: match self.policy {
                PolicyName::Fcfs => Policy::Fcfs,
                PolicyName::Priority => Policy::Priority,
            },
            device: self.device(),
            kv: match self.kv_cache_dtype {
                KvDtypeName::Auto => KvStorage::Model,
                KvDtypeName::Fp8 => KvStorage::Fp8,
            },
            deterministic: !self.no_deterministic,
            dtype: match self.dtype {
                DtypeName::Auto => None,
                DtypeName::F32 => Some(Dtype::F32),
                DtypeName::F16 => Some(Dtype::F16),
                DtypeName::Bf16 => Some(Dtype::Bf16),
            },
            quantization: match self.quantization {
                QuantizationName::Auto => None,
                QuantizationName::None => Some(Quantization::None),
                QuantizationName::Int8 => Some(Quantization::Int8(ActivationType::default())),
            },
            activations: self.activations.map(|name| match name {
                ActivationsName::Int8 => ActivationType::Int8,
                ActivationsName::F32 => ActivationType::F32,
            }),
            threads: self.threads.map_or_else(cores, |threads| threads as usize),
            isa: match self.isa {
                IsaName::Auto => None,
                IsaName::Amx => Some(Isa::Amx),
                IsaName::Avx512bf16 => Some(Isa::Avx512Bf16),
                IsaName::Avx512 => Some(Isa::Avx512),
                IsaName::Avx2 => Some(Isa::Avx2),
                IsaName::Neon => Some(Isa::Neon),
                IsaName::Portable => Some(Isa::Portable),
            },
            seed: self.seed,
            speculation: self.speculation.options()?,
            enforce_eager: self.enforce_eager,
            graph_sizes: self.graph_sizes.clone(),
            shadow_rate: self.shadow_rate,
            inject_decode_graph_for_verify: self.inject_fault.is_some(),
            // Only `generate` has a flag for it.
            return_indexer_topk: false,
            prune: self.prune.options(),
            diffusion: self.diffusion.options(),
            trace: self.trace_options()?,
            trace_rotate_bytes: self.trace_rotate_bytes,
            trace_dsa: self.trace_dsa_options(),
            trace_tensors: self.tensors.tracing(),
            attaches_trace: false,
            interrupt: Some(interrupt::flag()),
        })
    }

    /// The device that was asked for. If `auto` was written out and there is no GPU, the user is told.
    fn device(&self) -> DeviceRef {
        match self.device {
            Some(Device::Cpu) => DeviceRef::Cpu,
            Some(Device::Cuda) => DeviceRef::Cuda,
            None => DeviceRef::Auto,
            Some(Device::Auto) => match cuda::probe() {
                Ok(()) => DeviceRef::Auto,
                Err(why) => {
                    note(&format!("--device auto runs on the CPU: {why}"));
                    DeviceRef::Cpu
                }
            },
        }
    }

    /// Writes notes to standard error: why the GPU was not used although `auto` was written out, and which
    /// flags a CPU has no use for.
    pub fn tell_of_the_device(&self, info: &SessionInfo) {
        if let (Some(Device::Auto), Some(why)) = (self.device, &info.no_gpu) {
            note(&format!("--device auto runs on the CPU: {why}"));
        }
        if info.skipped_layers > 0 {
            let layers = info.skipped_layers;
            note(&format!(
                "{layers} layer(s) for multi-token prediction are left out: nothing here drafts with them"
            ));
        }
        if let Some(asked) = self.num_blocks.filter(|&asked| asked > info.num_blocks) {
            let held = info.num_blocks;
            note(&format!(
                "tier 0 and the local pool hold {held} KV blocks, so there are no {asked} (--num-blocks)"
            ));
        }
        if self.no_deterministic && matches!(info.isa, InstructionSet::Cpu(_)) {
            note("--no-deterministic changes nothing: the CPU's kernels are deterministic always");
        }
    }

    /// Writes to standard error what the KV tiers did, if there are any.
    pub fn tell_of_the_tiers(&self, session: &mut Session) {
        let Some(counts) = session.tier_counts() else { return };
        let below = counts.local_pool.cells + counts.remote_pool.cells + counts.refuge.cells;
        let share = 100.0 * counts.hits as f64 / (counts.hits + below).max(1) as f64;
        note(&format!(
            "KV tiers: {share:.1} % of {} reads of a block in a layer were in tier 0, {} came from the local pool, {} from the \
             remote one, {} from memory of last resort; {} were lost, and {} token rows computed again",
            counts.hits + below,
            counts.local_pool.cells,
            counts.remote_pool.cells,
            counts.refuge.cells,
            counts.lost_cells,
            counts.lost_rows
        ));
    }

    /// Refuses what was asked for in so many words and means nothing for a model that fills masks.
    pub fn refuse_for_canvases(&self, info: &SessionInfo) -> anyhow::Result<()> {
        if info.mask_token_id.is_none() || !self.enable_prefix_caching {
            return Ok(());
        }
        let error = anyhow!(
            "--enable-prefix-caching: {} fills masks in a canvas, and the KV of a prompt depends on the canvas behind it, so that no other request can use it",
            info.model_id
        );
        Err(usage_hint(error, "leave it out"))
    }

    /// Refuses KV tiers where they are asked for and `who` has none.
    pub fn refuse_tiers(&self, who: &str) -> anyhow::Result<()> {
        let Some(flag) = self.tier_flag() else { return Ok(()) };
        let error = anyhow!("{flag}: {who} keeps no KV, and so has no tiers for it");
        Err(usage_hint(error, "leave it out, or use --executor real with a model"))
    }

    /// Refuses KV tiers of several engines, which would share a file or a store.
    pub fn refuse_tiers_of_several(&self) -> anyhow::Result<()> {
        let Some(flag) = self.tier_flag() else { return Ok(()) };
        let error = anyhow!("{flag}: the tiers of several engines would write to one pool");
        Err(usage_hint(error, "leave it out, or leave out --replicas"))
    }

    /// A flag of KV tiers that was given.
    fn tier_flag(&self) -> Option<&'static str> {
        match (&self.kv_hbm_blocks, &self.kv_local_pool, &self.kv_remote_pool) {
            (Some(_), _, _) => Some("--kv-hbm-blocks"),
            (_, Some(_), _) => Some("--kv-local-pool"),
            (_, _, Some(_)) => Some("--kv-remote-pool"),
            _ => None,
        }
    }

    /// Writes notes to standard error about flags that have no effect.
    pub fn tell_what_is_idle(&self) {
        let idle = self.speculation.idle();
        if !idle.is_empty() {
            note(&format!("nobody proposes drafts, so nothing looks at {}: add --draft", idle.join(", ")));
        }
        let rows = self.trace_dsa.filter(|&rows| rows != DsaRows::Off);
        if let Some(rows) = rows.filter(|_| self.prune.options() != PruneOptions::default()) {
            note(&format!(
                "--trace-dsa {rows}: no records are written, because each has one block table, and an engine that prunes has one for each run of layers"
            ));
        }
        if !self.enforce_eager {
            self.tell_what_is_not_captured();
        }
    }

    /// Writes a note to standard error about sizes of `--graph-sizes` that are greater than any step.
    pub fn tell_what_is_not_captured(&self) {
        let most = MOST_LOGIT_ROWS.min(self.max_num_batched_tokens);
        let beyond = self.graph_sizes.iter().flatten().filter(|&&size| size > most);
        let beyond: Vec<String> = beyond.map(ToString::to_string).collect();
        if !beyond.is_empty() {
            let sizes = beyond.join(", ");
            note(&format!(
                "--graph-sizes {sizes} is not captured: a graph has {most} token rows at most here"
            ));
        }
    }

    /// The trace that these flags ask for. It is checked before a model is loaded, which would be in vain.
    fn trace_options(&self) -> anyhow::Result<Option<TraceOptions>> {
        let Some(dir) = &self.trace_out else { return Ok(None) };
        if dir.exists() && !dir.is_dir() {
            return Err(usage(anyhow!("trace directory {} is not a directory", dir.display())));
        }
        if self.trace_rotate_bytes.is_some() && self.trace_format == LineFormat::Parquet {
            let error = anyhow!(
                "--trace-rotate-bytes cuts a trace while it is written, and Parquet is made when it ends"
            );
            return Err(usage_hint(error, "use --trace-format jsonl or jsonl.zst"));
        }
        if self.trace_rotate_bytes.is_none()
            && let Some(file) = TraceWriter::occupied(dir)
        {
            let error = anyhow!("trace directory {} holds a {file} already", dir.display());
            return Err(usage_hint(error, "name another directory, or an empty one"));
        }
        Ok(Some(TraceOptions { dir: dir.clone(), tables: self.tables(), format: self.trace_format }))
    }

    /// What a trace records of sparse attention.
    fn trace_dsa_options(&self) -> DsaTraceOptions {
        DsaTraceOptions {
            rows: self.trace_dsa.unwrap_or_default(),
            sample_rate: self.trace_sample_rate,
            prefix_key_tokens: self.trace_prefix_key_tokens,
            store_scores: self.trace_store_scores,
            format: match self.trace_dsa_format {
                DsaFormatName::Compact => DsaFormat::Compact,
                DsaFormatName::Jsonl => DsaFormat::Jsonl,
            },
        }
    }

    /// Refuses records of sparse attention where they are asked for and the run writes none, because of `why`.
    pub fn refuse_trace_dsa(&self, why: &str) -> anyhow::Result<()> {
        match self.trace_dsa.filter(|&rows| rows != DsaRows::Off) {
            None => Ok(()),
            Some(rows) => Err(usage_hint(
                anyhow!("--trace-dsa {rows}: {why}"),
                "leave it out, or run the model and let it write a trace",
            )),
        }
    }

    /// Which block tables a trace has.
    pub fn tables(&self) -> TraceTables {
        match self.trace_tables {
            Tables::Full => TraceTables::Full,
            Tables::Delta => TraceTables::Delta,
        }
    }
}

pub fn note(text: &str) {
    // It does no harm if the note is lost because standard error is closed.
    let _ = writeln!(std::io::stderr(), "note: {text}");
}

/// What a pair of opposite flags says. clap keeps only the last one given.
fn said(yes: bool, no: bool) -> Option<bool> {
    (yes || no).then_some(yes)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Reads a block size for which there are kernels.
pub fn block_size(text: &str) -> Result<u32, String> {
    text.parse()
        .ok()
        .filter(|size| matches!(size, 16 | 32 | 64))
        .ok_or_else(|| "block sizes are 16, 32 and 64".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.0..=1.0).contains(rate));
    rate.ok_or_else(|| "a rate is a number from 0 to 1".to_owned())
}

pub fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        unit => return Err(format!("unknown unit {unit}: use K, M or G")),
    };
    let number: f64 = digits.parse().map_err(|_| "not a number of bytes, such as 512M or 4G".to_owned())?;
    let bytes = number * (1u64 << shift) as f64;
    if (1.0..9e18).contains(&bytes) {
        Ok(bytes as u64)
    } else {
        Err("not a possible amount of memory".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        engine: EngineFlags,
    }

    fn options(arguments: &[&str]) -> anyhow::Result<EngineOptions> {
        let line = Line::try_parse_from(std::iter::once("x").chain(arguments.iter().copied()))?;
        line.engine.options(true)
    }

    #[test]
    fn the_last_of_two_opposite_flags_stands() {
        let caching = |arguments: &[&str]| options(arguments).unwrap().enable_prefix_caching;
        assert!(caching(&[]) && caching(&["--enable-prefix-caching"]));
        assert!(!caching(&["--enable-prefix-caching", "--no-enable-prefix-caching"]));
        assert!(caching(&["--no-enable-prefix-caching", "--enable-prefix-caching"]));
        assert!(!options(&["--no-enable-chunked-prefill"]).unwrap().enable_chunked_prefill);
    }

    #[test]
    fn memory_is_read_with_its_unit() {
        assert_eq!(bytes("4G"), Ok(4 << 30));
        assert_eq!(bytes("1.5MiB"), Ok(3 << 19));
        assert_eq!(bytes("4096"), Ok(4096));
        for bad in ["", "G", "-1", "nan", "4T", "1e30G"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_this_build_has_not_is_refused() {
        let unknown = [
            ["--draft", "synthetic:1.5"],
            ["--scorer", "tree"],
            ["--num-speculative-tokens", "65"],
            ["--shadow-rate", "2"],
            ["--block-size", "17"],
            ["--threads", "0"],
        ];
        for unknown in unknown {
            assert!(options(&unknown).is_err(), "{unknown:?}");
        }
        assert!(options(&["--ngram-min", "3", "--ngram-max", "2"]).is_err());
        assert!(options(&["--draft", "ngram", "--draft-cost", "0.1"]).is_err());
    }
}
