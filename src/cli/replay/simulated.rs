//! Replays a workload through simulated engines in virtual time.
//!
//! With a limit of concurrency, a seat that a step has freed is filled before the next step, as in a live
//! run whose next prompt is ready.

use std::collections::BTreeMap;

use anyhow::anyhow;
use pagedraft::exit::{usage, usage_hint};
use pagedraft::memory_need::{books, ensure_fits};
use pagedraft::session::{DeviceRef, DraftLength, DraftRef, EngineOptions, SimulatedKv};
use pagedraft_model::cuda::KvStorage;
use pagedraft_scheduler::{Scheduler, SchedulerConfig};
use pagedraft_spec_decode::Scorer;
use pagedraft_workloads::Error;
use pagedraft_workloads::measures::RunFacts;
use pagedraft_workloads::replay::{RequestLine, StepReport};
use pagedraft_workloads::run::RunDirectory;
use pagedraft_workloads::sim::{
    CostModel, Observer, SimEvent, SimGroups, SimOptions, SimReport, SimSpeculation, simulate,
};
use pagedraft_workloads::trace::{KvGroupRecord, TableDelta, TargetRows, TraceTables, TraceWriter};
use serde_json::{Value, json};

use super::Replay;
use super::outcome::Outcome;
use super::progress::Progress;
use super::workload::{Limits, Workload};
use crate::cli::engine_flags::note;
use crate::cli::interrupt;

/// The number of KV blocks of a simulated pool, if nothing is said.
pub const NUM_BLOCKS: u32 = 65_536;
/// The greatest length of a simulated sequence, if nothing is said.
pub const MAX_MODEL_LEN: u32 = 1 << 20;
/// Prompts that no tokenizer makes consist of token ids below this.
const VOCABULARY: u32 = 32_000;

/// Writes the lines, and the steps if they are asked for.
struct Watch {
    directory: RunDirectory,
    progress: Progress,
    done: u64,
    trace: Option<TraceWriter>,
    /// One an engine, where tables are written as they change.
    deltas: Vec<Deltas>,
}

/// The tables of an engine that were written before.
#[derive(Default)]
struct Deltas {
    metadata: TableDelta,
    groups: BTreeMap<String, TableDelta>,
}

impl Observer for Watch {
    fn line(&mut self, line: &RequestLine) -> Result<(), Error> {
        self.done += 1;
        self.directory.write(line)
    }

    fn step(&mut self, report: &StepReport) -> Result<(), Error> {
        self.progress.step(report, self.done);
        Ok(())
    }

    fn wants_trace(&self) -> bool {
        self.trace.is_some()
    }

    fn trace(&mut self, replica: u32, event: SimEvent<'_>) -> Result<(), Error> {
        let Some(writer) = &mut self.trace else { return Ok(()) };
        match self.deltas.get_mut(replica as usize) {
            None => writer.write(&event),
            Some(deltas) => {
                let plan = event.plan;
                for (name, of) in event.groups.into_iter().flatten() {
                    let delta = deltas.groups.entry((*name).to_owned()).or_default();
                    delta.reduce(plan, of.plan_rows, of.metadata);
                }
                let groups = event.groups.into_iter().flatten().filter_map(|(name, of)| {
                    let metadata = deltas.groups.get(*name)?.reduced();
                    Some((*name, TargetRows { metadata, ..*of }))
                });
                let groups: SimGroups<'_> = groups.collect();
                let metadata = deltas.metadata.reduce(plan, event.plan_rows, event.metadata);
                writer.write(&SimEvent { metadata, groups: event.groups.map(|_| &groups), ..event })
            }
        }
    }

    fn stop(&mut self) -> bool {
        interrupt::pressed()
    }
}

