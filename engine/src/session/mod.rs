//! An engine within a process: requests go in, and tokens and text come out, step by step.
//!
//! It puts the parts together (scheduler, executor, tokenizer, trace) and decides nothing itself.

mod builtin;
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
mod step_limits;
mod text;
mod tiers;
mod token_rows;
mod tokenizer;
mod trace;
mod trace_dsa;
mod trace_groups;
mod trace_tensors;

use std::sync::Arc;
use std::time::Instant;

use anyhow::{bail, ensure};

use pagedraft_block_manager::{KvJournal, SideTable, Slab};
use pagedraft_model::tokenizer::Tokenizer;
use pagedraft_model::{AnyDevice, Device};
use pagedraft_scheduler::{
    Applied, Executor, Kind, RequestKey, RequestSpec, Scheduler, SegmentKv, Stats, StepId, StepOutcome,
    StepPlan, StepTimes,
};
use pagedraft_spec_decode::metrics::SpeculationMetrics;
use pagedraft_spec_decode::tensors::{TensorTracer, TensorTracing};
use pagedraft_spec_decode::{ExecuteError, ExecutionRecord, ModelExecutor, Registered};
use pagedraft_workloads::trace::{TraceTables, TraceWriter};

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

use crate::exit::usage;
use crate::prune::Pruner;
use kv_events::KvNews;
use pruning::Pruning;
use sequence::Sequence;
use speculation::Setups;
use trace::Trace;
use trace_dsa::TraceDsa;

