//! An engine within a process: requests go in, and tokens and text come out, step by step.
//!
//! It puts the parts together (scheduler, executor, tokenizer, trace) and decides nothing itself.

mod builtin;
mod check;
mod checkpoint;
mod diffusion;
mod draft;
mod flops;
mod gpu_memory;
mod indexer_topk;
mod info;
mod instruments;
mod kv_events;
mod kv_salt;
mod live_table;
mod load;
mod log;
mod options;
mod placement;
mod probes;
mod pruning;
mod request;
mod row;
mod selections;
mod sequence;
mod simulated_kv;
mod special_stops;
mod speculation;
mod step;
mod step_limits;
mod submit;
mod text;
mod tiers;
mod token_rows;
mod tokenizer;
mod trace;
mod trace_dsa;
mod trace_groups;
mod trace_tensors;

use std::sync::Arc;

use pagedraft_block_manager::{KvJournal, SideTable, Slab};
use pagedraft_model::tokenizer::Tokenizer;
use pagedraft_model::{AnyDevice, Device};
use pagedraft_scheduler::{Applied, Scheduler, SegmentKv, Stats, StepId, StepOutcome, StepPlan};
use pagedraft_spec_decode::metrics::SpeculationMetrics;
use pagedraft_spec_decode::tensors::{TensorTracer, TensorTracing};
use pagedraft_spec_decode::{ExecutionRecord, ModelExecutor};
use pagedraft_workloads::trace::{TraceTables, TraceWriter};

pub(crate) use builtin::files as builtin_files;
pub use checkpoint::open_checkpoint;
pub use diffusion::{Decoder, Diffusion, DiffusionFault, DiffusionOutput, DiffusionStep};
pub use indexer_topk::IndexerTopk;
pub use info::SessionInfo;
pub use kv_events::CacheEvent;
pub use live_table::LiveTable;
pub use options::{
    DeviceRef, DiffusionOptions, DraftLength, DraftRef, DsaTraceOptions, EngineOptions, IndexerKvDtype,
    LoadFormat, ModelRef, PruneOptions, SkipLayers, SpeculationOptions, TraceOptions,
};
pub use placement::InstructionSet;
pub use pruning::PruneOutput;
pub use request::{Emitted, Request, RequestId, RequestOutput, RequestPrune, SessionStep};
pub use row::StepRow;
pub use simulated_kv::SimulatedKv;
pub use speculation::SetupId;
pub use step_limits::MOST_LOGIT_ROWS;
pub use tiers::{KvTiers, local_pool};
pub use tokenizer::tokenizer;

use kv_events::KvNews;
use pruning::Pruning;
use sequence::Sequence;
use speculation::Setups;
use trace::Trace;
use trace_dsa::TraceDsa;

use crate::error::{Result, ensure};

/// A running engine.
pub struct Session {
    info: SessionInfo,
    config: serde_json::Value,
    tokenizer: Option<Arc<Tokenizer>>,
    scheduler: Scheduler,
    executor: ModelExecutor<AnyDevice>,
    setups: Setups,
    seed: u64,
    plan: StepPlan,
    outcome: StepOutcome<ExecutionRecord>,
    applied: Vec<Applied>,
    /// Every sample whose output has not been collected. A collected one's index is reused.
    sequences: Slab<Sequence>,
    by_key: SideTable<RequestId>,
    /// What each row of the last step did.
    rows: Vec<StepRow>,
    trace: Option<Trace>,
    /// What a trace that is attached records of sparse attention.
    trace_dsa: Option<TraceDsa>,
    /// Which tensors a trace that is attached records.
    trace_tensors: Option<TensorTracing>,
    /// The layers with an indexer and the keys that each chooses at most, if requests may ask for what was
    /// chosen.
    indexer_topk_shape: Option<(usize, usize)>,
    /// The cuts of the model, if prompts may be pruned.
    pruning: Option<Pruning>,
    /// The KV groups of each segment of the target; none if it is not cut.
    segments: Vec<SegmentKv>,
    /// How canvases are denoised, if a request does not say.
    diffusion: Diffusion,
    /// What entered and left the prefix cache in the last step, if a trace is written.
    journal: KvJournal,
    /// Who follows what enters and leaves the prefix cache, if anybody does.
    kv_news: Option<KvNews>,
    /// Whether blocks that the prefix cache forgets go down to other tiers.
    keeps_prefixes: bool,
    /// How many events of the scheduler's journal were looked at for that.
    journal_seen: usize,
}

