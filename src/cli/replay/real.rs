//! A workload through this engine, in real time.

use std::collections::{HashMap, HashSet};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};

use anyhow::{Context, anyhow};
use pagedraft::exit::usage_hint;
use pagedraft::session::{Session, tokenizer};
use pagedraft_workloads::dataset::DatasetError;
use pagedraft_workloads::measures::{Recorder, RunFacts};
use pagedraft_workloads::replay::{Incoming, RequestLine, StepReport};
use pagedraft_workloads::run::{REQUESTS_FILE, RunDirectory};
use serde_json::Value;

use super::client::{AHEAD, Before, Client, UNDER_WAY, prepare};
use super::clock::Clock;
use super::live::{IDLE, Live, Observe};
use super::outcome::Outcome;
use super::progress::Progress;
use super::seats::Seats;
use super::workload::{Limits, Workload, ordinary_ids};
use super::{Replay, recorded};
use crate::cli::{interrupt, recording};

/// Writes lines, and tells how it goes on.
struct Watch {
    directory: RunDirectory,
    progress: Progress,
}

impl Observe for Watch {
    fn line(&mut self, line: &RequestLine) -> anyhow::Result<()> {
        Ok(self.directory.write(line)?)
    }

    fn step(&mut self, report: &StepReport, done: u64) {
        self.progress.step(report, done);
    }
}

/// Runs it to its end, or to Ctrl-C; `None` when there is nothing to show for it.
pub fn run(replay: &Replay, workload: &Workload) -> anyhow::Result<Option<Outcome>> {
    let options = replay.engine_options()?;
    let plain = recording::plain(&options).map(|plain| Session::open(&plain)).transpose()?;
    let mut spoken = HashMap::new();
    if let Some(mut plain) = plain {
        let source = workload.source(&limits(&plain, replay)?)?;
        let done = if replay.run.resume { done_already(&replay.out)? } else { HashSet::new() };
        match recorded::record(&mut plain, source, workload.survey.items, &done)? {
            Some(outputs) => spoken = outputs,
            None => return Ok(None),
        }
    }
    let mut session = Session::open(&options)?;
    session.touch_kv();
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
    let facts = replay.facts(workload);
    let progress = Progress::new("", workload.survey.items, recorder.done());
    let mut watch = Watch { directory, progress };
    let whole = serve(&mut session, &mut recorder, &mut watch, source, &before, &spoken, replay);
    watch.progress.end();
    let stopped = !whole.with_context(|| format!("the run in {} did not end", replay.out.display()))?;
    match stopped {
        // The trace of a run that is gone on with is not at its end: it is not made into its last format.
        true => drop(session),
        false => session.close(&Value::Null)?,
    }
    let mut summary = recorder.summary();
    summary.describe(RunFacts { stopped, ..facts });
    Ok(Some(Outcome { directory: watch.directory, summary, report: replay.run.reports() }))
}

/// What the engine can take.
fn limits(session: &Session, replay: &Replay) -> anyhow::Result<Limits> {
    let info = session.info();
    let vocab_size = u32::try_from(info.vocab_size).unwrap_or(u32::MAX);
    // Token ids that a dataset brings are the model's own, special ones included.
    let vocabulary = match replay.dataset.has_text() {
        true => 0..vocab_size,
        false => ordinary_ids(tokenizer(&replay.engine.model)?.as_ref(), vocab_size),
    };
    Ok(Limits {
        max_model_len: info.max_model_len,
        pool_tokens: u64::from(info.num_blocks) * u64::from(info.block_size),
        step_tokens: replay.step_tokens(),
        vocabulary,
    })
}

/// Requests that a stopped run is done with, as far as its file can be read: what is wrong with it is told when the run is
/// gone on with.
fn done_already(out: &Path) -> anyhow::Result<HashSet<u64>> {
    let file = out.join(REQUESTS_FILE);
    let lines = match std::fs::File::open(&file) {
        Ok(lines) => BufReader::new(lines).lines(),
        // It was stopped before any had ended.
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(HashSet::new()),
        Err(error) => return Err(error).with_context(|| format!("can't read {}", file.display())),
    };
    // The last line may be cut off.
    let index = |line: String| serde_json::from_str::<RequestLine>(&line).ok()?.request_id.parse().ok();
    Ok(lines.map_while(Result::ok).filter_map(index).collect())
}

/// A request that a stopped run had done, told to the recorder.
fn done_before(
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
    // Casts of what is too large saturate.
    before.end_ns = before.end_ns.max((end_s * 1e9).ceil() as u64);
    Ok(())
}

/// Client and engine, each on its thread; `false` when Ctrl-C ended it.
fn serve(
    session: &mut Session,
    recorder: &mut Recorder,
    watch: &mut Watch,
    source: impl Iterator<Item = Result<Incoming, DatasetError>> + Send,
    before: &Before,
    spoken: &HashMap<u64, Arc<[u32]>>,
    replay: &Replay,
) -> anyhow::Result<bool> {
    let max_concurrency = replay.arrivals.max_concurrency;
    let seats = max_concurrency.map(|count| Seats::new(count, before.end_ns));
    let (seats, stop) = (seats.as_ref(), &AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _ends = Ends { stop, seats };
        let (ahead, prepared) = sync_channel(AHEAD);
        scope.spawn(move || prepare(source, &ahead, stop));
        // The run begins when there is something to send.
        let first = loop {
            match prepared.recv_timeout(IDLE) {
                Ok(first) => break Some(first),
                Err(RecvTimeoutError::Disconnected) => break None,
                Err(RecvTimeoutError::Timeout) if interrupt::pressed() => return Ok(false),
                Err(RecvTimeoutError::Timeout) => {}
            }
        };
        let clock = Clock::start(before.end_ns);
        let (send, arrivals) = sync_channel(UNDER_WAY);
        let client = Client { clock, seats, max_concurrency, before, stop };
        // Made before a seat is taken.
        let mut live = Live::new(session, recorder, watch, clock, seats, spoken);
        scope.spawn(move || client.run(first.into_iter().chain(prepared), &send));
        live.run(&arrivals)
    })
}

/// Tells the other threads that the engine is done, also where it ended by a panic: the scope waits for them.
struct Ends<'a> {
    stop: &'a AtomicBool,
    seats: Option<&'a Seats>,
}

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(seats) = self.seats {
            seats.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn an_engine_that_panics_ends_the_client_that_waits_for_a_seat() {
        let (stop, seats) = (AtomicBool::new(false), Seats::new(0, 0));
        let ended = catch_unwind(AssertUnwindSafe(|| {
            std::thread::scope(|scope| {
                let _ends = Ends { stop: &stop, seats: Some(&seats) };
                scope.spawn(|| assert_eq!(seats.take(&stop), None));
                panic!("the engine's fault");
            })
        }));
        assert!(ended.is_err());
    }
}
