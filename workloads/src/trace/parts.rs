//! The steps of a trace that was cut into several files. `trace_steps.000001.jsonl` is the first, and `trace_steps.jsonl` the one that
//! is being written, or was written last.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::STEPS_STEM;
use crate::Error;
use crate::run::{LineFormat, LineReader, LineSource};

/// A file that is full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Its number, from 1.
    pub number: u32,
    pub path: PathBuf,
    format: LineFormat,
}

impl Part {
    pub fn new(directory: &Path, number: u32, format: LineFormat) -> Self {
        Self { number, path: format.file(directory, &format!("{STEPS_STEM}.{number:06}")), format }
    }

    /// The files in `directory` that are full, in the order in which they were written.
    pub fn all(directory: &Path) -> Vec<Self> {
        let named = |name: &str| {
            let (number, format) = name.strip_prefix(STEPS_STEM)?.strip_prefix('.')?.split_once('.')?;
            let part = Self::new(directory, number.parse().ok()?, format.parse().ok()?);
            (part.path.file_name()? == name).then_some(part)
        };
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut parts: Vec<Self> = files.filter_map(|file| named(file.file_name().to_str()?)).collect();
        parts.sort_by_key(|part| part.number);
        parts
    }

    /// Where its lines are, and how.
    pub fn into_file(self) -> (PathBuf, LineFormat) {
        (self.path, self.format)
    }
}

/// Reads the lines of several files, one file behind the other. A line that is cut at the end of a file is left out: a process that was
/// killed left it, and the next file is that of another process.
struct Parts {
    now: LineReader,
    rest: VecDeque<(PathBuf, LineFormat)>,
}

/// Reads the lines of these files. Errors call them `path`, and name the file.
pub(super) fn read(path: PathBuf, files: Vec<(PathBuf, LineFormat)>) -> Result<LineReader, Error> {
    let mut rest = VecDeque::from(files);
    let (first, format) = rest.pop_front().unwrap_or_else(|| (path.clone(), LineFormat::Jsonl));
    let now = LineReader::open(&first, format)?;
    Ok(if rest.is_empty() { now } else { LineReader::over(path, Parts { now, rest }) })
}

impl LineSource for Parts {
    fn next_line(&mut self, line: &mut Vec<u8>) -> std::io::Result<bool> {
        loop {
            if let Some(read) = self.now.next_line().map_err(std::io::Error::other)? {
                line.extend_from_slice(read);
                return Ok(true);
            }
            let Some((path, format)) = self.rest.pop_front() else { return Ok(false) };
            self.now = LineReader::open(&path, format).map_err(std::io::Error::other)?;
        }
    }

    fn is_cut(&self) -> bool {
        self.rest.is_empty() && self.now.is_cut()
    }
}
