//! Reads the records of a trace, however they are stored.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::compact::compact_file;
use super::compact_reader::CompactReader;
use super::{DSA_STEM, DsaLine, DsaToken, DsaTopkRecord};
use crate::Error;
use crate::json_fault;
use crate::run::{LineFormat, LineReader, LineSource};

/// The records of a trace in the order in which they were written.
#[derive(Debug)]
pub struct DsaRecords {
    path: PathBuf,
    source: Source,
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
}

/// The records as the lines that JSON has of them.
impl LineSource for Compact {
    fn next_line(&mut self, line: &mut Vec<u8>) -> std::io::Result<bool> {
        let Some(record) = self.next_record()? else { return Ok(false) };
        serde_json::to_writer(line, &DsaLine::DsaTopk(&record))?;
        Ok(true)
    }

    fn is_cut(&self) -> bool {
        self.reader.is_cut()
    }
}

/// The file with the records of a trace; `None` if there is none. The compact one comes first, because the other may have been exported.
#[must_use]
pub fn dsa_file(directory: &Path) -> Option<PathBuf> {
    let files = [compact_file(), LineFormat::Jsonl.file_name(DSA_STEM)];
    files.into_iter().map(|name| directory.join(name)).find(|path| path.exists())
}

impl DsaRecords {
    /// Opens the records of a trace; `None` if it has none.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is not what it should be.
    pub fn open(directory: &Path) -> Result<Option<Self>, Error> {
        let Some(path) = dsa_file(directory) else { return Ok(None) };
        // A run that was stopped before its first record left an empty file.
        let empty = std::fs::metadata(&path).is_ok_and(|file| file.len() == 0);
        let source = match path.extension().is_some_and(|extension| extension == "bin") && !empty {
            false => Source::Lines(LineReader::open(&path, LineFormat::Jsonl)?),
            true => Source::Compact(Box::new(compact(&path)?)),
        };
        Ok(Some(Self { path, source, number: 0 }))
    }

    /// The same records as lines of JSON, whose text is that of `dsa_topk.jsonl`.
    #[must_use]
    pub fn into_lines(self) -> LineReader {
        match self.source {
            Source::Lines(lines) => lines,
            Source::Compact(records) => LineReader::over(self.path, *records),
        }
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the record that was read last, counted from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether the file ended within a record, as a killed process leaves it. Such a record is not given.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        match &self.source {
            Source::Lines(lines) => lines.is_cut(),
            Source::Compact(records) => records.is_cut(),
        }
    }

    /// The next record; `None` at the end of the file, or where it is cut.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is damaged. The error says where.
    pub fn next_record(&mut self) -> Result<Option<DsaTopkRecord>, Error> {
        let bad = |source| Error::Read { path: self.path.clone(), source };
        let record = match &mut self.source {
            Source::Compact(records) => records.next_record().map_err(bad)?,
            Source::Lines(lines) => {
                let Some(line) = lines.next_line()? else { return Ok(None) };
                let number = self.number + 1;
                let Line::DsaTopk(record) = json_fault::parse(line)
                    .map_err(|what| bad(std::io::Error::other(format!("line {number}: {what}"))))?;
                Some(*record)
            }
        };
        self.number += u64::from(record.is_some());
        Ok(record)
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