/// Runs the workload to its end or to Ctrl-C.
pub fn run(replay: &Replay, workload: &Workload) -> anyhow::Result<Option<Outcome>> {
    let engine = replay.engine_options()?;
    replay.engine.refuse_tiers("a simulated engine")?;
    let cost = cost_model(replay)?;
    let options = options(replay, &engine, cost)?;
    let (blocks, replicas) = (options.scheduler.num_blocks, options.replicas);
    let groups = options.scheduler.groups.len() as u128;
    let what = match replicas {
        1 => format!("--num-blocks {blocks}"),
        _ => format!("--num-blocks {blocks} of each of --replicas {replicas}"),
    };
    ensure_fits(&what, books(blocks, replicas) * groups)?;
    let limits = Limits {
        max_model_len: options.scheduler.max_model_len,
        pool_tokens: pool_tokens(&options.scheduler)?,
        step_tokens: replay.step_tokens(),
        vocabulary: 0..VOCABULARY,
    };
    let mut source = workload.source(&limits)?;
    let config = replay.config(config(&engine, &options), workload, &limits, Some(&options.cost))?;
    let directory = replay.directory_for(&config, |_| Ok(()))?;
    let trace = replay.trace_in(&directory)?;
    let deltas = match replay.engine.tables() {
        TraceTables::Full => Vec::new(),
        TraceTables::Delta => (0..options.replicas).map(|_| Deltas::default()).collect(),
    };
    let mut recorder = replay.recorder(workload);
    let progress = Progress::new("", workload.survey.items, 0);
    let mut watch = Watch { directory, progress, done: 0, trace, deltas };
    let simulated = simulate(&mut source, &options, &mut recorder, &mut watch);
    watch.progress.end();
    let SimReport { event_log_sha256, stopped, .. } = simulated.map_err(|error| match error {
        Error::Dataset(_) | Error::Options(_) => usage(error.into()),
        other => other.into(),
    })?;
    match watch.trace.take() {
        // The trace of a run that may be resumed is not at its end.
        Some(trace) if stopped => drop(trace),
        Some(trace) => trace.finish(&Value::Null)?,
        None => {}
    }
    let mut summary = recorder.summary();
    if stopped {
        // The system takes back a million requests in flight at once, and one by one it may take seconds.
        std::mem::forget(recorder);
    }
    summary.describe(RunFacts {
        cost_model: Some(options.cost.name.clone()),
        event_log_sha256: Some(event_log_sha256),
        stopped,
        ..replay.facts(workload)
    });
    Ok(Some(Outcome { directory: watch.directory, summary, report: replay.run.reports() }))
}

/// The longest that a sequence can get when it has the pool for itself.
fn pool_tokens(scheduler: &SchedulerConfig) -> anyhow::Result<u64> {
    if !has_windows(scheduler) && scheduler.segments.is_empty() {
        return Ok(u64::from(scheduler.num_blocks) * u64::from(scheduler.block_size));
    }
    // How much a model with windows or cuts holds, only the engine's book-keeping knows.
    let scheduler = Scheduler::new(scheduler.clone()).map_err(|e| usage(e.into()))?;
    Ok(u64::from(scheduler.capacity()))
}

fn has_windows(scheduler: &SchedulerConfig) -> bool {
    scheduler.groups.iter().any(|group| group.window.is_some())
}

/// The model's KV groups, where it has windows or cuts; else one that holds every token.
fn kv(engine: &EngineOptions, max_model_len: u32) -> anyhow::Result<SimulatedKv> {
    let mut kv = SimulatedKv::of(engine, max_model_len)?;
    if let Some(why) = &kv.unknown {
        note(&format!("{why}; it is simulated as a model whose layers see every token"));
    }
    if kv.groups.is_empty() {
        kv.groups = SchedulerConfig::default().groups;
    }
    Ok(kv)
}

fn cost_model(replay: &Replay) -> anyhow::Result<CostModel> {
    match &replay.run.cost_model {
        Some(path) => CostModel::read(path).map_err(|e| usage(e.into())),
        None => Ok(CostModel::builtin()),
    }
}

