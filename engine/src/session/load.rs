//! Loads an engine from its options.

use std::sync::Arc;

use pagedraft_block_manager::{Arena, GroupId};
use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_model::cpu::MemoryLimit;
use pagedraft_model::cut;
use pagedraft_model::tokenizer::Tokenizer;
use pagedraft_model::{AnyArena, AnyDevice, ModelError, Runner};
use pagedraft_scheduler::{Scheduler, SchedulerConfig, SegmentKv};
use pagedraft_spec_decode::ModelExecutor;

use super::checkpoint;
use super::diffusion;
use super::draft::{DraftParts, PlacedDraft};
use super::gpu_memory::EngineNeed;
use super::info::SessionInfo;
use super::kv_salt::KvModel;
use super::log;
use super::options::{EngineOptions, IndexerKvDtype};
use super::placement::{Place, Placement, instruction_set};
use super::probes::probe;
use super::pruning::{self, Pruning};
use super::selections;
use super::speculation::Setups;
use super::step_limits::{capture_sizes, step_limits};
use super::tiers::PlannedTiers;
use crate::error::{Context, EngineError, Result, ensure};
use crate::memory_need::{books, ensure_fits};

/// The bytes of KV cache if nothing is said. It is less if this is more than a quarter of the memory that
/// this process may have.
const DEFAULT_KV_CACHE_MEMORY: u64 = 1 << 30;
/// The parts of an engine.
pub(super) struct Loaded {
    pub tokenizer: Option<Arc<Tokenizer>>,
    pub scheduler: Scheduler,
    pub executor: ModelExecutor<AnyDevice>,
    pub setups: Setups,
    pub info: SessionInfo,
    pub pruning: Option<Pruning>,
    /// The KV groups of each segment of the target; none if it is not cut.
    pub segments: Vec<SegmentKv>,
}

fn max_model_len(options: &EngineOptions, config: &ModelConfig) -> Result<u32> {
    let model = u32::try_from(config.max_position_embeddings).unwrap_or(u32::MAX);
    match options.max_model_len {
        None => Ok(model),
        Some(0) => Err(EngineError::input("--max-model-len 0: a sequence has at least one token")),
        Some(asked) if asked > model => Err(EngineError::input(format!(
            "--max-model-len {asked} is more than the model's own greatest length, {model}"
        ))),
        Some(asked) => Ok(asked),
    }
}

/// The bytes of KV cache if nothing is said.
fn default_kv_cache_memory() -> u64 {
    let limit = MemoryLimit::of_this_process().map_or(u64::MAX, |limit| limit.bytes);
    DEFAULT_KV_CACHE_MEMORY.min(limit / 4)
}

