//! Writes files of JSON lines. A thread of its own writes whole lines.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex, MutexGuard};
use serde::{Deserialize, Serialize};

use super::Leftovers;
use super::sink::{Fault, Sink};
use crate::Error;

/// Lines wait at most this long before they are written ...
pub(crate) const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// ... or until there are this many bytes of them.
const FLUSH_BYTES: usize = 64 << 10;
/// With more bytes than this waiting, the caller waits for the disk, so that memory stays bounded.
const MOST_PENDING: usize = 8 << 20;

/// How lines are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LineFormat {
    /// Plain text.
    #[default]
    #[serde(rename = "jsonl")]
    Jsonl,
    /// Compressed with zstd, in frames that can be read one by one.
    #[serde(rename = "jsonl.zst")]
    JsonlZst,
    /// Apache Parquet, made from lines when the run ends.
    #[serde(rename = "parquet")]
    Parquet,
}

impl LineFormat {
    /// All formats, in the order in which a file is looked for.
    pub const ALL: [Self; 3] = [Self::Jsonl, Self::JsonlZst, Self::Parquet];

    /// The extension of its files without the dot. It is also the format's name.
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
    /// This build does not have the format.
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

    /// The path of the file of this format in `directory`.
    #[must_use]
    pub fn file(self, directory: &Path, stem: &str) -> PathBuf {
        directory.join(self.file_name(stem))
    }

    /// The format in which lines are written while a run goes on. A Parquet file can't be read before its
    /// end is written.
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

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The file must not exist.
    New,
    /// Lines are appended to those that are there. What is not whole at the file's end is cut off. The file
    /// may be missing.
    Append,
    /// Lines that are there are compared with the ones written; later ones are appended. The file may be
    /// missing.
    Repeat,
}

/// Writes whole lines. A line costs its caller one serialisation into a reused buffer, and one copy. A
/// thread of the writer's own does the rest. At most 8 MiB and one line wait for the disk.
///
/// If the process is killed, the file is readable up to the last flush: every 100 ms or 64 KiB for `jsonl`,
/// every second or 256 KiB for `jsonl.zst`. If the writer is dropped without [`close`](Self::close), it
/// still writes the lines that it was given.
#[derive(Debug)]
pub struct LineWriter {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
    line: Vec<u8>,
    /// The bytes that it was given.
    given: u64,
    /// It is dropped after the thread has ended.
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
    /// Whether all lines were given, so that none of those in the file may be left to repeat.
    complete: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half-done under this lock, so a panic of another thread does not matter.
        self.state.lock()
    }
}

impl LineWriter {
    /// Opens `path`, where lines are stored in `format` (as plain text for Parquet, whose file is made
    /// afterwards).
    ///
    /// # Errors
    ///
    /// The file can't be opened, exists although it should be new, or holds something that can't be
    /// continued.
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

    /// Opens a file of anything for [`write_bytes`](Self::write_bytes): a new one, or one that is appended to as it is.
    pub(crate) fn open_bytes(path: PathBuf, begin: Begin, leftovers: Arc<Leftovers>) -> Result<Self, Error> {
        let sink = Sink::open_bytes(&path, begin)?;
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
        Ok(Self { path, shared, thread: Some(thread), line: Vec::new(), given: 0, leftovers })
    }

    /// Appends one line.
    ///
    /// # Errors
    ///
    /// The value can't be written as JSON, the disk had a fault in an earlier line, or an earlier line
    /// differs from the one that it repeats.
    pub fn write(&mut self, line: &impl Serialize) -> Result<(), Error> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, line)
            .map_err(|source| Error::Encode { what: "a line", source })?;
        self.line.push(b'\n');
        let line = std::mem::take(&mut self.line);
        let written = self.write_bytes(&line);
        self.line = line;
        written
    }

    /// Appends bytes that belong together.
    ///
    /// # Errors
    ///
    /// The disk had a fault in earlier ones.
    pub(crate) fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.leftovers.keep();
        let mut state = self.shared.lock();
        while state.pending.len() > MOST_PENDING && !state.dead {
            self.shared.to_caller.wait(&mut state);
        }
        if state.dead {
            return Err(self.fault(&mut state));
        }
        let before = state.pending.len();
        state.pending.extend_from_slice(bytes);
        let full = before < FLUSH_BYTES && state.pending.len() >= FLUSH_BYTES;
        drop(state);
        self.given += bytes.len() as u64;
        if full {
            self.shared.to_thread.notify_one();
        }
        Ok(())
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes that it was given, before they are compressed.
    pub(crate) fn given(&self) -> u64 {
        self.given
    }

    /// Keeps the file even if no line was written.
    pub(crate) fn keep(&self) {
        self.leftovers.keep();
    }

    /// Waits until the system has every line.
    ///
    /// # Errors
    ///
    /// The disk has a fault, a repeated line differs from the one that is there, or lines that are there
    /// were not repeated.
    pub fn close(mut self) -> Result<(), Error> {
        self.end(true)
    }

    /// Does the same before everything was written: lines that are there and were not repeated stay.
    ///
    /// # Errors
    ///
    /// The disk has a fault, or a repeated line differs from the one that is there.
    pub fn leave(mut self) -> Result<(), Error> {
        self.end(false)
    }

    /// A writer to a file that a test made. Errors call it `path`.
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
            // If the thread panicked, the panic has been printed by then, and the file holds whole lines.
            let _ = thread.join();
        }
        let mut state = self.shared.lock();
        if state.dead { Err(self.fault(&mut state)) } else { Ok(()) }
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        // Nobody is left who could be told about an error.
        let _ = self.end(false);
    }
}

/// Takes whole lines out of `shared` and writes them, until the writer is closed or the disk fails.
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
        // Nothing is added once the writer is closed, so `pending` is empty now.
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
