//! From options to a loaded engine.

use std::sync::Arc;

use anyhow::{Context, ensure};
use pagedraft_block_manager::{Arena, GroupId, Salt};
use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
use pagedraft_model::cpu::MemoryLimit;
use pagedraft_model::tokenizer::Tokenizer;
use pagedraft_model::{
    AnyArena, AnyDevice, CaptureReport, CaptureSizes, Dtype, ModelError, Runner, StepLimits,
};
use pagedraft_scheduler::{Scheduler, SchedulerConfig};
use pagedraft_spec_decode::ModelExecutor;

use super::builtin;
use super::draft::{DraftParts, PlacedDraft};
use super::gpu_memory::EngineNeed;
use super::kv_salt::KvModel;
use super::log;
use super::options::{EngineOptions, LoadFormat, ModelRef};
use super::placement::{InstructionSet, Place, Placement, instruction_set};
use super::speculation::Setups;
use crate::exit::usage;
use crate::memory_need::{books, ensure_fits};

/// Bytes of KV cache where nothing is said; fewer where that is more than a quarter of what this process may have.
const DEFAULT_KV_CACHE_MEMORY: u64 = 1 << 30;
/// Rows whose logits are computed at a time, at most, so that the head's weights are read once for a batch of verify rows; no
/// graph has more. Their logits take 2 KiB a token of the vocabulary: 297 MiB of 151,936 tokens.
pub const MOST_LOGIT_ROWS: u32 = 512;

/// What an engine was built as.
#[derive(Clone, Debug)]
pub struct SessionInfo {
    /// The model's name: its directory, or `builtin:NAME`.
    pub model_id: String,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Width of a hidden state.
    pub hidden_size: usize,
    /// Parameters of the model.
    pub parameters: u64,
    /// Of weights and KV.
    pub dtype: Dtype,
    /// Of the kernels.
    pub isa: InstructionSet,
    /// Why it is not on a GPU, where `auto` was asked for.
    pub no_gpu: Option<String>,
    /// Whether results depend on nothing but the request.
    pub deterministic: bool,
    /// Threads of the device.
    pub threads: usize,
    /// Greatest length of a sequence.
    pub max_model_len: u32,
    /// KV blocks of the pool.
    pub num_blocks: u32,
    /// Tokens a block.
    pub block_size: u32,
    /// Bytes of KV a block, all layers together.
    pub block_bytes: usize,
    /// The salt of the hashes of KV blocks: it stands for the model, the dtypes and the KV groups.
    pub kv_salt: Salt,
    /// Tokens that end a sequence.
    pub eos_token_ids: Vec<u32>,
    /// Layers of the checkpoint that are left out: those for multi-token prediction.
    pub skipped_layers: usize,
    /// Whether the weights are drawn from a seed.
    pub dummy_weights: bool,
    /// What capturing graphs took, the draft model's included; `None` where every step is eager.
    pub capture: Option<CaptureReport>,
    /// Token rows that the target's graphs were captured at, ascending; empty where every step is eager.
    pub graph_sizes: Vec<u32>,
}

/// The parts of an engine.
pub(super) struct Loaded {
    pub tokenizer: Option<Arc<Tokenizer>>,
    pub scheduler: Scheduler,
    pub executor: ModelExecutor<AnyDevice>,
    pub setups: Setups,
    pub info: SessionInfo,
}

pub(super) fn checkpoint(model: &ModelRef, options: &EngineOptions) -> anyhow::Result<Checkpoint> {
    let checkpoint = match (model, options.load_format) {
        (ModelRef::Builtin(name), LoadFormat::Auto) => builtin::checkpoint(name),
        (ModelRef::Builtin(name), LoadFormat::Dummy) => {
            builtin::checkpoint(name).map(|c| Checkpoint::dummy(c.config().clone(), options.seed))
        }
        (ModelRef::Directory(dir), LoadFormat::Auto) => {
            Checkpoint::open(dir).with_context(|| format!("the model {} does not load", dir.display()))
        }
        (ModelRef::Directory(dir), LoadFormat::Dummy) => Checkpoint::open_dummy(dir, options.seed)
            .with_context(|| format!("the model {} does not load", dir.display())),
    };
    checkpoint.map_err(usage)
}