impl Session {
    /// Loads the model and makes the engine.
    ///
    /// # Errors
    ///
    /// The model can't be loaded, options contradict each other, or the trace directory can't be written.
    pub fn open(options: &EngineOptions) -> Result<Self> {
        let mut loaded = load::load(options)?;
        let blocks = loaded.scheduler.blocks();
        let groups = blocks.groups();
        let (_, index_topk) = selections::shape(loaded.executor.runner());
        let traces = (options.trace.is_some() || options.attaches_trace) && loaded.pruning.is_none();
        let dsa = traces.then(|| TraceDsa::new(&options.trace_dsa, groups, index_topk, options.block_size));
        let dsa = dsa.flatten();
        let config = trace::engine_config(options, &loaded.info, blocks, dsa.as_ref());
        let segments = loaded.segments;
        let rotate = options.trace_rotate_bytes;
        let create = |to| Trace::create(to, rotate, &config, (groups, &segments), dsa.clone());
        let mut trace = options.trace.as_ref().map(create).transpose()?;
        if let Some((trace, tracing)) = trace.as_mut().zip(options.trace_tensors.clone()) {
            loaded.executor.trace_tensors(Some(TensorTracer::new(tracing, trace.keep_tensors()?)));
        }
        let keeps_prefixes = options.enable_prefix_caching
            && (options.kv_tiers.local_pool.is_some() || options.kv_tiers.remote_pool.is_some());
        loaded.scheduler.keep_journal(trace.is_some() || keeps_prefixes);
        if let Some(tiers) = loaded.executor.runner().device_mut().tiers() {
            tiers.keep_fetches(trace.is_some());
        }
        loaded.executor.keep_group_steps(trace.is_some());
        if let Some(flag) = &options.interrupt {
            loaded.executor.interrupt_on(flag);
        }
        let indexer_topk_shape =
            options.return_indexer_topk.then(|| selections::shape(loaded.executor.runner()));
        log::opened(&loaded.info, loaded.scheduler.blocks().groups());
        Ok(Self {
            tokenizer: loaded.tokenizer,
            info: loaded.info,
            config,
            scheduler: loaded.scheduler,
            executor: loaded.executor,
            setups: loaded.setups,
            seed: options.seed,
            plan: StepPlan::default(),
            outcome: StepOutcome::default(),
            applied: Vec::new(),
            sequences: Slab::default(),
            by_key: SideTable::default(),
            rows: Vec::new(),
            trace,
            trace_dsa: dsa,
            trace_tensors: options.trace_tensors.clone(),
            indexer_topk_shape,
            pruning: loaded.pruning,
            segments,
            diffusion: options.diffusion.all.clone(),
            journal: KvJournal::default(),
            kv_news: None,
            keeps_prefixes,
            journal_seen: 0,
        })
    }

    /// How the engine was built.
    pub fn info(&self) -> &SessionInfo {
        &self.info
    }

    /// The options of the engine for the `config.json` of a run: an object with the names of the flags. A
    /// trace that is attached needs `trace_tables` beside it, or in it.
    pub fn config(&self) -> &serde_json::Value {
        &self.config
    }

    /// Traces every step from now on, in a directory that has its `config.json` already. `tables` must be
    /// what it says there. [`close`](Self::close) ends the trace.
    ///
    /// # Errors
    ///
    /// There is a trace already, its files can't be opened, or requests were submitted before, whose names the trace would not know.
    pub fn attach_trace(&mut self, writer: TraceWriter, tables: TraceTables) -> Result<()> {
        ensure!(self.trace.is_none(), "the session has a trace already");
        ensure!(!self.has_unfinished(), "a trace can't begin while requests run");
        let groups = (self.scheduler.blocks().groups(), &self.segments[..]);
        let mut trace = Trace::new(writer, tables, groups, self.trace_dsa.clone())?;
        if let Some(tracing) = self.trace_tensors.clone() {
            self.executor.trace_tensors(Some(TensorTracer::new(tracing, trace.keep_tensors()?)));
        }
        self.trace = Some(trace);
        self.scheduler.keep_journal(true);
        self.executor.keep_group_steps(true);
        Ok(())
    }

