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

/// A run directory that is being written. If it was made for the run and is dropped before a line was
/// written to it or to its trace, it is removed again.
#[derive(Debug)]
pub struct RunDirectory {
    path: PathBuf,
    requests: LineWriter,
    begin: Begin,
    next_step: u64,
    leftovers: Arc<Leftovers>,
    /// Held while the run is written. The system releases it if the process is killed.
    _lock: Option<File>,
}

impl RunDirectory {
    /// Makes the directory and its parents, and writes `config` with a `schema_version` to its
    /// `config.json`.
    ///
    /// # Errors
    ///
    /// The directory can't be made, or holds a run already. Nothing has been written then.
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

    /// Resumes a run that was stopped: its lines are kept, and new ones are appended. `before` is called
    /// with each line that is there, in the order in which they were written. A last line that is cut is
    /// dropped. Nothing in the directory is changed before all lines have been read.
    ///
    /// # Errors
    ///
    /// The directory holds no run, or one that is finished; a line of it can't be read; or its
    /// `config.json` differs from `config` in a field other than `date`, `out`, `resume` and `revision`, in
    /// which case the error names the fields. Errors of `before` are returned as they are.
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

    /// Repeats a run that was stopped, from its beginning and to the same bytes. Lines that are there are
    /// compared, later ones are appended.
    ///
    /// # Errors
    ///
    /// Those of [`resume`](Self::resume).
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
            // The summary is that of the part that was run before.
            match std::fs::remove_file(path.join(SUMMARY_FILE)) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::Unwritable { path: path.to_owned(), source });
                }
                _ => {}
            }
        }
        Ok(Self { path: path.to_owned(), requests, begin, next_step, leftovers, _lock: lock })
    }

    /// The path of the directory.
    #[must_use]
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The step number with which its trace goes on; 0 unless the run was resumed.
    #[must_use]
    pub fn next_step(&self) -> u64 {
        self.next_step
    }

    /// Opens the trace of the run's steps in the same way: new, appending to what is there (after a line of
    /// event `resume`), or repeating it. [`TraceWriter::finish`] then writes no summary. If a stopped run
    /// has stored steps in one format, they go on in that format (Parquet can be made from any).
    ///
    /// # Errors
    ///
    /// Those of [`LineWriter`].
    pub fn trace(&self, format: LineFormat) -> Result<TraceWriter, Error> {
        TraceWriter::in_run(&self.path, format, self.begin, self.next_step, Arc::clone(&self.leftovers))
    }

    /// Appends a line to `requests.jsonl`.
    ///
    /// # Errors
    ///
    /// The disk has a fault, or a repeated line differs from the one that is there.
    pub fn write(&mut self, line: &RequestLine) -> Result<(), Error> {
        self.requests.write(line)
    }

    /// Waits until the system has every line, and writes `summary.json`. If the summary says that the run
    /// was stopped ([`RunFacts::stopped`](crate::measures::RunFacts::stopped)), some lines that are there
    /// may not have been repeated yet; the run can be resumed.
    ///
    /// # Errors
    ///
    /// The disk has a fault, repeated lines differ, or lines that are there were not repeated.
    pub fn finish(self, summary: &Summary) -> Result<(), Error> {
        self.requests.keep();
        if summary.facts.stopped { self.requests.leave() } else { self.requests.close() }?;
        let summary = serde_json::to_vec_pretty(summary)
            .map_err(|source| Error::Encode { what: "the summary", source })?;
        let path = self.path.join(SUMMARY_FILE);
        replace_file(&path, &summary).map_err(|source| Error::Write { path, source })
    }
}

/// Locks the directory for this process. `None` if the system can't (the directory does not exist yet, or
/// directories can't be locked); later steps then say what is wrong.
pub(crate) fn lock(path: &Path) -> Result<Option<File>, Error> {
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

/// Checks that `path` holds a run of `config` that was stopped.
fn check_stopped(path: &Path, config: &Value) -> Result<(), Error> {
    let bad = |path: &Path, what: &str| Err(Error::Run { path: path.to_owned(), what: what.to_owned() });
    let file = path.join(CONFIG_FILE);
    if !file.exists() {
        return bad(path, "holds no run to go on with; start one without --resume");
    }
    check_config(&file, config)?;
    let file = path.join(SUMMARY_FILE);
    if file.exists() && read_object(&file)?.get("stopped") != Some(&json!(true)) {
        return bad(&file, "is there: the run is finished, nothing is left to go on with");
    }
    Ok(())
}

/// Checks that the file of a configuration has this one.
pub(crate) fn check_config(file: &Path, config: &Value) -> Result<(), Error> {
    let there = read_object(file)?;
    match differences(&there, &with_version(config.clone())?) {
        None => Ok(()),
        Some(differences) => Err(Error::Run {
            path: file.to_owned(),
            what: format!(
                "the run that is there was asked otherwise, and can't be gone on with: {differences}"
            ),
        }),
    }
}

fn read_object(path: &Path) -> Result<Value, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    json_fault::parse(&bytes)
        .map_err(|fault| Error::Run { path: path.to_owned(), what: format!("line {}: {fault}", fault.line) })
}

#[cfg(test)]
mod tests;
