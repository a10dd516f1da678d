use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use super::config::differences;
use super::leftovers::with_version;
use super::{Begin, Leftovers, LineFormat, LineReader, LineWriter, REPORT_FILE, REQUESTS_FILE};
use crate::Error;
use crate::json_fault;
use crate::measures::Summary;
use crate::replay::RequestLine;
use crate::trace::{CONFIG_FILE, SUMMARY_FILE, TraceWriter, last_step, replace_file};

/// A run directory being written. Dropped before a line was written to it or to its trace, a directory that was made for
/// the run is gone again.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    requests: LineWriter,
    begin: Begin,
    next_step: u64,
    leftovers: Arc<Leftovers>,
    /// Held while the run is written; the system takes it back from a process that was killed.
    _lock: Option<File>,
}

impl RunDirectory {
    /// Makes the directory, and those above it, and writes `config` to its `config.json`, with a `schema_version`.
    ///
    /// # Errors
    ///
    /// Before anything is written: it can't be made, or holds a run.
    pub fn create(path: &Path, config: &Value) -> Result<Self, Error> {
        if path.exists() && !path.is_dir() {
            return Err(Error::NotADirectory { path: path.to_owned() });
        }
        let others = [REQUESTS_FILE, REPORT_FILE].into_iter().find(|name| path.join(name).exists());
        if let Some(there) = TraceWriter::occupied(path).or_else(|| others.map(str::to_owned)) {
            let what = "is there already: the directory holds a run, or something else's files. Go on with a run that was \
                        stopped (--resume), or name another directory";
            return Err(Error::Run { path: path.join(there), what: what.to_owned() });
        }
        let leftovers = Arc::new(Leftovers::start(path, config.clone())?);
        let lock = lock(path)?;
        Self::open(path, Begin::New, 0, leftovers, lock)
    }

    /// Goes on with a run that was stopped: its lines are kept, and new ones added behind them. Those that are there are told
    /// to `before`, one at a time, in the order in which they were written; a cut last line is dropped. Nothing in the
    /// directory is changed before all of them were.
    ///
    /// # Errors
    ///
    /// It holds no run, or one that is finished; a line of it can't be read; its `config.json` differs from `config`: in
    /// which fields (`date`, `out`, `resume` and `revision` may). What `before` says, as it says it.
    pub fn resume<E: From<Error>>(
        path: &Path,
        config: &Value,
        mut before: impl FnMut(&RequestLine) -> Result<(), E>,
    ) -> Result<Self, E> {
        let lock = lock(path)?;
        check_stopped(path, config)?;
        let requests = path.join(REQUESTS_FILE);
        if requests.exists() {
            let mut reader = LineReader::open(&requests, LineFormat::Jsonl)?;
            while let Some(line) = reader.next_line()? {
                let parsed = json_fault::parse(line).map_err(|error| Error::Run {
                    path: requests.clone(),
                    what: format!("line {}: {error}", reader.number()),
                })?;
                before(&parsed)?;
            }
        }
        let next_step = last_step(path)?.map_or(0, |last| last.saturating_add(1));
        Ok(Self::open(path, Begin::Append, next_step, Arc::new(Leftovers::none(path)), lock)?)
    }

    /// Goes on with a run that was stopped and is made again from its beginning, to the same bytes: lines that are there are
    /// compared, later ones added.
    ///
    /// # Errors
    ///
    /// As [`resume`](Self::resume).
    pub fn repeat(path: &Path, config: &Value) -> Result<Self, Error> {
        let lock = lock(path)?;
        check_stopped(path, config)?;
        Self::open(path, Begin::Repeat, 0, Arc::new(Leftovers::none(path)), lock)
    }

