//! Traces without an end, whose steps are cut into files of bounded size.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::super::parts::Part;
use super::super::{CONFIG_FILE, SUMMARY_FILE, last_step, steps_file};
use super::TraceWriter;
use crate::Error;
use crate::run::{Begin, Leftovers, LineFormat, LineWriter, check_config, lock};

/// Where the steps of a trace are cut.
#[derive(Debug)]
pub(super) struct Rotation {
    /// A file with so many bytes of lines, as they are before they are compressed, is full.
    bytes: u64,
    /// The number of the next one that will be full.
    next: u32,
    /// No other process writes there meanwhile.
    _lock: Option<File>,
}

impl TraceWriter {
    /// Makes a trace whose steps are cut: as soon as the file with the steps has `bytes` bytes of lines, it is given a number
    /// (`trace_steps.000001.jsonl`, and so on), and another one is begun. Readers take all of them as one. If the directory holds such a
    /// trace already, which another process with the same configuration left, then this one goes on with it, behind a line of event
    /// `resume`.
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
            Self::create(directory, config, format)?
        } else {
            Self::go_on(directory, config, format)?
        };
        let next = Part::all(directory).last().map_or(1, |part| part.number + 1);
        // A directory that was just made is locked from here on.
        let held = writer.held.take();
        let _lock = if held.is_some() { held } else { lock(directory)? };
        writer.rotation = Some(Rotation { bytes, next, _lock });
        Ok(writer)
    }

    /// Begins another file behind those that a process left.
    fn go_on(directory: &Path, config: &impl Serialize, format: LineFormat) -> Result<Self, Error> {
        let held = lock(directory)?;
        let config = serde_json::to_value(config)
            .map_err(|source| Error::Encode { what: "the configuration", source })?;
        check_config(&directory.join(CONFIG_FILE), &config)?;
        let unwritable = |source| Error::Unwritable { path: directory.to_owned(), source };
        let summary = directory.join(SUMMARY_FILE);
        if summary.exists() {
            std::fs::remove_file(summary).map_err(unwritable)?;
        }
        let first_step = last_step(directory)?.map_or(0, |last| last.saturating_add(1));
        let parts = Part::all(directory);
        if let Some((path, there)) = steps_file(directory)
            && !parts.iter().any(|part| part.path == path)
        {
            let next = parts.last().map_or(1, |part| part.number + 1);
            std::fs::rename(path, Part::new(directory, next, there).path).map_err(unwritable)?;
        }
        let mut writer = Self::open(directory, format, Begin::New, Arc::new(Leftovers::none(directory)))?;
        (writer.first_step, writer.appends, writer.held) = (first_step, true, held);
        writer.write(&json!({"event": "resume", "step": first_step}))?;
        Ok(writer)
    }

    /// Begins another file if the present one is full.
    pub(super) fn rotate(&mut self) -> Result<(), Error> {
        let Some(rotation) = self.rotation.as_mut().filter(|rotation| self.lines.given() >= rotation.bytes)
        else {
            return Ok(());
        };
        let path = self.lines.path().to_owned();
        let part = Part::new(&self.directory, rotation.next, self.format);
        rotation.next += 1;
        let renamed = std::fs::rename(&path, &part.path);
        renamed.map_err(|source| Error::Write { path: path.clone(), source })?;
        let next = LineWriter::open(path, self.format, Begin::New, Arc::clone(&self.leftovers))?;
        // No line is written to the new file before the old one has all of its own.
        std::mem::replace(&mut self.lines, next).close()
    }
}