/// The options that the flags ask for.
fn options(replay: &Replay, engine: &EngineOptions, cost: CostModel) -> anyhow::Result<SimOptions> {
    let of_a_device = [
        (engine.device == DeviceRef::Cuda, "--device cuda"),
        (engine.kv == KvStorage::Fp8, "--kv-cache-dtype fp8"),
        (!engine.deterministic, "--no-deterministic"),
        (engine.quantization.is_some(), "--quantization"),
        (engine.activations.is_some(), "--activations"),
    ];
    if let Some((_, flag)) = of_a_device.into_iter().find(|(given, _)| *given) {
        return Err(usage_hint(
            anyhow!("{flag}: a simulated engine runs on no device; its cost model says what steps take"),
            "leave it out, or use --executor real",
        ));
    }
    if engine.kv_cache_memory.is_some() {
        return Err(usage_hint(
            anyhow!("--kv-cache-memory: a simulated engine has no bytes in its KV blocks"),
            "say how many blocks it has with --num-blocks",
        ));
    }
    if engine.shadow_rate > 0.0 || engine.inject_decode_graph_for_verify {
        return Err(usage_hint(
            anyhow!(
                "--shadow-rate and --inject-fault: a simulated engine computes nothing that could differ"
            ),
            "leave them out, or use --executor real",
        ));
    }
    let speculation = &engine.speculation;
    let most = speculation.length.most();
    let proposer = speculation.draft.as_ref().filter(|_| most > 0);
    let max_model_len = engine.max_model_len.unwrap_or(MAX_MODEL_LEN);
    let kv = kv(engine, max_model_len)?;
    Ok(SimOptions {
        scheduler: SchedulerConfig {
            block_size: engine.block_size,
            num_blocks: engine.num_blocks.unwrap_or(NUM_BLOCKS),
            max_num_seqs: engine.max_num_seqs,
            max_num_batched_tokens: engine.max_num_batched_tokens,
            max_model_len,
            enable_chunked_prefill: engine.enable_chunked_prefill,
            enable_prefix_caching: engine.enable_prefix_caching,
            prefill_chunk: engine.prefill_chunk,
            policy: engine.policy,
            groups: kv.groups,
            segments: kv.segments,
            ..SchedulerConfig::default()
        },
        cost,
        speculation: proposer.map(|draft| SimSpeculation {
            proposer: draft.name().to_owned(),
            acceptance: match draft {
                DraftRef::Synthetic { rate } => Some(*rate),
                _ => None,
            },
            most,
            auto: speculation.length == DraftLength::Auto,
            batch_expansion: speculation.scorer == Scorer::BatchExpansion,
        }),
        prune: kv.prune,
        enforce_eager: engine.enforce_eager,
        replicas: replay.run.replicas.unwrap_or(1),
        router: replay.run.router.unwrap_or_default(),
        max_concurrency: replay.arrivals.max_concurrency,
        seed: engine.seed,
    })
}

/// The engine's part of `config.json`, under the names that a real engine has there.
fn config(engine: &EngineOptions, options: &SimOptions) -> Value {
    let scheduler = &options.scheduler;
    let groups: Vec<KvGroupRecord> = scheduler.groups.iter().map(KvGroupRecord::from).collect();
    let mut config = json!({
        "model_id": Value::Null,
        "vocab_size": VOCABULARY,
        "block_size": scheduler.block_size,
        "num_blocks": scheduler.num_blocks,
        "max_model_len": scheduler.max_model_len,
        "max_num_seqs": scheduler.max_num_seqs,
        "max_num_batched_tokens": scheduler.max_num_batched_tokens,
        "prefill_chunk": scheduler.prefill_chunk,
        "enable_prefix_caching": scheduler.enable_prefix_caching,
        "enable_chunked_prefill": scheduler.enable_chunked_prefill,
        "policy": scheduler.policy,
        "draft": engine.speculation.draft.as_ref().map(ToString::to_string),
        "num_speculative_tokens": engine.speculation.length.to_string(),
        "scorer": engine.speculation.scorer,
        "acceptance": engine.speculation.acceptance,
        "enforce_eager": options.enforce_eager,
        "replicas": options.replicas,
        "router": options.router,
        "seed": options.seed,
        "revision": pagedraft::REVISION,
    });
    // A model without windows or cuts changes nothing of a simulation, which is then of no model.
    let insert = |config: &mut Value, of: &str| {
        config[of] = json!(engine.model.to_string());
        config["kv_groups"] = json!(groups);
    };
    if has_windows(scheduler) {
        insert(&mut config, "windows_of");
    }
    if !scheduler.segments.is_empty() {
        insert(&mut config, "layers_of");
    }
    config
}
