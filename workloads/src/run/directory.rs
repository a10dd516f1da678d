use std::path::{Path, PathBuf};

use crate::Error;
use crate::measures::Summary;
use crate::replay::RequestLine;

/// A run directory being written.
#[derive(Debug)]
pub struct RunDirectory {}

/// What a stopped run left.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resumed {
    /// The requests that were done with, in the order in which they were written; a cut last line is dropped.
    pub lines: Vec<RequestLine>,
    /// The step number that the trace goes on from.
    pub next_step: u64,
}

impl RunDirectory {
    /// Makes the directory and writes `config` to its `config.json`, with a `schema_version`.
    ///
    /// # Errors
    ///
    /// Before anything is written: it can't be made, or holds a run.
    pub fn create(_path: &Path, _config: &serde_json::Value) -> Result<Self, Error> {
        unimplemented!()
    }

    /// Goes on with a run that was stopped: its lines are kept, and new ones added behind them.
    ///
    /// # Errors
    ///
    /// It holds no run, a line of it can't be read, or its `config.json` differs from `config`: in which fields.
    pub fn resume(_path: &Path, _config: &serde_json::Value) -> Result<(Self, Resumed), Error> {
        unimplemented!()
    }

    /// Goes on with a run that was stopped and is made again from its beginning, to the same bytes: lines that are there are
    /// compared, later ones added.
    ///
    /// # Errors
    ///
    /// As [`resume`](Self::resume).
    pub fn repeat(_path: &Path, _config: &serde_json::Value) -> Result<Self, Error> {
        unimplemented!()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &PathBuf {
        unimplemented!()
    }

    /// Adds a line to `requests.jsonl`.
    ///
    /// # Errors
    ///
    /// A fault of the disk; a repeated line that differs from the one that is there.
    pub fn write(&mut self, _line: &RequestLine) -> Result<(), Error> {
        unimplemented!()
    }

    /// Waits until every line is with the system, and writes `summary.json`.
    ///
    /// # Errors
    ///
    /// A fault of the disk.
    pub fn finish(self, _summary: &Summary) -> Result<(), Error> {
        unimplemented!()
    }
}
