//! Replays a workload through several engines of one model in real time, behind a router.
//!
//! Each engine has a thread, a KV pool and a prefix cache of its own, and they share the CPU threads. Requests and what comes back go the
//! way that they go with a server, but without one.

mod engine;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use pagedraft::engine::handle::{EngineHandle, EngineThread, Limits as EngineLimits};
use pagedraft::exit::usage_hint;
use pagedraft::session::{EngineOptions, Request, Session, SessionInfo, TraceOptions};
use pagedraft_workloads::measures::RunFacts;
use pagedraft_workloads::replay::PlannedRequest;
use pagedraft_workloads::sim::{Routing, RoutingOptions};
use serde_json::Value;
use tokio::sync::mpsc::unbounded_channel;

use self::engine::Engine;
use super::Replay;
use super::outcome::Outcome;
use super::progress::Progress;
use super::real::{done_already, done_before, limits, spoken};
use super::stream::{Drive, Prepared, Target, Teller, Watch};
use super::workload::Workload;
use crate::cli::interrupt;
use crate::cli::live::Before;

/// No request is refused, and no reader is too slow: what is measured is how long everything takes.
const LIMITS: EngineLimits = EngineLimits { max_queue: usize::MAX, deltas: 1 << 16 };

/// Engines, and the router before them.
struct Fleet<'a> {
    engines: Vec<Engine>,
    routing: Routing,
    /// What a plain run generated for each request, which synthetic drafts need.
    recorded: &'a HashMap<u64, Arc<[u32]>>,
}

impl Target for Fleet<'_> {
    type Made = ();

    fn send(&mut self, planned: PlannedRequest, (): (), teller: Teller) {
        self.engines.iter_mut().for_each(Engine::catch_up);
        let at = self.routing.choose(&planned.prompt, &self.engines);
        let mut request = Request::new(planned.index.to_string(), planned.prompt, planned.max_tokens);
        request.ignore_eos = !planned.until_stop;
        request.recorded.extend(self.recorded.get(&planned.index).cloned());
        self.engines[at].run(request, teller);
    }
}

/// Runs the workload to its end or to Ctrl-C; `None` if there are no results.
pub fn run(replay: &Replay, workload: &Workload, replicas: u32) -> anyhow::Result<Option<Outcome>> {
    let traces = replay.run.traces();
    if replay.run.resume && traces {
        return Err(usage_hint(
            anyhow!("--resume: the trace of each of --replicas {replicas} ends with its engine"),
            "go on without traces: --no-trace",
        ));
    }
    replay.engine.refuse_tiers_of_several()?;
    let mut options = EngineOptions { attaches_trace: false, ..replay.engine_options()? };
    options.threads = (options.threads / replicas as usize).max(1);
    let done = if replay.run.resume { done_already(&replay.out)? } else { HashSet::new() };
    let Some(spoken) = spoken(replay, workload, &options, &done)? else { return Ok(None) };
    let mut sessions = Vec::new();
    for replica in 0..replicas {
        let trace = traces.then(|| TraceOptions {
            dir: replay.out.join(format!("replica-{replica}")),
            tables: replay.engine.tables(),
            format: replay.engine.trace_format,
        });
        let options = EngineOptions { trace, ..options.clone() };
        let mut session = interrupt::preparing(|| Session::open(&options))
            .with_context(|| format!("engine {replica} of --replicas {replicas}"))?;
        session.touch()?;
        sessions.push(session);
    }
    let Some(first) = sessions.first() else { return Ok(None) };
    let info = first.info().clone();
    replay.engine.tell_of_the_device(&info);
    replay.engine.refuse_for_canvases(&info)?;
    let limits = limits(first, replay)?;
    let source = workload.source(&limits)?;
    let config = replay.config(first.config().clone(), workload, &limits, None)?;
    if interrupt::pressed() {
        return Ok(None);
    }
    let (mut recorder, mut before) = (replay.recorder(workload), Before::default());
    let items = workload.survey.items;
    let directory = replay
        .directory_for(&config, |line| done_before(line, &mut before, &mut recorder, &replay.out, items))?;
    let mut watch = Watch { directory, progress: Progress::new("", items, recorder.done()) };
    let (engines, threads) = start(sessions)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("the runtime of the requests does not start")?;
    let drive = Drive {
        target: Fleet { engines, routing: routing(replay, &options, &info), recorded: &spoken },
        before: &before,
        max_concurrency: replay.arrivals.max_concurrency,
    };
    let requests = source.map(|incoming| incoming.map(|incoming| Prepared::new(incoming, |_| ())));
    let whole = drive.run(&runtime, requests, &mut recorder, &mut watch);
    watch.progress.end();
    // Requests in flight are aborted: nobody reads them any more.
    drop(runtime);
    let stopped = !whole.with_context(|| format!("the run in {} did not end", replay.out.display()))?;
    for thread in threads {
        let mut session = thread.join()?;
        if !stopped {
            session.close(&Value::Null)?;
        }
    }
    let mut summary = recorder.summary();
    summary.describe(RunFacts { stopped, max_num_seqs: None, ..replay.facts(workload) });
    Ok(Some(Outcome { directory: watch.directory, summary, report: replay.run.reports() }))
}

fn start(sessions: Vec<Session>) -> anyhow::Result<(Vec<Engine>, Vec<EngineThread>)> {
    let mut all = (Vec::new(), Vec::new());
    for session in sessions {
        let (events, news) = unbounded_channel();
        let (handle, thread) = EngineHandle::start_telling(session, LIMITS, events)?;
        all.0.push(Engine::new(handle, news));
        all.1.push(thread);
    }
    Ok(all)
}

fn routing(replay: &Replay, options: &EngineOptions, info: &SessionInfo) -> Routing {
    Routing::new(RoutingOptions {
        router: replay.run.router.unwrap_or_default(),
        budget: options.max_num_batched_tokens,
        block_size: info.block_size,
        caching: options.enable_prefix_caching,
        salt: info.kv_salt,
    })
}
