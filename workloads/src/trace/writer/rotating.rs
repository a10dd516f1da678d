//! Traces without an end, whose files are cut by their size.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::super::parts::{Part, unnumbered};
use super::super::rotation::{Rotation, next_number};
use super::super::{CONFIG_FILE, STEPS_STEM, SUMMARY_FILE, last_step};
use super::TraceWriter;
use crate::Error;
use crate::run::{Begin, Leftovers, LineFormat, check_config, lock};

impl TraceWriter {
    /// Makes a trace whose files are cut: as soon as the file with the steps has `bytes` bytes of lines, it is given a number
    /// (`trace_steps.000001.jsonl`, and so on), and another one is begun. The records of sparse attention and of tensors are cut in the
    /// same way. Readers take all files of a kind as one. If the directory holds such a trace already, which another process with the
    /// same configuration left, then this one goes on with it, behind a line of event `resume`.
    ///
    /// # Errors
    ///
    /// Those of [`create`](Self::create); the trace that is there has another configuration, or another process is writing it.
    pub fn create_rotating(
        directory: &Path,
        config: &impl Serialize,
        format: LineFormat,
        bytes: u64,
    ) -> Result<Self, Error> {
        if format == LineFormat::Parquet {
            let what = "a trace that is cut by its size can't be Parquet; use jsonl or jsonl.zst";
            return Err(Error::Options(what.to_owned()));
        }
        let mut writer = if Self::occupied(directory).is_none() {
            let made = Self::create(directory, config, format)?;
            Self { _lock: lock(directory)?, ..made }
        } else {
            Self::go_on(directory, config, format)?
        };
        writer.rotation = Some(Rotation::new(directory, STEPS_STEM, format.extension(), bytes));
        Ok(writer)
    }

    /// Begins another file behind those that a process left.
    fn go_on(directory: &Path, config: &impl Serialize, format: LineFormat) -> Result<Self, Error> {
        let lock = lock(directory)?;
        let config = serde_json::to_value(config)
            .map_err(|source| Error::Encode { what: "the configuration", source })?;
        check_config(&directory.join(CONFIG_FILE), &config)?;
        let unwritable = |source| Error::Unwritable { path: directory.to_owned(), source };
        let summary = directory.join(SUMMARY_FILE);
        if summary.exists() {
            std::fs::remove_file(summary).map_err(unwritable)?;
        }
        let first_step = last_step(directory)?.map_or(0, |last| last.saturating_add(1));
        if let Some((path, there)) = unnumbered(directory, STEPS_STEM) {
            let next = next_number(directory, STEPS_STEM);
            let part = Part::new(directory, STEPS_STEM, next, there.extension());
            std::fs::rename(path, part.path).map_err(unwritable)?;
        }
        let mut writer = Self::open(directory, format, Begin::New, Arc::new(Leftovers::none(directory)))?;
        (writer.first_step, writer.appends, writer._lock) = (first_step, true, lock);
        writer.write(&json!({"event": "resume", "step": first_step}))?;
        Ok(writer)
    }
}

#[cfg(test)]
mod tests;
