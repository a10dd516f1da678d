//! Reads the events of a trace of tensors.

use std::path::Path;

use super::TENSORS_STEM;
use super::record::TensorRecord;
use crate::run::LineReader;
use crate::trace::parts::{self, Part};
use crate::{Error, json_fault};

/// The events of a trace, one at a time.
#[derive(Debug)]
pub struct TensorLines {
    lines: LineReader,
}

impl TensorLines {
    /// Opens the events in a directory, in whatever format; `None` if it has none. Events in several files are read as one.
    ///
    /// # Errors
    ///
    /// The file can't be read.
    pub fn open(directory: &Path) -> Result<Option<Self>, Error> {
        let mut files = Part::lines(directory, TENSORS_STEM);
        files.extend(parts::unnumbered(directory, TENSORS_STEM));
        let Some((path, _)) = files.last().cloned() else { return Ok(None) };
        Ok(Some(Self { lines: parts::read(path, files)? }))
    }

    /// The next event; `None` behind the last one.
    ///
    /// # Errors
    ///
    /// The file can't be read, or a line is no event.
    pub fn next_event(&mut self) -> Result<Option<TensorRecord>, Error> {
        let Some(line) = self.lines.next_line()? else { return Ok(None) };
        match json_fault::parse(line) {
            Ok(record) => Ok(Some(record)),
            Err(fault) => {
                let what = format!("line {}: {fault}", self.lines.number());
                Err(Error::Run { path: self.lines.path().to_owned(), what })
            }
        }
    }

    /// The lines themselves.
    #[must_use]
    pub fn into_lines(self) -> LineReader {
        self.lines
    }
}