fn max_model_len(options: &EngineOptions, config: &ModelConfig) -> anyhow::Result<u32> {
    let model = u32::try_from(config.max_position_embeddings).unwrap_or(u32::MAX);
    match options.max_model_len {
        None => Ok(model),
        Some(0) => Err(usage(anyhow::anyhow!("--max-model-len 0: a sequence has at least one token"))),
        Some(asked) if asked > model => Err(usage(anyhow::anyhow!(
            "--max-model-len {asked} is more than the model's own greatest length, {model}"
        ))),
        Some(asked) => Ok(asked),
    }
}

/// Bytes of KV cache where nothing is said.
fn default_kv_cache_memory() -> u64 {
    let limit = MemoryLimit::of_this_process().map_or(u64::MAX, |limit| limit.bytes);
    DEFAULT_KV_CACHE_MEMORY.min(limit / 4)
}

/// Refuses a KV cache that holds nothing, and buffers that there is no memory for, by the flag that asks for them. A GPU's own
/// memory is looked at once its size is known.
fn check_memory(
    options: &EngineOptions,
    config: &ModelConfig,
    num_blocks: u32,
    block_bytes: u128,
    max_model_len: u32,
    on_gpu: bool,
) -> anyhow::Result<()> {
    let flag = match (options.num_blocks, options.kv_cache_memory) {
        (Some(n), _) => format!("--num-blocks {n}"),
        (None, Some(bytes)) => format!("--kv-cache-memory {bytes}"),
        (None, None) => format!("the default KV cache of {} bytes", default_kv_cache_memory()),
    };
    ensure!(num_blocks > 0, "{flag} holds no KV block: one takes {block_bytes} bytes");
    let rows = u128::from(options.max_num_batched_tokens);
    if on_gpu {
        return ensure_fits(&flag, books(num_blocks, 1));
    }
    let parts = [
        (flag, u128::from(num_blocks) * block_bytes.max(books(1, 1))),
        (format!("--max-num-batched-tokens {rows}"), 4 * rows * config.row_values() as u128),
        (format!("--max-model-len {max_model_len}"), 4 * u128::from(max_model_len) * config.head_dim as u128),
    ];
    parts.iter().try_for_each(|(flag, bytes)| ensure_fits(flag, *bytes))
}