/// Refuses a KV cache that holds nothing, and buffers for which there is no memory. The error names the
/// flag. A GPU's own memory is checked later, when its size is known.
fn check_memory(
    options: &EngineOptions,
    config: &ModelConfig,
    num_blocks: u32,
    block_bytes: u128,
    max_model_len: u32,
    on_gpu: bool,
) -> Result<()> {
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

/// Refuses a trace of tensors that nothing could be written to, or whose tensors cannot be looked at.
fn check_tensor_trace(options: &EngineOptions, on_gpu: bool) -> Result<()> {
    let written = options.trace.is_some() || options.attaches_trace;
    let refused = [
        (!written, "the engine writes no trace", "add --trace-out DIR"),
        (on_gpu, "a GPU does not tell what its KV cache holds", "add --device cpu"),
        (
            options.kv_tiers.is_asked_for(),
            "latents that lie in KV tiers cannot be looked at",
            "leave out --kv-hbm-blocks and the pools",
        ),
    ];
    match refused.into_iter().find(|(refused, ..)| *refused && options.trace_tensors.is_some()) {
        None => Ok(()),
        Some((_, why, hint)) => Err(EngineError::input_hint(format!("--trace-tensors: {why}"), hint)),
    }
}

pub(super) fn load(options: &EngineOptions) -> Result<Loaded> {
    let _span = tracing::debug_span!("load", model = %options.model).entered();
    let mut checkpoint = checkpoint::open(&options.model, options)?;
    if let Some(keys) = options.index_topk {
        let positions = checkpoint.config().max_position_embeddings;
        if checkpoint.config().dsa.is_none() {
            let model = &options.model;
            return Err(EngineError::input(format!(
                "--index-topk {keys}: {model} has no sparse attention, so nothing chooses its keys; leave the flag out"
            )));
        }
        if keys == 0 || keys as usize > positions {
            return Err(EngineError::input(format!(
                "--index-topk {keys}: the model has {positions} positions; give a number from 1 to {positions}"
            )));
        }
        checkpoint.set_index_topk(keys as usize).map_err(|e| EngineError::from(e).into_input())?;
    }
    if options.indexer_kv_dtype != IndexerKvDtype::Auto {
        let set = checkpoint.set_index_keys(options.indexer_kv_dtype.keys());
        set.map_err(|e| EngineError::from(e).context("--indexer-kv-dtype is refused").into_input())?;
    }
    let config = checkpoint.config().clone();
    diffusion::check_options(options, &config)?;
    let skips = diffusion::cuts(options, &config)?;
    let cuts = if skips.is_empty() { pruning::cuts(options, &config)? } else { skips };
    let taps = selections::wanted(options, &config, &cuts)?;
    let max_model_len = max_model_len(options, &config)?;
    let refused = |e: EngineError| e.context("the model that --draft names is refused").into_input();
    let draft = DraftParts::open(options, &checkpoint, max_model_len).map_err(refused)?;
    let beside = draft.as_ref().map(|draft| (&draft.model, draft.checkpoint.config()));
    let (placement, no_gpu) = Placement::new(options, &config, beside)?;
    let draft = draft.map(|draft| draft.place(options, &placement)).transpose().map_err(refused)?;

    if !cuts.is_empty() && placement.is_gpu() {
        let error = "prompts can't be pruned on a GPU yet, nor can layers be skipped: it keeps the KV of all layers in one group";
        return Err(EngineError::input_hint(error, "--device cpu"));
    }
    check_tensor_trace(options, placement.is_gpu())?;
    let block_bytes = placement.block_bytes(&config)?;
    let draft_bytes = draft.as_ref().map_or(0, PlacedDraft::block_bytes);
    let blocks_in =
        |memory: u64, bytes: u128| u32::try_from(u128::from(memory) / bytes.max(1)).unwrap_or(u32::MAX);
    let num_blocks = match (options.num_blocks, options.kv_cache_memory) {
        (Some(n), _) => n,
        // The arena has room for as many blocks of the draft model.
        (None, Some(memory)) => blocks_in(memory, block_bytes + draft_bytes),
        // The draft model's memory comes in addition, so that the target's plans are the same with and
        // without it.
        (None, None) => blocks_in(default_kv_cache_memory(), block_bytes),
    };
    let on_gpu = placement.is_gpu();
    let prunes = !cuts.is_empty() && config.mask_token_id.is_none();
    let segments =
        if cuts.is_empty() { Vec::new() } else { pruning::segments(&cut::model_runs(&config, &cuts)) };
    let mut target_groups = if cuts.is_empty() {
        placement.kv_groups(&config, max_model_len as usize)?
    } else {
        placement.cut_groups(&config, &cuts)?
    };
    let mut pruning = if !prunes {
        None
    } else {
        let target = checkpoint::open(&options.model, options)?;
        let target = probe(target, placement, max_model_len, options.block_size);
        Some(Pruning::new(options, &config, cuts.clone(), placement.dtype(), &target_groups, target))
    };
    let tiers = PlannedTiers::new(options, &config, &target_groups, on_gpu)?;
    let (mut num_blocks, mut arena_bytes) = (num_blocks, block_bytes);
    if let Some(tiers) = &tiers {
        num_blocks = tiers.num_blocks(num_blocks, options.num_blocks.is_some());
        tiers.check_memory(num_blocks)?;
        arena_bytes = block_bytes.saturating_sub(tiers.latent_bytes());
    }
    let all_bytes = arena_bytes + draft_bytes;
    check_memory(options, &config, num_blocks, all_bytes, max_model_len, on_gpu)
        .map_err(EngineError::into_input)?;
    let block_bytes = usize::try_from(block_bytes).unwrap_or(usize::MAX);
    // The scheduler refuses bad figures before anything large is allocated.
    let target_ids: Vec<GroupId> = target_groups.iter().map(|group| group.id).collect();
    let dtype = placement.dtype();
    let kv_model = KvModel {
        fingerprint: checkpoint.fingerprint(),
        dtype,
        quantization: placement.quantization(),
        kv_dtype: dtype,
    };
    let kv_salt = kv_model.salt(&target_groups);
    for group in &mut target_groups {
        group.salt = kv_model.group_salt(group);
    }
    if let Some(tiers) = &tiers {
        tiers.mark(&mut target_groups);
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
        segments: segments.clone(),
    })
    .map_err(|e| EngineError::from(e).into_input())?;

    let limits = step_limits(options, max_model_len);
    let gpu = placement.gpu()?;
    if let Some(gpu) = &gpu {
        let bytes = |blocks: u32| {
            let arena = Arena::plan(scheduler.blocks().block_size(), blocks, scheduler.blocks().groups());
            arena.map_or(u64::MAX, |arena| arena.bytes() as u64)
        };
        // Both models use one memory, which has room for this many blocks of each.
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
        // A GPU's memory was checked above. If it refuses memory now, that is not a fault of the options.
        if on_gpu { EngineError::from(e).context(failed()) } else { EngineError::from(e).into_input() }
    })?;
    let place = Place { arena: &arena, groups: &target_ids, gpu: gpu.as_ref(), beside: None };
    let mut device = placement.open(&config, limits, place).with_context(failed)?;
    if let Some(tiers) = &tiers {
        tiers.open(&mut device)?;
    }
    let isa = instruction_set(&device);
    let mut runner = if cuts.is_empty() {
        Runner::load(device, &checkpoint, limits).with_context(failed)?
    } else {
        let model = cut::load(&mut device, &checkpoint, limits, &cuts).with_context(failed)?;
        Runner::with(device, model, limits).with_context(failed)?
    };
    if let Some(keep) = taps {
        // Graphs that are captured earlier would not keep what is chosen.
        runner.tap_selections(keep).with_context(failed)?;
    }
    if let Some(layers) = options.diffusion.skip_layers.of(config.num_layers as u16) {
        runner.tap_first(layers.into()).with_context(failed)?;
    }
    let most_drafts = u32::from(options.speculation.length.most());
    let mut capture = None;
    let mut graph_sizes = Vec::new();
    if !options.enforce_eager {
        let longest = if options.speculation.draft.is_some() { 1 + most_drafts } else { 1 };
        let sizes = capture_sizes(options, limits, longest, config.mask_token_id.is_some());
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
        quantization: placement.quantization(),
        draft_quantization: draft.as_ref().map(PlacedDraft::quantization),
        isa,
        no_gpu,
        deterministic: options.deterministic || !placement.is_gpu(),
        threads: options.threads,
        max_model_len,
        num_blocks,
        block_size: options.block_size,
        block_bytes,
        kv_groups: scheduler.blocks().num_groups(),
        kv_padding_at_worst: scheduler.blocks().arena().worst_waste(),
        kv_salt,
        eos_token_ids: config.eos_token_ids.clone(),
        mask_token_id: config.mask_token_id,
        canvas_block: config.mask_token_id.map(|_| options.diffusion.all.block_length),
        skip_layers: options.diffusion.skip_layers.of(config.num_layers as u16),
        skipped_layers: checkpoint.skipped_layers(),
        dummy_weights: checkpoint.is_dummy(),
        capture,
        graph_sizes,
    };
    let tokenizer = match checkpoint.tokenizer() {
        Ok(mut tokenizer) => {
            if let Some(mask) = config.mask_token_id {
                tokenizer.take_literally(mask);
            }
            Some(Arc::new(tokenizer))
        }
        Err(ModelError::NoTokenizer { .. }) => None,
        Err(e) => return Err(EngineError::from(e).into_input()),
    };
    let mut executor = if segments.is_empty() {
        ModelExecutor::new(runner, options.block_size)?
    } else {
        ModelExecutor::with_segments(runner, options.block_size, segments.clone())?
    };
    let mut setups = Setups::new(options.max_num_seqs, num_blocks, options.block_size);
    if let (Some(draft), Some(named)) = (draft, &options.speculation.draft) {
        let target = &*executor.runner();
        let place =
            Place { arena: &arena, groups: &[draft_id], gpu: gpu.as_ref(), beside: Some(target.device()) };
        let (model, captured) = draft.load(options, target, place, max_model_len)?;
        if let Some(pruning) = &mut pruning {
            let (probe, name) = draft.into_probe(max_model_len, options.block_size);
            pruning.set_draft(probe, name);
        }
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
    Ok(Loaded { tokenizer, scheduler, executor, setups, info, pruning, segments })
}
