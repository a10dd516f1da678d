//! Writes traces.

mod rotating;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use super::beside::Beside;
use super::dsa::{self, DsaWriter};
use super::parts::Part;
use super::rotation::Rotation;
use super::tensor::TensorWriter;
use super::{
    CONFIG_FILE, DSA_STEM, DsaFormat, DsaToken, DsaTraceConfig, STEPS_STEM, SUMMARY_FILE, TENSORS_STEM,
    TensorData, TensorRecord, replace_file, steps_file,
};
use crate::Error;
use crate::run::{Begin, Leftovers, LineFormat, LineReader, LineWriter, convert_lines};

/// Writes a trace directory, or the steps of a run directory
/// ([`RunDirectory::trace`](crate::run::RunDirectory::trace)). A step costs its caller what a line of
/// [`LineWriter`] costs.
///
/// If it is dropped without [`finish`](Self::finish), it still writes the lines that it was given. A run
/// that failed before its first line leaves nothing behind.
#[derive(Debug)]
pub struct TraceWriter {
    directory: PathBuf,
    lines: LineWriter,
    format: LineFormat,
    /// Whether the directory belongs to a run, whose summary is written elsewhere.
    in_run: bool,
    first_step: u64,
    /// The records of sparse attention, if there are any.
    dsa: Option<DsaWriter>,
    /// The events of tensors, if there are any.
    tensors: Option<TensorWriter>,
    /// Events of tensors that are missing because there would have been too many.
    tensors_left_out: u64,
    /// Whether it goes on with what a stopped run left.
    appends: bool,
    /// Where the file of its steps is cut, if it is. The files beside it are cut at the same size.
    rotation: Option<Rotation>,
    /// Keeps other processes from writing to a directory that one of them could go on with.
    _lock: Option<std::fs::File>,
    leftovers: Arc<Leftovers>,
}

impl TraceWriter {
    /// Makes `directory` if necessary, and writes `config` with a `schema_version` to its `config.json`.
    ///
    /// # Errors
    ///
    /// The path is not a directory, can't be written or holds a trace already, or this build does not have
    /// the format. Nothing has been written then.
    pub fn create(directory: &Path, config: &impl Serialize, format: LineFormat) -> Result<Self, Error> {
        format.check()?;
        let config = serde_json::to_value(config)
            .map_err(|source| Error::Encode { what: "the configuration", source })?;
        if !config.is_object() {
            return Err(Error::ConfigNotAnObject);
        }
        if directory.exists() && !directory.is_dir() {
            return Err(Error::NotADirectory { path: directory.to_owned() });
        }
        if let Some(file) = Self::occupied(directory) {
            return Err(Error::HoldsTrace { path: directory.to_owned(), file });
        }
        let leftovers = Arc::new(Leftovers::start(directory, config)?);
        Self::open(directory, format, Begin::New, leftovers)
    }

    /// The name of a file in `directory` that a trace would overwrite or be confused by, if there is one.
    #[must_use]
    pub fn occupied(directory: &Path) -> Option<String> {
        let steps = LineFormat::ALL.into_iter().map(|format| format.file_name(STEPS_STEM));
        let steps = steps.chain(dsa::names());
        let steps = steps.chain([LineFormat::Jsonl.file_name(TENSORS_STEM), TENSORS_STEM.to_owned()]);
        let parts = [STEPS_STEM, DSA_STEM, TENSORS_STEM].into_iter();
        let parts = parts.flat_map(|stem| Part::all(directory, stem));
        let parts = parts.filter_map(|part| part.path.file_name()?.to_str().map(str::to_owned));
        let steps = steps.chain(parts);
        let mut files = steps.chain([CONFIG_FILE, SUMMARY_FILE].map(str::to_owned));
        files.find(|file| directory.join(file).exists())
    }

    pub(crate) fn in_run(
        directory: &Path,
        format: LineFormat,
        begin: Begin,
        first_step: u64,
        leftovers: Arc<Leftovers>,
    ) -> Result<Self, Error> {
        format.check()?;
        if begin != Begin::New
            && let Some((path, there)) = steps_file(directory)
            && there != format
            && there != format.while_running()
        {
            let what = format!("the stopped run's steps are stored so; it can't go on with {format}");
            return Err(Error::Run { path, what });
        }
        let mut writer = Self::open(directory, format, begin, leftovers)?;
        writer.in_run = true;
        if begin == Begin::Append {
            (writer.first_step, writer.appends) = (first_step, true);
            writer.write(&json!({"event": "resume", "step": first_step}))?;
        }
        Ok(writer)
    }

    fn open(
        directory: &Path,
        format: LineFormat,
        begin: Begin,
        leftovers: Arc<Leftovers>,
    ) -> Result<Self, Error> {
        let path = format.while_running().file(directory, STEPS_STEM);
        if begin != Begin::New
            && !path.exists()
            && let Some((made, LineFormat::Parquet)) = steps_file(directory)
        {
            // The earlier part of the run was finished in order. Its lines are needed as lines again.
            convert_lines(&mut LineReader::open(&made, LineFormat::Parquet)?, &path, format.while_running())?;
            std::fs::remove_file(&made).map_err(|source| Error::Unwritable { path: made, source })?;
        }
        let lines = LineWriter::open(path, format, begin, Arc::clone(&leftovers))?;
        let directory = directory.to_owned();
        Ok(Self {
            directory,
            lines,
            format,
            in_run: false,
            first_step: 0,
            dsa: None,
            tensors: None,
            tensors_left_out: 0,
            appends: false,
            rotation: None,
            _lock: None,
            leftovers,
        })
    }

