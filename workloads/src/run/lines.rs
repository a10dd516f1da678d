//! Files of JSON lines, written by a thread of their own in whole lines.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use super::Leftovers;
use super::sink::{Fault, Sink};
use crate::Error;

/// Lines wait at most so long for the disk ...
pub(crate) const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// ... or until there are so many bytes of them.
const FLUSH_BYTES: usize = 64 << 10;
/// Beyond this the caller waits for the disk: memory stays bounded.
const MOST_PENDING: usize = 8 << 20;

/// How lines are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LineFormat {
    /// As they are.
    #[default]
    #[serde(rename = "jsonl")]
    Jsonl,
    /// Compressed, in frames that can be read one by one.
    #[serde(rename = "jsonl.zst")]
    JsonlZst,
    /// Apache Parquet, made from lines when the run ends.
    #[serde(rename = "parquet")]
    Parquet,
}

impl LineFormat {
    /// All of them, in the order in which a file is looked for.
    pub const ALL: [Self; 3] = [Self::Jsonl, Self::JsonlZst, Self::Parquet];

    /// How its files' names end, without the dot; also its name.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::JsonlZst => "jsonl.zst",
            Self::Parquet => "parquet",
        }
    }

    /// Whether this build has the format.
    ///
    /// # Errors
    ///
    /// It does not, for people.
    pub fn check(self) -> Result<(), Error> {
        if self == Self::Parquet && !cfg!(feature = "parquet") {
            let what = "this build has no Parquet (cargo feature `parquet`); use jsonl.zst, or another build";
            return Err(Error::Options(what.to_owned()));
        }
        Ok(())
    }

    /// The name of a file of this format.
    #[must_use]
    pub fn file_name(self, stem: &str) -> String {
        format!("{stem}.{}", self.extension())
    }

    /// The file of this format in `directory`.
    #[must_use]
    pub fn file(self, directory: &Path, stem: &str) -> PathBuf {
        directory.join(self.file_name(stem))
    }

    /// What lines are written as while a run goes on: Parquet can't be read before its end is written.
    #[must_use]
    pub fn while_running(self) -> Self {
        match self {
            Self::Jsonl | Self::Parquet => Self::Jsonl,
            Self::JsonlZst => Self::JsonlZst,
        }
    }
}

impl std::fmt::Display for LineFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.extension())
    }
}

impl std::str::FromStr for LineFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|format| format.extension() == text);
        found.ok_or_else(|| format!("{text:?} is none of jsonl, jsonl.zst, parquet"))
    }
}

/// What a file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// It must not be there.
    New,
    /// Lines are added behind those that are there; what is not whole at its end is cut away. It may be missing.
    Append,
    /// The lines that are there are written again and compared; later ones are added. It may be missing.
    Repeat,
}

/// Writes whole lines. A line costs its caller one serialisation into a buffer that is used again, and one copy; a
/// thread of the writer's own does the rest. At most 8 MiB and a line wait for the disk.
///
/// A killed process leaves a file that is readable up to its last flush: every 100 ms or 64 KiB for `jsonl`, every second
/// or 256 KiB for `jsonl.zst`. Dropped without [`close`](Self::close), it still writes the lines it was given.
#[derive(Debug)]
pub struct LineWriter {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
    line: Vec<u8>,
    /// Dropped after the thread has ended.
    leftovers: Arc<Leftovers>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    to_thread: Condvar,
    to_caller: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    closing: bool,
    failed: Option<Fault>,
    dead: bool,
    /// Whether all lines were given: none that are there may be left to repeat.
    complete: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half-done under this lock, so a panic elsewhere doesn't spoil it.
        self.state.lock()
    }
}

impl LineWriter {
    /// Opens `path`, whose lines are stored in `format` (as they are, for Parquet: its file is made afterwards).
    ///
    /// # Errors
    ///
    /// It can't be opened, or is there though it should be new; what is there can't be read on.
    pub(crate) fn open(
        path: PathBuf,
        format: LineFormat,
        begin: Begin,
        leftovers: Arc<Leftovers>,
    ) -> Result<Self, Error> {
        let sink = Sink::open(&path, format.while_running(), begin)?;
        if begin == Begin::New {
            leftovers.add(path.clone());
        }
        Self::start(path, sink, leftovers)
    }

