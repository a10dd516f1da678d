//! Writes the trace of a session, one line per step, from the objects that the step was executed from.

use std::time::Duration;

use pagedraft_block_manager::{BlockManager, KvGroup, KvJournal, Salt};
use pagedraft_model::{Device, Ran, Runner};
use pagedraft_scheduler::{Applied, RequestKey, Scheduler, SegmentKv, StepOutcome, StepPlan};
use pagedraft_spec_decode::proposer::GroupStep;
use pagedraft_spec_decode::tensors::{TensorEvent, TensorTracer};
use pagedraft_spec_decode::{CanvasPass, ExecutionRecord};
use pagedraft_workloads::trace::{
    KeptCounts, KvEvents, KvGroupRecord, PruneRecord, RequestNames, SkipJudgeRecord, StepEvent, StepNames,
    TableDelta, TimesUs, TraceTables, TraceWriter,
};
use serde::Serialize;
use serde_json::json;

use super::Session;
use super::info::SessionInfo;
use super::options::{EngineOptions, SpeculationOptions, TraceOptions};
use super::trace_dsa::TraceDsa;
use super::trace_groups::TraceGroups;
use super::trace_tensors;
use crate::error::{EngineError, Result};

/// A line about a pruned prompt.
#[derive(Serialize)]
struct PruneLine {
    event: &'static str,
    #[serde(flatten)]
    record: PruneRecord,
}

/// A line about how tokens of a canvas were judged.
#[derive(Serialize)]
struct SkipJudgeLine {
    event: &'static str,
    #[serde(flatten)]
    record: SkipJudgeRecord,
}

/// A trace that is being written.
pub(super) struct Trace {
    writer: TraceWriter,
    tables: TraceTables,
    delta: TableDelta,
    names: RequestNames,
    groups: TraceGroups,
    dsa: Option<TraceDsa>,
}

/// The options of an engine, for the `config.json` of its trace.
pub(super) fn engine_config(
    options: &EngineOptions,
    info: &SessionInfo,
    blocks: &BlockManager,
    dsa: Option<&TraceDsa>,
) -> serde_json::Value {
    let groups: Vec<KvGroupRecord> = blocks.groups().iter().map(KvGroupRecord::from).collect();
    json!({
        "model_id": info.model_id,
        "dummy_weights": info.dummy_weights,
        "parameters": info.parameters,
        "vocab_size": info.vocab_size,
        "dtype": info.dtype.to_string(),
        "quantization": info.quantization.to_string(),
        "draft_quantization": info.draft_quantization.map(|quantization| quantization.to_string()),
        "instruction_set": info.isa.to_string(),
        "threads": info.threads,
        "block_size": info.block_size,
        "num_blocks": info.num_blocks,
        "block_bytes": info.block_bytes,
        "kv_groups": groups,
        // This is the share of the KV memory that the padding after blocks would waste if all of it
        // belonged to the group with the most padding.
        "kv_padding_at_worst": blocks.arena().worst_waste(),
        "kv_salt": info.kv_salt,
        "max_model_len": info.max_model_len,
        "index_topk": options.index_topk,
        "kv_hbm_blocks": options.kv_tiers.hbm_blocks,
        "kv_local_pool": options.kv_tiers.local_pool.as_ref().map(|pool| pool.bytes),
        "kv_remote_pool": options.kv_tiers.remote_pool.as_ref(),
        "indexer_kv_dtype": options.indexer_kv_dtype,
        // What the records of sparse attention are about, if this trace has any.
        "dsa": dsa.map(TraceDsa::config),
        "trace_tensors": options.trace_tensors.as_ref().map(|tracing| json!({
            "level": tracing.level.to_string(),
            "layers": [tracing.layers.start(), tracing.layers.end()],
            "steps": [tracing.steps.start(), tracing.steps.end()],
            "max_entries": tracing.most,
        })),
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "prefill_chunk": options.prefill_chunk,
        "enable_prefix_caching": options.enable_prefix_caching,
        "enable_chunked_prefill": options.enable_chunked_prefill,
        "policy": options.policy,
        // These are the options with which the engine was opened. If they change later, a line of event
        // `setup` says how.
        "draft": options.speculation.draft.as_ref().map(ToString::to_string),
        "num_speculative_tokens": options.speculation.length.to_string(),
        "scorer": options.speculation.scorer,
        "acceptance": options.speculation.acceptance,
        "enforce_eager": options.enforce_eager,
        "graph_sizes": info.graph_sizes,
        "shadow_rate": options.shadow_rate,
        "seed": options.seed,
        "revision": crate::REVISION,
    })
}