pub(super) fn load(options: &EngineOptions) -> anyhow::Result<Loaded> {
    let _span = tracing::debug_span!("load", model = %options.model).entered();
    let mut checkpoint = checkpoint(&options.model, options)?;
    if let Some(keys) = options.index_topk {
        let refused = |e| usage(anyhow::Error::from(e).context("--index-topk"));
        checkpoint.set_index_topk(keys as usize).map_err(refused)?;
    }
    let config = checkpoint.config().clone();
    let max_model_len = max_model_len(options, &config)?;
    let refused = |e: anyhow::Error| usage(e.context("the model that --draft names is refused"));
    let draft = DraftParts::open(options, &checkpoint, max_model_len).map_err(refused)?;
    let beside = draft.as_ref().map(|draft| (&draft.model, draft.checkpoint.config()));
    let (placement, no_gpu) = Placement::new(options, &config, beside)?;
    let draft = draft.map(|draft| draft.place(options, &placement)).transpose().map_err(refused)?;

    let block_bytes = placement.block_bytes(&config)?;
    let draft_bytes = draft.as_ref().map_or(0, PlacedDraft::block_bytes);
    let blocks_in =
        |memory: u64, bytes: u128| u32::try_from(u128::from(memory) / bytes.max(1)).unwrap_or(u32::MAX);
    let num_blocks = match (options.num_blocks, options.kv_cache_memory) {
        (Some(n), _) => n,
        // The arena has room for as many blocks of the draft model.
        (None, Some(memory)) => blocks_in(memory, block_bytes + draft_bytes),
        // A draft model comes on top: the target's plans are the same with it and without.
        (None, None) => blocks_in(default_kv_cache_memory(), block_bytes),
    };
    let (all_bytes, on_gpu) = (block_bytes + draft_bytes, placement.is_gpu());
    check_memory(options, &config, num_blocks, all_bytes, max_model_len, on_gpu).map_err(usage)?;
    let block_bytes = usize::try_from(block_bytes).unwrap_or(usize::MAX);
    // The scheduler refuses bad figures before anything large is allocated.
    let mut target_groups = placement.kv_groups(&config, max_model_len as usize)?;
    let target_ids: Vec<GroupId> = target_groups.iter().map(|group| group.id).collect();
    let dtype = placement.dtype();
    let kv_model = KvModel { fingerprint: checkpoint.fingerprint(), dtype, kv_dtype: dtype };
    let kv_salt = kv_model.salt(&target_groups);
    for group in &mut target_groups {
        group.salt = kv_model.group_salt(group);
    }
    let draft_id = GroupId(u8::try_from(target_groups.len()).unwrap_or(u8::MAX));
    let mut groups = target_groups;
    groups.extend(draft.as_ref().map(|draft| draft.group(draft_id)).transpose()?);
    let scheduler = Scheduler::new(SchedulerConfig {
        block_size: options.block_size,
        num_blocks,
        max_num_seqs: options.max_num_seqs,
        max_num_batched_tokens: options.max_num_batched_tokens,
        max_model_len,
        enable_chunked_prefill: options.enable_chunked_prefill,
        enable_prefix_caching: options.enable_prefix_caching,
        prefill_chunk: options.prefill_chunk,
        num_speculative_tokens: 0,
        policy: options.policy,
        groups,
        segments: Vec::new(),
    })
    .map_err(|e| usage(e.into()))?;

    let limits = step_limits(options, max_model_len);
    let gpu = placement.gpu()?;
    if let Some(gpu) = &gpu {
        let bytes = |blocks: u32| {
            let arena = Arena::plan(scheduler.blocks().block_size(), blocks, scheduler.blocks().groups());
            arena.map_or(u64::MAX, |arena| arena.bytes() as u64)
        };
        // Both models draw from one memory, which has room for as many blocks of either.
        let of_both = bytes(num_blocks);
        let of_draft =
            u64::try_from(draft_bytes * u128::from(num_blocks)).map_or(of_both, |own| own.min(of_both));
        let draft_need = |draft: &PlacedDraft| draft.need(options, of_draft, max_model_len, gpu);
        let need = EngineNeed {
            target: placement.need(&config, of_both - of_draft, limits, gpu)?,
            draft: draft.as_ref().map(draft_need).transpose()?,
            num_blocks,
            block_bytes: u64::try_from(all_bytes).unwrap_or(u64::MAX),
        };
        need.check(gpu.memory()?.0 as u64, bytes)?;
    }
    let failed = || format!("the model {} does not load", options.model);
    let arena = AnyArena::new(scheduler.blocks().arena(), gpu.as_ref()).map_err(|e| {
        // A GPU's memory was asked for above: what it does not grant now is no fault of the options.
        if on_gpu { anyhow::Error::from(e).context(failed()) } else { usage(e.into()) }
    })?;
    let place = Place { arena: &arena, groups: &target_ids, gpu: gpu.as_ref(), beside: None };
    let device = placement.open(&config, limits, place).with_context(failed)?;
    let isa = instruction_set(&device);
    let mut runner = Runner::load(device, &checkpoint, limits).with_context(failed)?;
    let most_drafts = u32::from(options.speculation.length.most());
    let mut capture = None;
    let mut graph_sizes = Vec::new();
    if !options.enforce_eager {
        let longest = if options.speculation.draft.is_some() { 1 + most_drafts } else { 1 };
        let sizes = capture_sizes(options, limits, longest);
        let report = runner.capture(&sizes)?;
        log::captured("target", &report);
        capture = Some(report);
        graph_sizes = sizes.token_rows().to_vec();
    }
    if options.inject_decode_graph_for_verify {
        runner.inject_decode_graph_for_verify(options.block_size)?;
    }
    let mut info = SessionInfo {
        model_id: options.model.to_string(),
        vocab_size: config.vocab_size,
        hidden_size: config.hidden_size,
        parameters: config.num_parameters(),
        dtype: placement.dtype(),
        isa,
        no_gpu,
        deterministic: options.deterministic || !placement.is_gpu(),
        threads: options.threads,
        max_model_len,
        num_blocks,
        block_size: options.block_size,
        block_bytes,
        kv_salt,
        eos_token_ids: config.eos_token_ids.clone(),
        skipped_layers: checkpoint.skipped_layers(),
        dummy_weights: checkpoint.is_dummy(),
        capture,
        graph_sizes,
    };
    let tokenizer = match checkpoint.tokenizer() {
        Ok(tokenizer) => Some(Arc::new(tokenizer)),
        Err(ModelError::NoTokenizer { .. }) => None,
        Err(e) => return Err(usage(e.into())),
    };
    let mut executor = ModelExecutor::new(runner, options.block_size)?;
    let mut setups = Setups::new(options.max_num_seqs, num_blocks, options.block_size);
    if let (Some(draft), Some(named)) = (draft, &options.speculation.draft) {
        let target = &*executor.runner();
        let place =
            Place { arena: &arena, groups: &[draft_id], gpu: gpu.as_ref(), beside: Some(target.device()) };
        let (model, captured) = draft.load(options, target, place, max_model_len)?;
        setups.know(&options.speculation, named, executor.add_proposer(Box::new(model)));
        if let (Some(all), Some(own)) = (&mut info.capture, captured) {
            log::captured("draft", &own);
            all.graphs += own.graphs;
            all.elapsed += own.elapsed;
            all.bytes += own.bytes;
        }
    }
    setups.set_shadowing(options.shadow_rate, true, options.seed);
    let (mut scheduler, setup) =
        (scheduler, setups.prepare(&options.speculation, options.enforce_eager, &mut executor)?);
    setups.switch(setup, &mut scheduler, &mut executor)?;
    Ok(Loaded { tokenizer, scheduler, executor, setups, info })
}

