//! Replays a workload through this engine in real time.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow};
use pagedraft::exit::usage_hint;
use pagedraft::session::{EngineOptions, Session, tokenizer};
use pagedraft_workloads::measures::{Recorder, RunFacts};
use pagedraft_workloads::replay::RequestLine;
use pagedraft_workloads::run::{REQUESTS_FILE, RunDirectory};
use serde_json::Value;

use super::outcome::Outcome;
use super::progress::Progress;
use super::workload::{Limits, Workload, ordinary_ids};
use super::{Replay, recorded};
use crate::cli::live::{Before, LiveStep, Observe, Stream};
use crate::cli::{interrupt, recording};

/// Writes the lines, and shows the progress.
struct Watch {
    directory: RunDirectory,
    progress: Progress,
}

impl Observe for Watch {
    fn line(&mut self, line: &RequestLine) -> anyhow::Result<()> {
        Ok(self.directory.write(line)?)
    }

    fn step(&mut self, step: &LiveStep<'_>) {
        self.progress.step(step.report, step.done);
    }
}

/// Runs the workload to its end or to Ctrl-C; `None` if there are no results.
pub fn run(replay: &Replay, workload: &Workload) -> anyhow::Result<Option<Outcome>> {
    let options = replay.engine_options()?;
    let done = if replay.run.resume { done_already(&replay.out)? } else { HashSet::new() };
    let Some(spoken) = spoken(replay, workload, &options, &done)? else { return Ok(None) };
    let mut session = interrupt::preparing(|| Session::open(&options))?;
    replay.engine.tell_of_the_device(session.info());
    replay.engine.refuse_for_canvases(session.info())?;
    session.touch()?;
    let limits = limits(&session, replay)?;
    let source = workload.source(&limits)?;
    let config = replay.config(session.config().clone(), workload, &limits, None)?;
    if interrupt::pressed() {
        return Ok(None);
    }
    let (mut recorder, mut before) = (replay.recorder(workload), Before::default());
    let directory = replay.directory_for(&config, |line| {
        done_before(line, &mut before, &mut recorder, &replay.out, workload.survey.items)
    })?;
    if let Some(writer) = replay.trace_in(&directory)? {
        session.attach_trace(writer, replay.engine.tables())?;
    }
    let canvases = session.info().mask_token_id.is_some();
    let block_length = canvases.then(|| replay.engine.diffusion.options().all.block_length);
    let facts = RunFacts { block_length, ..replay.facts(workload) };
    let progress = Progress::new("", workload.survey.items, recorder.done());
    let mut watch = Watch { directory, progress };
    let max_concurrency = replay.arrivals.max_concurrency;
    let stream = Stream { source, before: &before, recorded: &spoken, max_concurrency };
    let whole = stream.serve(&mut session, &mut recorder, &mut watch);
    watch.progress.end();
    let stopped = !whole.with_context(|| format!("the run in {} did not end", replay.out.display()))?;
    replay.engine.tell_of_the_tiers(&mut session);
    replay.engine.tensors.tell_what_is_left_out(&session);
    let kv_tiers = session.tier_counts().map(serde_json::to_value).transpose()?;
    match stopped {
        // The trace of a run that may be resumed is not at its end, so it is not converted to its final
        // format.
        true => drop(session),
        false => session.close(&Value::Null)?,
    }
    let mut summary = recorder.summary();
    summary.describe(RunFacts { stopped, kv_tiers, ..facts });
    summary.read_sparse_blocks(&replay.out)?;
    Ok(Some(Outcome { directory: watch.directory, summary, report: replay.run.reports() }))
}

/// What the plain engine generates for each request that is not done, where synthetic drafts need that; `None` if Ctrl-C ended it.
pub fn spoken(
    replay: &Replay,
    workload: &Workload,
    options: &EngineOptions,
    done: &HashSet<u64>,
) -> anyhow::Result<Option<HashMap<u64, Arc<[u32]>>>> {
    let Some(plain) = recording::plain(options) else { return Ok(Some(HashMap::new())) };
    let mut plain = interrupt::preparing(|| Session::open(&plain))?;
    let source = workload.source(&limits(&plain, replay)?)?;
    recorded::record(&mut plain, source, workload.survey.items, done)
}

/// What the engine can accept.
pub fn limits(session: &Session, replay: &Replay) -> anyhow::Result<Limits> {
    let info = session.info();
    let vocab_size = u32::try_from(info.vocab_size).unwrap_or(u32::MAX);
    // Token ids in a dataset are the model's own, including special ones.
    let vocabulary = match replay.dataset.has_text() {
        true => 0..vocab_size,
        false => ordinary_ids(tokenizer(&replay.engine.model)?.as_ref(), vocab_size),
    };
    Ok(Limits {
        max_model_len: info.max_model_len,
        pool_tokens: u64::from(session.capacity()),
        step_tokens: replay.step_tokens(),
        vocabulary,
    })
}

/// The requests that a stopped run has done, as far as its file can be read. Errors in it are reported when
/// the run is resumed.
pub fn done_already(out: &Path) -> anyhow::Result<HashSet<u64>> {
    let file = out.join(REQUESTS_FILE);
    let lines = match std::fs::File::open(&file) {
        Ok(lines) => BufReader::new(lines).lines(),
        // The run was stopped before any request had ended.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(HashSet::new()),
        Err(error) => return Err(error).with_context(|| format!("can't read {}", file.display())),
    };
    // The last line may be cut.
    let index = |line: String| serde_json::from_str::<RequestLine>(&line).ok()?.request_id.parse().ok();
    Ok(lines.map_while(Result::ok).filter_map(index).collect())
}

/// Tells the recorder about a request that a stopped run had done.
pub fn done_before(
    line: &RequestLine,
    before: &mut Before,
    recorder: &mut Recorder,
    out: &Path,
    items: u64,
) -> anyhow::Result<()> {
    let (id, number) = (&line.request_id, before.done.len() + 1);
    let wrong = match id.parse::<u64>() {
        Ok(index) if index >= items => Some(format!("none of this workload, whose last is {}", items - 1)),
        Ok(index) if !before.done.insert(index) => Some("there twice".to_owned()),
        Ok(_) => None,
        Err(_) => Some("none of this workload, whose requests are numbers".to_owned()),
    };
    if let Some(wrong) = wrong {
        let file = out.join(REQUESTS_FILE);
        return Err(usage_hint(
            anyhow!("{}:{number}: request {id:?} is {wrong}", file.display()),
            "was the file changed? take the line out to run that request again",
        ));
    }
    recorder.restore(line);
    let end_s = line.finish_s.or(line.sent_s).unwrap_or(0.0);
    // The cast saturates if the value is too large.
    before.end_ns = before.end_ns.max((end_s * 1e9).ceil() as u64);
    Ok(())
}
