//! Cuts a file of a trace that has no end into files of bounded size.

use std::path::{Path, PathBuf};

use super::parts::Part;
use crate::Error;
use crate::run::LineWriter;

/// Where a file is cut, and how the pieces are numbered.
#[derive(Debug)]
pub(super) struct Rotation {
    directory: PathBuf,
    stem: &'static str,
    extension: &'static str,
    /// A file that was given so many bytes, before they are compressed, is full.
    bytes: u64,
    /// The number of the next one that will be full.
    next: u32,
}

impl Rotation {
    /// Cuts `STEM.EXTENSION` in `directory`. Numbers go on behind those of the files that are there.
    pub fn new(directory: &Path, stem: &'static str, extension: &'static str, bytes: u64) -> Self {
        let next = next_number(directory, stem);
        Self { directory: directory.to_owned(), stem, extension, bytes, next }
    }

    /// The bytes with which a file is full.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// If the file of `lines` is full, gives it its number and has `open` begin another one in its place. Returns whether it did.
    ///
    /// # Errors
    ///
    /// The file can't be renamed, or its last lines can't be written, or another one can't be begun.
    pub fn rotate(
        &mut self,
        lines: &mut LineWriter,
        open: impl FnOnce(PathBuf) -> Result<LineWriter, Error>,
    ) -> Result<bool, Error> {
        if lines.given() < self.bytes {
            return Ok(false);
        }
        let path = lines.path().to_owned();
        let part = Part::new(&self.directory, self.stem, self.next, self.extension);
        self.next += 1;
        std::fs::rename(&path, &part.path).map_err(|source| Error::Write { path: path.clone(), source })?;
        let next = open(path)?;
        // No line is written to the new file before the old one has all of its own.
        std::mem::replace(lines, next).close()?;
        Ok(true)
    }
}

/// The number of the next file with this stem that will be full.
pub(super) fn next_number(directory: &Path, stem: &str) -> u32 {
    Part::all(directory, stem).last().map_or(1, |part| part.number + 1)
}
