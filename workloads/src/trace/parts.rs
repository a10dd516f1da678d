//! Files of a trace that were cut by their size. Example: `trace_steps.000001.jsonl` is the first file of the steps, and
//! `trace_steps.jsonl` the one that is being written, or was written last.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::run::{LineFormat, LineReader, LineSource};

/// A file that is full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Its number, from 1.
    pub number: u32,
    pub path: PathBuf,
    extension: String,
}

impl Part {
    /// The file `STEM.NUMBER.EXTENSION`.
    pub fn new(directory: &Path, stem: &str, number: u32, extension: &str) -> Self {
        let path = directory.join(format!("{stem}.{number:06}.{extension}"));
        Self { number, path, extension: extension.to_owned() }
    }

    /// The files in `directory` with this stem that are full, in the order in which they were written.
    pub fn all(directory: &Path, stem: &str) -> Vec<Self> {
        let named = |name: &str| {
            let (number, extension) = name.strip_prefix(stem)?.strip_prefix('.')?.split_once('.')?;
            let part = Self::new(directory, stem, number.parse().ok()?, extension);
            (part.path.file_name()? == name).then_some(part)
        };
        let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let mut parts: Vec<Self> = files.filter_map(|file| named(file.file_name().to_str()?)).collect();
        parts.sort_by_key(|part| part.number);
        parts
    }

    /// The same, of those that end with `.EXTENSION`.
    pub fn ending(directory: &Path, stem: &str, extension: &str) -> Vec<Self> {
        let mut parts = Self::all(directory, stem);
        parts.retain(|part| part.extension == extension);
        parts
    }

    /// Those that have lines, and how the lines are stored.
    pub fn lines(directory: &Path, stem: &str) -> Vec<(PathBuf, LineFormat)> {
        let parts = Self::all(directory, stem).into_iter();
        parts.filter_map(|part| Some((part.path, part.extension.parse().ok()?))).collect()
    }

    /// Checks that the first of them is there, so that nothing is missing at the beginning.
    ///
    /// # Errors
    ///
    /// Files before the first one that is there are missing.
    pub fn check_first(directory: &Path, stem: &str) -> Result<(), Error> {
        match Self::all(directory, stem).into_iter().next() {
            Some(first) if first.number != 1 => {
                let what = "the files before it are not there, and a trace is checked from its first step on";
                Err(Error::Run { path: first.path, what: what.to_owned() })
            }
            _ => Ok(()),
        }
    }
}

/// The file of lines with this stem that is not numbered.
pub(super) fn unnumbered(directory: &Path, stem: &str) -> Option<(PathBuf, LineFormat)> {
    let mut files = LineFormat::ALL.into_iter().map(|format| (format.file(directory, stem), format));
    files.find(|(path, _)| path.exists())
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
