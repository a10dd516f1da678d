//! The writing end of a trace.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::{CONFIG_FILE, SCHEMA_VERSION, STEPS_FILE, SUMMARY_FILE, replace_file};
use crate::Error;

/// Lines wait at most so long for the disk ...
const FLUSH_EVERY: Duration = Duration::from_millis(100);
/// ... or until there are so many bytes of them.
const FLUSH_BYTES: usize = 64 << 10;
/// Beyond this the engine waits for the disk: memory stays bounded.
const MOST_PENDING: usize = 8 << 20;

/// Writes a trace directory. A step costs its caller one serialisation into a buffer that is used again, and
/// one copy; a thread of the writer's own does the rest.
///
/// Dropped without [`finish`](Self::finish), it still writes the lines it was given; a run that failed before its first
/// line leaves nothing behind.
#[derive(Debug)]
pub struct TraceWriter {
    directory: PathBuf,
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
    line: Vec<u8>,
    /// What to take away again when no line was written.
    unused: Option<Unused>,
}

/// What [`TraceWriter::create`] made.
#[derive(Debug)]
struct Unused {
    made_directory: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    to_thread: Condvar,
    to_engine: Condvar,
}

#[derive(Debug, Default)]
struct State {
    pending: Vec<u8>,
    closing: bool,
    failed: Option<std::io::Error>,
    dead: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing is left half-done under this lock, so a panic elsewhere doesn't spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TraceWriter {
    /// Makes `directory` if need be, and writes `config` with a `schema_version` to its `config.json`.
    ///
    /// # Errors
    ///
    /// Before anything is written: the path is no directory, can't be written, or holds a trace already.
    pub fn create(directory: &Path, config: &impl Serialize) -> Result<Self, Error> {
        let unwritable = |source| Error::Unwritable { path: directory.to_owned(), source };
        let mut config = serde_json::to_value(config)
            .map_err(|source| Error::Encode { what: "the configuration", source })?;
        let Some(fields) = config.as_object_mut() else { return Err(Error::ConfigNotAnObject) };
        fields.insert("schema_version".to_owned(), SCHEMA_VERSION.into());
        let config = serde_json::to_vec_pretty(&config)
            .map_err(|source| Error::Encode { what: "the configuration", source })?;
        if directory.exists() && !directory.is_dir() {
            return Err(Error::NotADirectory { path: directory.to_owned() });
        }
        for file in [STEPS_FILE, CONFIG_FILE, SUMMARY_FILE] {
            if directory.join(file).exists() {
                return Err(Error::HoldsTrace { path: directory.to_owned(), file });
            }
        }
        let made_directory = !directory.exists();
        std::fs::create_dir_all(directory).map_err(unwritable)?;
        let steps = directory.join(STEPS_FILE);
        let file = File::create_new(&steps).map_err(|source| match source.kind() {
            std::io::ErrorKind::AlreadyExists => {
                Error::HoldsTrace { path: directory.to_owned(), file: STEPS_FILE }
            }
            _ => unwritable(source),
        })?;
        let shared = Arc::new(Shared::default());
        let started = replace_file(&directory.join(CONFIG_FILE), &config).and_then(|()| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name("trace".to_owned()).spawn(move || write_lines(file, &shared))
        });
        match started {
            Ok(thread) => Ok(Self {
                directory: directory.to_owned(),
                shared,
                thread: Some(thread),
                line: Vec::new(),
                unused: Some(Unused { made_directory }),
            }),
            Err(source) => {
                let _ = std::fs::remove_file(&steps);
                Err(unwritable(source))
            }
        }
    }

    /// Adds one line, usually a [`super::StepEvent`].
    ///
    /// # Errors
    ///
    /// A value that is no JSON, or a fault of the disk in an earlier line.
    pub fn write(&mut self, event: &impl Serialize) -> Result<(), Error> {
        self.line.clear();
        serde_json::to_writer(&mut self.line, event)
            .map_err(|source| Error::Encode { what: "a trace line", source })?;
        self.line.push(b'\n');
        self.unused = None;
        let mut state = self.shared.lock();
        while state.pending.len() > MOST_PENDING && !state.dead {
            state = self.shared.to_engine.wait(state).unwrap_or_else(PoisonError::into_inner);
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

    /// Where the trace goes.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Waits until every line is with the system, and writes `summary` to `summary.json`.
    ///
    /// # Errors
    ///
    /// A fault of the disk, in these lines or in the summary.
    pub fn finish(mut self, summary: &impl Serialize) -> Result<(), Error> {
        let summary = serde_json::to_vec_pretty(summary)
            .map_err(|source| Error::Encode { what: "the summary", source })?;
        self.unused = None;
        self.close();
        let mut state = self.shared.lock();
        if state.dead {
            return Err(self.fault(&mut state));
        }
        drop(state);
        let path = self.directory.join(SUMMARY_FILE);
        replace_file(&path, &summary).map_err(|source| Error::Write { path, source })
    }

    fn fault(&self, state: &mut State) -> Error {
        let source = state
            .failed
            .take()
            .unwrap_or_else(|| std::io::Error::other("an earlier line could not be written"));
        Error::Write { path: self.directory.join(STEPS_FILE), source }
    }

    fn close(&mut self) {
        self.shared.lock().closing = true;
        self.shared.to_thread.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed by then, and leaves whole lines behind.
            let _ = thread.join();
        }
    }
}

impl Drop for TraceWriter {
    fn drop(&mut self) {
        self.close();
        if let Some(Unused { made_directory }) = self.unused.take() {
            // On the way out of another failure: what can't be removed is not worth a second one.
            for name in [STEPS_FILE, CONFIG_FILE] {
                let _ = std::fs::remove_file(self.directory.join(name));
            }
            if made_directory {
                let _ = std::fs::remove_dir(&self.directory);
            }
        }
    }
}

/// Takes whole lines out of `shared` and writes them, until it is closed or the disk fails.
fn write_lines(mut file: File, shared: &Shared) {
    let mut lines = Vec::new();
    let mut whole = 0u64;
    loop {
        let mut state = shared.lock();
        if !state.closing && state.pending.len() < FLUSH_BYTES {
            state =
                shared.to_thread.wait_timeout(state, FLUSH_EVERY).unwrap_or_else(PoisonError::into_inner).0;
        }
        let closing = state.closing;
        std::mem::swap(&mut state.pending, &mut lines);
        drop(state);
        shared.to_engine.notify_one();
        if let Err(source) = file.write_all(&lines) {
            // Back to whole lines; should that fail too, readers ignore a cut last line.
            let _ = file.set_len(whole);
            let mut state = shared.lock();
            state.failed = Some(source);
            state.dead = true;
            drop(state);
            shared.to_engine.notify_one();
            return;
        }
        whole += lines.len() as u64;
        lines.clear();
        if closing && shared.lock().pending.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