/// Whether a step failed only because [`EngineOptions::interrupt`] was set. Nothing of it was applied, and nothing of it is in the trace.
/// The session can go on once the flag is clear: the step's requests are computed again.
pub fn is_interrupt(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(ExecuteError::is_interrupt)
}

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
    pub fn open(options: &EngineOptions) -> anyhow::Result<Self> {
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
    pub fn attach_trace(&mut self, writer: TraceWriter, tables: TraceTables) -> anyhow::Result<()> {
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

    /// Submits a request. Returns one id per sample, in order.
    ///
    /// # Errors
    ///
    /// A parameter is out of range, the model does not have a token id, or the prompt is empty or can never
    /// fit. Nothing is queued then.
    pub fn submit(&mut self, mut request: Request) -> anyhow::Result<Vec<RequestId>> {
        self.denoise_as_all(&mut request);
        self.check(&request)?;
        let pruner = self.pruner(&request)?;
        let mut ids = Vec::with_capacity(request.n as usize);
        let mut first = None;
        for sample in 0..request.n {
            let mut spec = self.spec(&request, pruner.as_deref());
            // If log probabilities or selections of the prompt are asked for, all of it must be computed.
            spec.fork_of = first.filter(|_| spec.reads_cache);
            let mut sequence =
                Sequence::new(&request, sample, &self.text_ends(&request, &spec), self.tokenizer.as_ref())?;
            if let Some((layers, k)) = self.indexer_topk_shape.filter(|_| request.return_indexer_topk) {
                sequence.keep_indexer_topk(IndexerTopk::new(layers, k));
            }
            if let Some(pruning) = &self.pruning {
                let empty = |pruner: &Arc<_>| pruning.empty_output(pruner, request.prompt.len() as u32);
                sequence.prune(pruner.as_ref().map(empty));
            }
            let (salt, shares_kept, stops) = (spec.salt, spec.shares_kept, spec.stop_token_ids.clone());
            let key = self.scheduler.submit(spec)?;
            first = first.or(Some(key));
            let mut sampling = request.sampling.clone();
            sampling.sample += sample;
            if let Some(changes) = &mut sampling.changes {
                changes.ends.clone_from(&stops);
            }
            let recorded = request.recorded.get(sample as usize).cloned();
            let follows = request.follows_recorded;
            let prompt_len = request.prompt.len() as u32;
            let thinning = pruner.as_ref().filter(|pruner| pruner.scores()).map(pruning::thinning);
            let denoising =
                request.diffusion.as_ref().zip(self.info.mask_token_id).map(|(diffusion, mask)| {
                    sequence.denoise(diffusion.empty_output(prompt_len, request.max_tokens, mask));
                    diffusion.denoising(request.max_tokens, mask, self.info.skip_layers)
                });
            let known = Registered { sampling, prompt_len, recorded, follows, thinning, denoising };
            self.executor.register(key, known);
            if let Some(trace) = &mut self.trace {
                let name = &request.request_id;
                let name = if request.n > 1 { format!("{name}/{sample}") } else { name.clone() };
                let counts = |pruner| pruning::kept_counts(pruner, prompt_len, shares_kept);
                let kept = pruner.as_ref().filter(|pruner| pruner.scores()).map(counts);
                trace.name(key, name, Some(salt).filter(|&salt| salt != self.info.kv_salt), kept);
            }
            log::submitted(&request, sample);
            let id = RequestId(self.sequences.insert(sequence.with_key(key)));
            self.by_key.insert(key, id);
            ids.push(id);
        }
        Ok(ids)
    }

    /// Has a request denoised as the engine's options say, if the model fills masks and the request says nothing.
    fn denoise_as_all(&self, request: &mut Request) {
        if self.info.mask_token_id.is_some() {
            request.diffusion.get_or_insert_with(|| self.diffusion.clone());
        }
    }

    /// The tokens that end the text of a request. A canvas goes on behind its end of sequence, and its text does not.
    fn text_ends(&self, request: &Request, spec: &RequestSpec) -> Vec<u32> {
        if spec.canvas.is_some() && !request.ignore_eos {
            return self.info.eos_token_ids.clone();
        }
        spec.stop_token_ids.clone()
    }

    /// Whether [`submit`](Self::submit) would accept a request.
    ///
    /// # Errors
    ///
    /// Those of [`submit`](Self::submit).
    pub fn check(&self, request: &Request) -> anyhow::Result<()> {
        let mut with_all = None;
        if self.info.mask_token_id.is_some() && request.diffusion.is_none() {
            self.denoise_as_all(with_all.insert(request.clone()));
        }
        let request = with_all.as_ref().unwrap_or(request);
        let parameters = self.check_parameters(request);
        let pruner = parameters.and_then(|()| self.pruner(request));
        let checked =
            pruner.and_then(|pruner| Ok(self.scheduler.check(&self.spec(request, pruner.as_deref()))?));
        match checked {
            Ok(_) => Ok(()),
            Err(e) => Err(usage(e.context(format!("request {:?} is refused", request.request_id)))),
        }
    }

    fn check_parameters(&self, request: &Request) -> anyhow::Result<()> {
        request.sampling.validate()?;
        let vocab = self.info.vocab_size;
        let outside = |t: &&u32| **t as usize >= vocab;
        if let Some(token) = request.prompt.iter().find(outside) {
            bail!("the prompt has the token id {token}, and the model's ids are below {vocab}");
        }
        if let Some(token) = request.stop_token_ids.iter().find(outside) {
            bail!("the stop token id {token} is none of the model's: its ids are below {vocab}");
        }
        self.check_changes(request)?;
        ensure!(
            request.cache_salt.as_ref().is_none_or(|tenant| !tenant.is_empty()),
            "cache_salt is an empty text: leave it out, or name whose prefixes may be shared"
        );
        ensure!(request.n > 0, "n is 0: ask for at least one sample");
        ensure!(request.stop.iter().all(|s| !s.is_empty()), "a stop string is empty");
        ensure!(
            request.stop.is_empty() || self.tokenizer.is_some(),
            "stop strings need a tokenizer, and the model has none: use stop token ids"
        );
        self.check_selections(request)?;
        diffusion::check_request(request, self.info.mask_token_id, self.info.skip_layers, vocab)?;
        // If the whole pool could not hold a request to its end, it would end early, and how early would
        // depend on the pool.
        let most = (request.prompt.len() as u64 + u64::from(request.max_tokens))
            .min(u64::from(self.info.max_model_len));
        let (blocks, block_size) = (self.info.num_blocks, self.info.block_size);
        let holds = u64::from(self.scheduler.capacity());
        // The last token is never computed, so it needs no slot.
        ensure!(
            most <= holds + 1,
            "it may grow to {most} tokens ({} of prompt), and the pool of {blocks} KV blocks of {block_size} tokens holds {holds}: \
             ask for fewer tokens, or for more blocks with --num-blocks or --kv-cache-memory",
            request.prompt.len()
        );
        Ok(())
    }

    fn check_changes(&self, request: &Request) -> anyhow::Result<()> {
        let Some(changes) = &request.sampling.changes else { return Ok(()) };
        let vocab = self.info.vocab_size;
        if let Some((token, _)) = changes.bias.iter().find(|(token, _)| *token as usize >= vocab) {
            bail!("logit_bias names the token id {token}, and the model's ids are below {vocab}");
        }
        let (min, max) = (changes.min_tokens, request.max_tokens);
        ensure!(min <= max, "min_tokens is {min}, and max_tokens is {max}: it can't be less");
        ensure!(
            self.info.mask_token_id.is_none(),
            "penalties, logit_bias and min_tokens are for models that append tokens, and this one fills masks"
        );
        Ok(())
    }

    fn spec(&self, request: &Request, pruner: Option<&Pruner>) -> RequestSpec {
        let mut spec = RequestSpec::new(request.prompt.clone(), request.max_tokens);
        if let Some(pruner) = pruner.filter(|pruner| pruner.scores()) {
            spec.kept = pruner.counts().to_vec();
        }
        spec.stop_token_ids.clone_from(&request.stop_token_ids);
        if !request.ignore_eos {
            spec.stop_token_ids.extend(&self.info.eos_token_ids);
        }
        if let Some(diffusion) = &request.diffusion {
            // A canvas is filled to its end, and what its tokens see is never a prefix that another request has.
            spec.canvas = Some(diffusion.canvas(request.max_tokens));
            spec.stop_token_ids.clear();
            spec.reads_cache = false;
        }
        spec.priority = request.priority;
        let most_drafts = request.num_speculative_tokens.and_then(|most| u16::try_from(most).ok());
        spec.most_drafts = most_drafts.unwrap_or(u16::MAX);
        spec.reads_cache &= request.sampling.prompt_logprobs.is_none() && !request.return_indexer_topk;
        spec.salt = match &request.cache_salt {
            Some(tenant) => kv_salt::of_tenant(self.info.kv_salt, tenant),
            None => self.info.kv_salt,
        };
        let pruner = pruner.filter(|pruner| pruner.scores());
        spec.shares_kept = pruner.map(|pruner| pruner.shares_kept(&request.prompt, spec.salt));
        spec
    }

    /// Ends a request now. It has no effect on a request that has ended.
    ///
    /// # Errors
    ///
    /// The text so far can't be decoded.
    pub fn abort(&mut self, id: RequestId) -> anyhow::Result<()> {
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

    /// Runs one step.
    ///
    /// # Errors
    ///
    /// The engine has a fault, the canary raised an alarm, or the trace can't be written. If the session
    /// goes on, the requests of a failed step are computed again.
    pub fn step(&mut self) -> anyhow::Result<SessionStep> {
        if !self.scheduler.has_unfinished() {
            return Ok(SessionStep { idle: true, ..SessionStep::default() });
        }
        let ran = self.run_step();
        match &ran {
            Ok(report) => log::stepped(report, &self.outcome.record),
            Err(error) if is_interrupt(error) => log::step_interrupted(),
            Err(error) => log::step_failed(error),
        }
        ran
    }

    fn run_step(&mut self) -> anyhow::Result<SessionStep> {
        let start = Instant::now();
        self.restore_prefixes()?;
        self.scheduler.step(&mut self.plan)?;
        self.save_prefixes();
        let schedule = start.elapsed();
        log::preempted(&self.plan, &self.sequences, &self.by_key);
        self.executor.execute(&self.plan, &self.scheduler, &mut self.outcome)?;
        self.collect_kept();
        self.collect_selections()?;
        self.scan_stops()?;
        // This must come before the step is applied, because requests that end with it have no table and no
        // seat afterwards.
        self.note_rows();
        let stats = self.scheduler.stats();
        let mut report = SessionStep {
            step: self.plan.id.0,
            rows: self.plan.rows.len(),
            preempted: self.plan.preempted.len(),
            running: stats.running,
            waiting: stats.waiting,
            pool_during: stats.pool,
            ..SessionStep::default()
        };
        self.scheduler.apply(&self.outcome, &mut self.applied)?;
        self.forget_lost_blocks();
        report.pool = self.scheduler.stats().pool;
        self.collect(&mut report)?;
        self.trace_step(schedule)?;
        self.trace_cuts()?;
        for applied in self.applied.iter().filter(|a| a.finish.is_some()) {
            self.by_key.remove(applied.request);
        }
        report.elapsed = start.elapsed();
        let stages = &report.stages;
        self.scheduler.observe(&StepTimes {
            propose_us: stages.propose,
            execute_us: stages.execute + stages.sample,
            total_us: report.elapsed.as_secs_f64() * 1e6,
        });
        Ok(report)
    }

    /// Cuts the outcome where a stop string was completed.
    fn scan_stops(&mut self) -> anyhow::Result<()> {
        for row in &mut self.outcome.rows {
            let Some(sequence) = sequence(&mut self.sequences, &self.by_key, row.request) else { continue };
            let tokens = &self.outcome.tokens[row.tokens.start as usize..row.tokens.end as usize];
            if let Some(kept) = sequence.scan(tokens)? {
                row.tokens.end = row.tokens.start + kept as u32;
                row.stop = true;
            }
        }
        Ok(())
    }

    /// Takes note of the requests that run in the step, and of the blocks that each holds.
    fn note_rows(&mut self) {
        self.rows.clear();
        for row in &self.plan.rows {
            let Some(&id) = self.by_key.get(row.request) else { continue };
            let Some(sequence) = self.sequences.get_mut(id.0) else { continue };
            let cached = self.scheduler.request(row.request).map_or(0, |info| info.num_cached_tokens);
            sequence.hold(row::table(&self.scheduler, row), cached, self.info.block_size);
            self.rows.push(StepRow::planned(id, row, cached));
        }
    }

    /// What the last step did for each of its requests, in the plan's order.
    pub fn step_rows(&self) -> &[StepRow] {
        &self.rows
    }

    /// Adds what the step emitted to its sequences.
    fn collect(&mut self, report: &mut SessionStep) -> anyhow::Result<()> {
        for row in &self.plan.rows {
            match row.kind {
                Kind::Prefill => report.prefill_tokens += row.tokens.len(),
                _ => report.decode_rows += 1,
            }
        }
        report.replayed = self.outcome.record.is_replayed();
        report.stages = self.outcome.record.time_us;
        report.scoring_us = self.outcome.record.scoring_us;
        let mut rows = self.rows.iter_mut();
        for applied in &self.applied {
            let Some(&id) = self.by_key.get(applied.request) else { continue };
            if let Some(sequence) = self.sequences.get_mut(id.0) {
                sequence.begin(applied);
            }
            if let Some(row) = rows.find(|row| row.id == id) {
                row.apply(applied);
            }
        }
        for (request, why) in &self.outcome.record.faults {
            if let Some(sequence) = sequence(&mut self.sequences, &self.by_key, *request) {
                sequence.fail(why);
                log::failed(sequence.output());
            }
        }
        for pass in &self.outcome.record.passes {
            if let Some(sequence) = sequence(&mut self.sequences, &self.by_key, pass.request) {
                sequence.take_pass(pass);
            }
        }
        for (request, logprobs) in &self.outcome.record.logprobs {
            if let Some(sequence) = sequence(&mut self.sequences, &self.by_key, *request) {
                sequence.logprobs(logprobs);
            }
        }
        for logprobs in &self.outcome.record.prompt_logprobs {
            if let Some(sequence) = sequence(&mut self.sequences, &self.by_key, logprobs.request) {
                sequence.prompt_logprobs(logprobs);
            }
        }
        for (request, logits) in self.outcome.record.logits.drain(..) {
            if let Some(sequence) = sequence(&mut self.sequences, &self.by_key, request) {
                sequence.logits(logits);
            }
        }
        for (request, hidden) in self.outcome.record.hidden.drain(..) {
            if let Some(sequence) = sequence(&mut self.sequences, &self.by_key, request) {
                sequence.hidden(hidden);
            }
        }
        for applied in &self.applied {
            let Some(&id) = self.by_key.get(applied.request) else { continue };
            let Some(sequence) = self.sequences.get_mut(id.0) else { continue };
            let tokens = &self.outcome.tokens[applied.tokens.start as usize..applied.tokens.end as usize];
            let text = sequence.extend(tokens, applied.finish)?;
            if applied.finish.is_some() {
                sequence.note(self.scheduler.request(applied.request));
                log::ended(sequence.output());
            }
            report.emitted.push(Emitted { id, tokens: tokens.to_vec(), text, finish: applied.finish });
        }
        Ok(())
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
    pub fn close(&mut self, summary: &serde_json::Value) -> anyhow::Result<()> {
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

fn sequence<'a>(
    sequences: &'a mut Slab<Sequence>,
    by_key: &SideTable<RequestId>,
    key: RequestKey,
) -> Option<&'a mut Sequence> {
    sequences.get_mut(by_key.get(key)?.0)
}