    /// The number of its first step. An engine that goes on with another engine's trace adds it to its own
    /// numbers ([`StepEvent::first_step`](super::StepEvent::first_step)).
    #[must_use]
    pub fn first_step(&self) -> u64 {
        self.first_step
    }

    /// Adds a line, usually a [`super::StepEvent`].
    ///
    /// # Errors
    ///
    /// Those of [`LineWriter::write`], or another file can't be begun.
    pub fn write(&mut self, event: &impl Serialize) -> Result<(), Error> {
        self.lines.write(event)?;
        let Some(rotation) = &mut self.rotation else { return Ok(()) };
        let (format, leftovers) = (self.format, &self.leftovers);
        let open = |path| LineWriter::open(path, format, Begin::New, Arc::clone(leftovers));
        rotation.rotate(&mut self.lines, open).map(drop)
    }

    /// How the files beside the steps are begun.
    fn beside(&self) -> Beside<'_> {
        Beside {
            directory: &self.directory,
            first_step: self.appends.then_some(self.first_step),
            rotate_bytes: self.rotation.as_ref().map(Rotation::bytes),
            leftovers: Arc::clone(&self.leftovers),
        }
    }

    /// Opens the file for [`write_dsa`](Self::write_dsa). The records that a stopped run left of steps that its trace has are
    /// kept.
    ///
    /// # Errors
    ///
    /// The file is there already, or can't be opened.
    pub fn keep_dsa(
        &mut self,
        config: &DsaTraceConfig,
        block_size: u32,
        format: DsaFormat,
    ) -> Result<(), Error> {
        self.dsa = Some(DsaWriter::open(self.beside(), config, block_size, format)?);
        Ok(())
    }

    /// Adds the records of a token, if such records are [kept](Self::keep_dsa). Tokens are written in the order of the steps, and in
    /// a step in the order in which the model was given them.
    ///
    /// # Errors
    ///
    /// Those of [`LineWriter::write`], or a choice that can't be.
    pub fn write_dsa(&mut self, token: &DsaToken) -> Result<(), Error> {
        self.dsa.as_mut().map_or(Ok(()), |dsa| dsa.write(token))
    }

    /// Says that a request ended or was preempted, so that nothing has to be remembered for its records.
    pub fn forget_dsa(&mut self, request_id: &str) {
        if let Some(dsa) = &mut self.dsa {
            dsa.forget(request_id);
        }
    }

    /// Opens the file for [`write_tensors`](Self::write_tensors). The events that a stopped run left of steps that its trace has are kept.
    ///
    /// # Errors
    ///
    /// The file is there already, or can't be opened.
    pub fn keep_tensors(&mut self) -> Result<(), Error> {
        self.tensors = Some(TensorWriter::open(self.beside())?);
        Ok(())
    }

    /// Adds an event of tensors, if such events are [kept](Self::keep_tensors), with the tensors whose values are kept. Events are written
    /// in the order of the steps.
    ///
    /// # Errors
    ///
    /// Those of [`LineWriter::write`], or the tensors of a step can't be written.
    pub fn write_tensors(&mut self, event: &TensorRecord, tensors: &[TensorData<'_>]) -> Result<(), Error> {
        self.tensors.as_mut().map_or(Ok(()), |writer| writer.write(event, tensors))
    }

    /// Says how many events of tensors were left out, which the last line of their file then tells.
    pub fn leave_out_tensors(&mut self, events: u64) {
        self.tensors_left_out = events;
    }

    /// The directory of the trace.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Waits until the system has every line, and writes `summary` to `summary.json`, unless the directory
    /// belongs to a run.
    ///
    /// # Errors
    ///
    /// The disk has a fault, which may concern the lines or the summary.
    pub fn finish(self, summary: &impl Serialize) -> Result<(), Error> {
        let summary = serde_json::to_vec_pretty(summary)
            .map_err(|source| Error::Encode { what: "the summary", source })?;
        self.lines.keep();
        if let Some(dsa) = self.dsa {
            dsa.close()?;
        }
        if let Some(tensors) = self.tensors {
            tensors.close(self.tensors_left_out)?;
        }
        let written = self.lines.path().to_owned();
        self.lines.close()?;
        if self.format != self.format.while_running() {
            let made = self.format.file(&self.directory, STEPS_STEM);
            let mut lines = LineReader::open(&written, self.format.while_running())?;
            convert_lines(&mut lines, &made, self.format)?;
            std::fs::remove_file(&written).map_err(|source| Error::Write { path: written, source })?;
        }
        if self.in_run {
            return Ok(());
        }
        let path = self.directory.join(SUMMARY_FILE);
        replace_file(&path, &summary).map_err(|source| Error::Write { path, source })
    }
}

#[cfg(test)]
mod tests;
