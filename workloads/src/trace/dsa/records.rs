//! Reads the records of a trace, however they are stored.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::compact::EXTENSION;
use super::compact_reader::CompactReader;
use super::{DSA_STEM, DsaLine, DsaToken, DsaTopkRecord};
use crate::Error;
use crate::json_fault;
use crate::run::{LineFormat, LineReader, LineSource};
use crate::trace::parts::Part;

/// The records of a trace in the order in which they were written. Records in several files are read as one.
#[derive(Debug)]
pub struct DsaRecords {
    /// The file that is being read.
    path: PathBuf,
    source: Source,
    /// The files behind it.
    rest: VecDeque<PathBuf>,
    number: u64,
}

#[derive(Debug)]
enum Source {
    Lines(LineReader),
    Compact(Box<Compact>),
}

/// Makes records of tokens.
#[derive(Debug)]
struct Compact {
    reader: CompactReader,
    /// The next layer of the present token.
    layer: u16,
}

#[derive(Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Line {
    DsaTopk(Box<DsaTopkRecord>),
}

impl Source {
    fn open(path: &Path) -> Result<Self, Error> {
        // A run that was stopped before its first record left an empty file.
        let empty = std::fs::metadata(path).is_ok_and(|file| file.len() == 0);
        Ok(match path.extension().is_some_and(|extension| extension == EXTENSION) && !empty {
            false => Self::Lines(LineReader::open(path, LineFormat::Jsonl)?),
            true => Self::Compact(Box::new(compact(path)?)),
        })
    }

    fn next_line(&mut self, line: &mut Vec<u8>) -> std::io::Result<bool> {
        match self {
            Self::Compact(records) => records.next_line(line),
            Self::Lines(lines) => match lines.next_line().map_err(std::io::Error::other)? {
                Some(read) => {
                    line.extend_from_slice(read);
                    Ok(true)
                }
                None => Ok(false),
            },
        }
    }
}

impl Compact {
    fn next_record(&mut self) -> std::io::Result<Option<DsaTopkRecord>> {
        loop {
            let (config, block_size) = self.reader.config();
            if self.layer >= config.layers {
                if !self.reader.advance()? {
                    return Ok(None);
                }
                self.layer = 0;
                continue;
            }
            let layer = self.layer;
            self.layer += 1;
            if let Some(record) = self.reader.token().record(config, block_size, layer) {
                let before = self.reader.position();
                return record.map(Some).map_err(|what| {
                    std::io::Error::other(format!("layer {layer} of the frame before byte {before}: {what}"))
                });
            }
        }
    }

    /// The next record as the line that JSON has of it.
    fn next_line(&mut self, line: &mut Vec<u8>) -> std::io::Result<bool> {
        let Some(record) = self.next_record()? else { return Ok(false) };
        serde_json::to_writer(line, &DsaLine::DsaTopk(&record))?;
        Ok(true)
    }
}

/// The records as the lines that JSON has of them.
impl LineSource for DsaRecords {
    fn next_line(&mut self, line: &mut Vec<u8>) -> std::io::Result<bool> {
        loop {
            let read = self.source.next_line(line).map_err(|source| match self.rest.is_empty() {
                true => source,
                // The reader of these lines calls them by the last file.
                false => std::io::Error::other(Error::Read { path: self.path.clone(), source }),
            });
            if read? {
                return Ok(true);
            }
            if !self.advance().map_err(std::io::Error::other)? {
                return Ok(false);
            }
        }
    }

    fn is_cut(&self) -> bool {
        Self::is_cut(self)
    }
}

/// The names that the file which is being written may have.
pub(in crate::trace) fn names() -> [String; 2] {
    // The compact one comes first, because the other may have been exported.
    [EXTENSION, LineFormat::Jsonl.extension()].map(|extension| format!("{DSA_STEM}.{extension}"))
}

/// The file with the records of a trace; `None` if there is none. The compact one comes first, because the other may have been exported.
/// Of records that were cut into several files this is the last one.
#[must_use]
pub fn dsa_file(directory: &Path) -> Option<PathBuf> {
    all_files(directory).pop()
}