    fn open(
        path: &Path,
        begin: Begin,
        next_step: u64,
        leftovers: Arc<Leftovers>,
        lock: Option<File>,
    ) -> Result<Self, Error> {
        let requests = path.join(REQUESTS_FILE);
        let requests = LineWriter::open(requests, LineFormat::Jsonl, begin, Arc::clone(&leftovers))?;
        if begin != Begin::New {
            // It was of the part that was run before.
            match std::fs::remove_file(path.join(SUMMARY_FILE)) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::Unwritable { path: path.to_owned(), source });
                }
                _ => {}
            }
        }
        Ok(Self { path: path.to_owned(), requests, begin, next_step, leftovers, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The step number that its trace goes on from; 0 unless it was resumed.
    #[must_use]
    pub fn next_step(&self) -> u64 {
        self.next_step
    }

    /// The trace of its steps, in the same way: new, going on behind what is there (with a line of event `resume`), or
    /// repeating it. [`TraceWriter::finish`] writes no summary then. Steps that a stopped run stored in one format go on in
    /// that one (Parquet is made from any).
    ///
    /// # Errors
    ///
    /// As [`LineWriter`]'s.
    pub fn trace(&self, format: LineFormat) -> Result<TraceWriter, Error> {
        TraceWriter::in_run(&self.path, format, self.begin, self.next_step, Arc::clone(&self.leftovers))
    }

    /// Adds a line to `requests.jsonl`.
    ///
    /// # Errors
    ///
    /// A fault of the disk; a repeated line that differs from the one that is there.
    pub fn write(&mut self, line: &RequestLine) -> Result<(), Error> {
        self.requests.write(line)
    }

    /// Waits until every line is with the system, and writes `summary.json`. Of a run that was stopped, as the summary says
    /// ([`RunFacts::stopped`](crate::measures::RunFacts::stopped)), not all lines that are there need to be repeated; it can be
    /// gone on with.
    ///
    /// # Errors
    ///
    /// A fault of the disk; repeated lines that differ, or that are there and were not repeated.
    pub fn finish(self, summary: &Summary) -> Result<(), Error> {
        self.requests.keep();
        if summary.facts.stopped { self.requests.leave() } else { self.requests.close() }?;
        let summary = serde_json::to_vec_pretty(summary)
            .map_err(|source| Error::Encode { what: "the summary", source })?;
        let path = self.path.join(SUMMARY_FILE);
        replace_file(&path, &summary).map_err(|source| Error::Write { path, source })
    }
}

/// Takes the directory for this process; `None` where the system can't (no such directory yet, no locks on directories): what
/// follows says what is wrong.
fn lock(path: &Path) -> Result<Option<File>, Error> {
    let Ok(directory) = File::open(path) else { return Ok(None) };
    match directory.try_lock() {
        Ok(()) => Ok(Some(directory)),
        Err(TryLockError::WouldBlock) => Err(Error::Run {
            path: path.to_owned(),
            what: "another process is writing this run: wait until it has ended, or stop it".to_owned(),
        }),
        Err(TryLockError::Error(_)) => Ok(None),
    }
}

/// That `path` holds a run of `config` that was stopped.
fn check_stopped(path: &Path, config: &Value) -> Result<(), Error> {
    let bad = |path: &Path, what: &str| Err(Error::Run { path: path.to_owned(), what: what.to_owned() });
    let file = path.join(CONFIG_FILE);
    if !file.exists() {
        return bad(path, "holds no run to go on with; start one without --resume");
    }
    let there = read_object(&file)?;
    if let Some(differences) = differences(&there, &with_version(config.clone())?) {
        let what =
            format!("the run that is there was asked otherwise, and can't be gone on with: {differences}");
        return bad(&file, &what);
    }
    let file = path.join(SUMMARY_FILE);
    if file.exists() && read_object(&file)?.get("stopped") != Some(&json!(true)) {
        return bad(&file, "is there: the run is finished, nothing is left to go on with");
    }
    Ok(())
}

fn read_object(path: &Path) -> Result<Value, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    json_fault::parse(&bytes)
        .map_err(|fault| Error::Run { path: path.to_owned(), what: format!("line {}: {fault}", fault.line) })
}

#[cfg(test)]
mod tests;