impl Trace {
    /// Makes the directory and writes the engine's options. A file is cut once it has `rotate` bytes, if that is said.
    ///
    /// # Errors
    ///
    /// The directory can't be written, or holds a trace that can't be gone on with.
    pub fn create(
        to: &TraceOptions,
        rotate: Option<u64>,
        engine: &serde_json::Value,
        groups: (&[KvGroup], &[SegmentKv]),
        dsa: Option<TraceDsa>,
    ) -> Result<Self> {
        let mut config = engine.clone();
        config["trace_tables"] = json!(to.tables);
        let writer = match rotate {
            Some(bytes) => TraceWriter::create_rotating(&to.dir, &config, to.format, bytes),
            None => TraceWriter::create(&to.dir, &config, to.format),
        };
        Self::new(writer.map_err(|e| EngineError::from(e).into_input())?, to.tables, groups, dsa)
    }

    /// A trace whose directory and configuration exist already, of an engine with these groups and segments of its model.
    ///
    /// # Errors
    ///
    /// The file of the records of sparse attention can't be opened.
    pub fn new(
        mut writer: TraceWriter,
        tables: TraceTables,
        groups: (&[KvGroup], &[SegmentKv]),
        dsa: Option<TraceDsa>,
    ) -> Result<Self> {
        dsa.iter().try_for_each(|dsa| dsa.open(&mut writer))?;
        Ok(Self {
            writer,
            tables,
            delta: TableDelta::default(),
            names: RequestNames::default(),
            groups: TraceGroups::new(groups.0, groups.1),
            dsa,
        })
    }

    /// Writes that the engine speculates in another way from here on.
    ///
    /// # Errors
    ///
    /// The disk has a fault.
    pub fn setup(&mut self, options: &SpeculationOptions, enforce_eager: bool) -> Result<()> {
        self.writer.write(&json!({
            "event": "setup",
            "draft": options.draft.as_ref().map(ToString::to_string),
            "draft_cost": options.draft_cost,
            "num_speculative_tokens": options.length.to_string(),
            "scorer": options.scorer,
            "acceptance": options.acceptance,
            "enforce_eager": enforce_eager,
        }))?;
        Ok(())
    }

    /// Names a request when it is submitted, with the salt of its block hashes if that is not the engine's, and how it drops tokens of
    /// its prompt if it does.
    pub fn name(&mut self, request: RequestKey, name: String, salt: Option<Salt>, kept: Option<KeptCounts>) {
        self.names.insert(request, name);
        if let Some(kept) = kept {
            self.names.set_kept(request, kept);
        }
        if let Some(salt) = salt {
            self.names.set_kv_salt(request, salt);
        }
    }

    /// Writes a step that was applied. `draft` is what a draft model wrote into its own KV. The pool is
    /// shown as it is after the step, and `journal` has what entered and left the prefix cache in it.
    ///
    /// # Errors
    ///
    /// The disk has a fault.
    pub fn step(
        &mut self,
        schedule: Duration,
        plan: &StepPlan,
        outcome: &StepOutcome<ExecutionRecord>,
        applied: &[Applied],
        draft: Option<&GroupStep>,
        (blocks, journal): (&BlockManager, &KvJournal),
    ) -> Result<()> {
        self.names.note(plan, applied);
        let record = &outcome.record;
        let metadata = match self.tables {
            TraceTables::Full => record.inputs.metadata(),
            TraceTables::Delta => self.delta.reduce(plan, &record.plan_rows, record.inputs.metadata()),
        };
        let times = record.time_us;
        self.groups.begin(plan, record, blocks, self.tables);
        let groups = self.groups.lines(record, draft, self.tables);
        self.writer.write(&StepEvent {
            first_step: self.writer.first_step(),
            replica: None,
            plan,
            outcome: &outcome.rows,
            tokens: &outcome.tokens,
            applied,
            names: &self.names,
            finished: self.names.finished(),
            time_us: TimesUs {
                schedule: schedule.as_secs_f64() * 1e6,
                metadata: times.metadata,
                propose: times.propose,
                execute: times.execute,
                sample: times.sample,
            },
            // The line's metadata is that of the first segment, and so is the graph.
            mode: if matches!(record.ran, Ran::Graph(_)) { "graph" } else { "eager" },
            graph_key: match &record.ran {
                Ran::Graph(key) => Some(key),
                Ran::Eager(_) => None,
            },
            input_tokens: &record.inputs.tokens,
            input_positions: &record.inputs.positions,
            plan_rows: &record.plan_rows,
            metadata,
            groups: groups.as_ref(),
            pool: self.groups.pool(blocks),
            by_group: self.groups.by_group(),
            kv_events: KvEvents { journal, groups: blocks.groups() },
        })?;
        Ok(())
    }

