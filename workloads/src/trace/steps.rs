//! Reads the steps of a trace, in whatever format they are stored.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::parts::{self, Part};
use super::{STEPS_FILE, STEPS_STEM};
use crate::Error;
use crate::json_fault;
use crate::run::{LineFormat, LineReader};

/// The file with the steps of a trace. Formats that are written during a run are looked for first, then
/// those that are made from them afterwards. Of steps that were cut into several files this is the last one.
#[must_use]
pub fn steps_file(directory: &Path) -> Option<(PathBuf, LineFormat)> {
    parts::unnumbered(directory, STEPS_STEM).or_else(|| Part::lines(directory, STEPS_STEM).pop())
}

/// Reads the steps of a trace line by line, in memory bounded by a line. Steps in several files are read as one. A cut last line or frame is left
/// out ([`LineReader::is_cut`]).
///
/// # Errors
///
/// There is no such file, or it can't be read.
pub fn read_steps(directory: &Path) -> Result<LineReader, Error> {
    let mut files = Part::lines(directory, STEPS_STEM);
    files.extend(parts::unnumbered(directory, STEPS_STEM));
    parts::read(directory.join(STEPS_FILE), files)
}

/// The number of the last step of a trace, as far as its file is whole; `None` if there is none.
pub(crate) fn last_step(directory: &Path) -> Result<Option<u64>, Error> {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    if steps_file(directory).is_none() {
        return Ok(None);
    }
    let mut lines = read_steps(directory)?;
    let mut last = Vec::new();
    let mut number = 0;
    while let Some(line) = lines.next_line()? {
        // Only the last line is parsed, because parsing takes longer than reading. The writer begins its
        // lines in this way.
        if line.starts_with(br#"{"event":"step","#) {
            last.clear();
            last.extend_from_slice(line);
            number = lines.number();
        }
    }
    if last.is_empty() {
        return Ok(None);
    }
    let step: Step = json_fault::parse(&last).map_err(|error| Error::Run {
        path: lines.path().to_owned(),
        what: format!("line {number}: {error}"),
    })?;
    Ok(Some(step.step))
}