    fn start(path: PathBuf, sink: Sink, leftovers: Arc<Leftovers>) -> Result<Self, Error> {
        let shared = Arc::new(Shared::default());
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("lines".to_owned()).spawn(move || write_lines(sink, &shared))
        };
        let thread = thread.map_err(|source| Error::Unwritable { path: path.clone(), source })?;
        Ok(Self { path, shared, thread: Some(thread), line: Vec::new(), leftovers })
    }

    /// Adds one line.
    ///
    /// # Errors
    ///
    /// A value that is no JSON; a fault of the disk in an earlier line, or an earlier line that differs from the one that it
    /// repeats.
    pub fn write(&mut self, line: &impl Serialize) -> Result<(), Error> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, line)
            .map_err(|source| Error::Encode { what: "a line", source })?;
        self.line.push(b'\n');
        self.leftovers.keep();
        let mut state = self.shared.lock();
        while state.pending.len() > MOST_PENDING && !state.dead {
            self.shared.to_caller.wait(&mut state);
        }
        if state.dead {
            return Err(self.fault(&mut state));
        }
        let before = state.pending.len();
        state.pending.extend_from_slice(&self.line);
        let full = before < FLUSH_BYTES && state.pending.len() >= FLUSH_BYTES;
        drop(state);
        if full {
            self.shared.to_thread.notify_one();
        }
        Ok(())
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is left of the file is kept, though no line was written.
    pub(crate) fn keep(&self) {
        self.leftovers.keep();
    }

    /// Waits until every line is with the system.
    ///
    /// # Errors
    ///
    /// A fault of the disk; a repeated line that differs from the one that is there; lines that are there and were not
    /// repeated.
    pub fn close(mut self) -> Result<(), Error> {
        self.end(true)
    }

    /// The same, before the end of what is to be written: lines that are there and were not repeated stay.
    ///
    /// # Errors
    ///
    /// A fault of the disk; a repeated line that differs from the one that is there.
    pub fn leave(mut self) -> Result<(), Error> {
        self.end(false)
    }

    /// A writer to a file that a test made, said to be `path`.
    #[cfg(test)]
    pub(crate) fn over(path: PathBuf, file: std::fs::File) -> Self {
        let leftovers = Arc::new(Leftovers::none(&path));
        Self::start(path, Sink::over(file), leftovers).unwrap()
    }

    fn fault(&self, state: &mut State) -> Error {
        let fault = state
            .failed
            .take()
            .unwrap_or_else(|| Fault::Disk(std::io::Error::other("an earlier line could not be written")));
        fault.into_error(self.path.clone())
    }

    fn end(&mut self, complete: bool) -> Result<(), Error> {
        let mut state = self.shared.lock();
        state.closing = true;
        state.complete = complete;
        drop(state);
        self.shared.to_thread.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed by then, and leaves whole lines behind.
            let _ = thread.join();
        }
        let mut state = self.shared.lock();
        if state.dead { Err(self.fault(&mut state)) } else { Ok(()) }
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.end(false);
    }
}

/// Takes whole lines out of `shared` and writes them, until it is closed or the disk fails.
fn write_lines(mut sink: Sink, shared: &Shared) {
    let mut lines = Vec::new();
    loop {
        let mut state = shared.lock();
        if !state.closing && state.pending.len() < FLUSH_BYTES {
            shared.to_thread.wait_for(&mut state, FLUSH_EVERY);
        }
        let (closing, complete) = (state.closing, state.complete);
        std::mem::swap(&mut state.pending, &mut lines);
        drop(state);
        shared.to_caller.notify_one();
        let mut taken = sink.take(&lines);
        lines.clear();
        // Nobody writes while it is closed: `pending` is empty now.
        if closing && taken.is_ok() {
            taken = sink.end(complete);
            if taken.is_ok() {
                return;
            }
        }
        if let Err(fault) = taken {
            let mut state = shared.lock();
            state.failed = Some(fault);
            state.dead = true;
            drop(state);
            shared.to_caller.notify_one();
            return;
        }
    }
}

#[cfg(test)]
mod tests;