/// The greatest step that a model is built for.
pub(super) fn step_limits(options: &EngineOptions, max_model_len: u32) -> StepLimits {
    let token_rows = options.max_num_batched_tokens as usize;
    let logit_rows = token_rows.min(MOST_LOGIT_ROWS as usize);
    StepLimits { token_rows, logit_rows, max_model_len: max_model_len as usize }
}

/// The shapes that the target's graphs are captured for: query lengths up to `longest`.
pub(super) fn capture_sizes(options: &EngineOptions, limits: StepLimits, longest: u32) -> CaptureSizes {
    let captured = limits.logit_rows as u32;
    let most = captured.min(options.max_num_seqs.saturating_mul(longest));
    let mut rows = options.graph_sizes.clone().unwrap_or_else(|| CaptureSizes::default_token_rows(most));
    rows.retain(|&rows| rows <= captured);
    CaptureSizes::new(rows, (1..=longest).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn graphs_are_captured_up_to_the_size_that_the_help_names() {
        let mut options = EngineOptions::new(ModelRef::Builtin("target".to_owned()));
        let greatest = |options: &EngineOptions, longest| {
            let limits = step_limits(options, 1024);
            capture_sizes(options, limits, longest).token_rows().last().copied()
        };
        assert_eq!(greatest(&options, 5), Some(512));
        assert_eq!(greatest(&options, 1), Some(256));
        options.graph_sizes = Some(vec![4, 512, 513]);
        assert_eq!(greatest(&options, 5), Some(512));
        options.max_num_batched_tokens = 100;
        options.graph_sizes = None;
        assert_eq!(greatest(&options, 5), Some(100));
    }
}