/// The files with the records of a trace, in the order in which they were written.
fn all_files(directory: &Path) -> Vec<PathBuf> {
    let compact = files(directory, EXTENSION);
    if compact.is_empty() { files(directory, LineFormat::Jsonl.extension()) } else { compact }
}

/// The files of records that end with `.EXTENSION`, in the order in which they were written.
pub(super) fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let parts = Part::ending(directory, DSA_STEM, extension).into_iter().map(|part| part.path);
    let last = directory.join(format!("{DSA_STEM}.{extension}"));
    parts.chain(last.exists().then_some(last)).collect()
}

impl DsaRecords {
    /// Opens the records of a trace; `None` if it has none.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is not what it should be.
    pub fn open(directory: &Path) -> Result<Option<Self>, Error> {
        let mut rest = VecDeque::from(all_files(directory));
        let Some(path) = rest.pop_front() else { return Ok(None) };
        Ok(Some(Self { source: Source::open(&path)?, path, rest, number: 0 }))
    }

    /// Goes on with the next file. Returns whether there is one. What is cut at the end of the file before was left by a process that
    /// was killed.
    fn advance(&mut self) -> Result<bool, Error> {
        let Some(path) = self.rest.pop_front() else { return Ok(false) };
        self.source = Source::open(&path)?;
        self.path = path;
        Ok(true)
    }

    /// The same records as lines of JSON, whose text is that of `dsa_topk.jsonl`.
    #[must_use]
    pub fn into_lines(self) -> LineReader {
        match self.source {
            Source::Lines(lines) if self.rest.is_empty() => lines,
            _ => LineReader::over(self.rest.back().unwrap_or(&self.path).clone(), self),
        }
    }

    /// The path of the file that is being read.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the record that was read last, counted from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether the last file ended within a record, as a killed process leaves it. Such a record is not given.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        let cut = match &self.source {
            Source::Lines(lines) => lines.is_cut(),
            Source::Compact(records) => records.reader.is_cut(),
        };
        cut && self.rest.is_empty()
    }

    /// The next record; `None` at the end of the last file, or where it is cut.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is damaged. The error says where.
    pub fn next_record(&mut self) -> Result<Option<DsaTopkRecord>, Error> {
        loop {
            if let Some(record) = self.next_of_file()? {
                self.number += 1;
                return Ok(Some(record));
            }
            if !self.advance()? {
                return Ok(None);
            }
        }
    }

    /// The next record of the file that is being read.
    fn next_of_file(&mut self) -> Result<Option<DsaTopkRecord>, Error> {
        let bad = |source| Error::Read { path: self.path.clone(), source };
        match &mut self.source {
            Source::Compact(records) => records.next_record().map_err(bad),
            Source::Lines(lines) => {
                let number = lines.number() + 1;
                let Some(line) = lines.next_line()? else { return Ok(None) };
                let Line::DsaTopk(record) = json_fault::parse(line)
                    .map_err(|what| bad(std::io::Error::other(format!("line {number}: {what}"))))?;
                Ok(Some(*record))
            }
        }
    }
}

fn compact(path: &Path) -> Result<Compact, Error> {
    let bad = |source| Error::Read { path: path.to_owned(), source };
    let reader = CompactReader::new(File::open(path).map_err(bad)?).map_err(bad)?;
    // The first record is that of a token still to be read.
    let layer = reader.config().0.layers;
    Ok(Compact { reader, layer })
}

/// Calls `each` with every token of a compact file, without making records. Returns the bytes of its whole tokens and its first line.
///
/// # Errors
///
/// The file can't be read, or is damaged.
pub fn read_compact(path: &Path, mut each: impl FnMut(&DsaToken) -> bool) -> Result<u64, Error> {
    let bad = |source| Error::Read { path: path.to_owned(), source };
    let mut records = compact(path)?;
    let mut whole = records.reader.position();
    while records.reader.advance().map_err(bad)? && each(records.reader.token()) {
        whole = records.reader.position();
    }
    Ok(whole)
}