    /// Writes what the layers of a model with sparse attention attended to in a step whose line was written.
    ///
    /// # Errors
    ///
    /// The disk or the device has a fault.
    pub fn dsa<D: Device>(
        &mut self,
        step: (&StepPlan, &StepOutcome<ExecutionRecord>),
        runner: &mut Runner<D>,
        scheduler: &Scheduler,
    ) -> Result<()> {
        match &mut self.dsa {
            Some(dsa) => dsa.step(step, runner, scheduler, &self.names, &mut self.writer),
            None => Ok(()),
        }
    }

    /// Writes what was decided about a prompt that drops tokens, with the name of its request.
    ///
    /// # Errors
    ///
    /// The disk has a fault.
    pub fn prune(&mut self, record: PruneRecord, request: RequestKey) -> Result<()> {
        let request_id = self.names.request_id(request).to_owned();
        let step = record.step + self.writer.first_step();
        Ok(self
            .writer
            .write(&PruneLine { event: "prune", record: PruneRecord { request_id, step, ..record } })?)
    }

    /// Writes how the tokens of canvases were judged in a step whose line was written.
    ///
    /// # Errors
    ///
    /// The disk has a fault.
    pub fn judged(&mut self, plan: &StepPlan, passes: &[CanvasPass]) -> Result<()> {
        for pass in passes.iter().filter(|pass| pass.compared) {
            let record = SkipJudgeRecord {
                request_id: self.names.request_id(pass.request).to_owned(),
                step: plan.id.0 + self.writer.first_step(),
                block: pass.block,
                pass: pass.step,
                rows: pass.rows,
                stable: pass.stable,
                active: pass.active,
                masked_before: pass.masked_before,
                masked_stable: pass.masked_stable,
                left_aside: pass.left_aside,
                all_stable_with_masks: pass.is_all_stable(),
            };
            self.writer.write(&SkipJudgeLine { event: "skip_judge", record })?;
        }
        Ok(())
    }

    /// Has the events of tensors written beside the steps. Returns the number of the first step.
    ///
    /// # Errors
    ///
    /// Their file can't be opened.
    pub fn keep_tensors(&mut self) -> Result<u64> {
        self.writer.keep_tensors()?;
        Ok(self.writer.first_step())
    }

    /// Writes what was seen of the tensors of a step whose line was written.
    ///
    /// # Errors
    ///
    /// The disk has a fault.
    pub fn tensors(
        &mut self,
        events: &[TensorEvent],
        step: (&StepPlan, &StepOutcome<ExecutionRecord>),
    ) -> Result<()> {
        trace_tensors::write(events, step, &self.names, &mut self.writer)
    }

    /// Ends the trace, in which so many events of tensors are missing because there would have been too many.
    ///
    /// # Errors
    ///
    /// The disk has a fault, now or in an earlier line.
    pub fn finish(mut self, summary: &serde_json::Value, tensors_left_out: u64) -> Result<()> {
        self.writer.leave_out_tensors(tensors_left_out);
        Ok(self.writer.finish(summary)?)
    }
}

impl Session {
    /// Writes what there is to write of a step that was applied. Making its plan took `schedule`.
    ///
    /// # Errors
    ///
    /// The disk or the device has a fault.
    pub(super) fn trace_step(&mut self, schedule: Duration) -> Result<()> {
        self.drain_journal();
        if let Some(trace) = &mut self.trace {
            let (draft, blocks) = (self.executor.group_step(), self.scheduler.blocks());
            trace.step(schedule, &self.plan, &self.outcome, &self.applied, draft, (blocks, &self.journal))?;
            trace.dsa((&self.plan, &self.outcome), self.executor.runner(), &self.scheduler)?;
            trace.judged(&self.plan, &self.outcome.record.passes)?;
            if let Some(tracer) = self.executor.tensor_tracer() {
                trace.tensors(tracer.events(), (&self.plan, &self.outcome))?;
            }
        }
        Ok(())
    }

    /// How many events of tensors were traced, and how many were left out because there would have been too many; `None` if none are
    /// traced.
    pub fn tensor_counts(&self) -> Option<(u64, u64)> {
        self.executor.tensor_tracer().map(TensorTracer::counts)
    }
}