    /// The model's name.
    pub fn model_id(&self) -> &str {
        &self.info.model_id
    }

    /// The model's tokenizer, if it has one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_deref()
    }

    /// The same, to be kept.
    pub fn shared_tokenizer(&self) -> Option<Arc<Tokenizer>> {
        self.tokenizer.clone()
    }

    /// The longest that a request can get when it has the KV pool for itself, in tokens whose KV is kept.
    pub fn capacity(&self) -> u32 {
        self.scheduler.capacity()
    }

    /// Whether any request is waiting or running.
    pub fn has_unfinished(&self) -> bool {
        self.scheduler.has_unfinished()
    }

    /// What speculation has gained since the last change of setup, or since
    /// [`take_metrics`](Self::take_metrics).
    pub fn metrics(&self) -> &SpeculationMetrics {
        self.executor.metrics()
    }

    /// Returns the [`metrics`](Self::metrics) and sets them to 0, and the counts of
    /// [`run_counts`](Self::run_counts) too.
    pub fn take_metrics(&mut self) -> SpeculationMetrics {
        self.executor.reset_counts();
        self.executor.take_metrics()
    }

    /// Ends a request now. It has no effect on a request that has ended.
    ///
    /// # Errors
    ///
    /// The text so far can't be decoded.
    pub fn abort(&mut self, id: RequestId) -> Result<()> {
        if let Some(sequence) = self.sequences.get_mut(id.0) {
            let info = self.scheduler.request(sequence.key());
            if self.scheduler.abort(sequence.key())? {
                self.by_key.remove(sequence.key());
                sequence.note(info);
                sequence.abort()?;
                log::ended(sequence.output());
            }
        }
        Ok(())
    }

    /// Gives the next step the number `step`, if that is greater than its own.
    pub fn skip_to(&mut self, step: u64) {
        self.scheduler.skip_to(StepId(step));
    }

    /// What the last step did for each of its requests, in the plan's order.
    pub fn step_rows(&self) -> &[StepRow] {
        &self.rows
    }

    /// The output of a sample so far. Its log probabilities grow with its tokens, its text is filled in at its end.
    pub fn output(&self, id: RequestId) -> Option<&RequestOutput> {
        self.sequences.get(id.0).map(Sequence::output)
    }

    /// The samples that the last step was planned for, whether it succeeded or not.
    pub fn planned(&self) -> impl Iterator<Item = RequestId> {
        self.plan.rows.iter().filter_map(|row| self.by_key.get(row.request).copied())
    }

    /// How many requests run and wait, and the KV pool.
    pub fn stats(&self) -> Stats {
        self.scheduler.stats()
    }

    /// The output of a sample so far. Its memory is freed if it has ended.
    pub fn take_output(&mut self, id: RequestId) -> Option<RequestOutput> {
        let output = self.sequences.get(id.0)?.output();
        if output.finish_reason.is_none() {
            return Some(output.clone());
        }
        self.sequences.remove(id.0).map(Sequence::into_output)
    }

    /// Ends the trace, and writes `summary` as its summary.
    ///
    /// # Errors
    ///
    /// The trace can't be written.
    pub fn close(&mut self, summary: &serde_json::Value) -> Result<()> {
        log::closed();
        let mut summary = summary.clone();
        if let (Some(counts), Some(summary)) = (self.tier_counts(), summary.as_object_mut()) {
            summary.insert("kv_tiers".to_owned(), serde_json::to_value(counts)?);
        }
        let tensors = self.tensor_counts();
        if let (Some((kept, left_out)), Some(summary)) = (tensors, summary.as_object_mut()) {
            let counts = serde_json::json!({"entries": kept, "left_out": left_out});
            summary.insert("trace_tensors".to_owned(), counts);
        }
        match self.trace.take() {
            Some(trace) => trace.finish(&summary, tensors.map_or(0, |(_, left_out)| left_out)),
            None => Ok(()),
        }
    }
}
