//! Reads the events of a trace of tensors.

use std::path::Path;

use super::TENSORS_STEM;
use super::record::TensorRecord;
use crate::run::{LineFormat, LineReader};
use crate::{Error, json_fault};

/// The events of a trace, one at a time.
#[derive(Debug)]
pub struct TensorLines {
    lines: LineReader,
}

impl TensorLines {
    /// Opens the events in a directory, in whatever format; `None` if it has none.
    ///
    /// # Errors
    ///
    /// The file can't be read.
    pub fn open(directory: &Path) -> Result<Option<Self>, Error> {
        let mut files =
            LineFormat::ALL.into_iter().map(|format| (format.file(directory, TENSORS_STEM), format));
        let Some((path, format)) = files.find(|(path, _)| path.exists()) else { return Ok(None) };
        Ok(Some(Self { lines: LineReader::open(&path, format)? }))
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
