//! Reads the lines of a file one at a time, in any format.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use super::LineFormat;
use super::frames::FrameReader;
use crate::Error;

/// The longest line that is read, in bytes. A step of 1,000 sequences at 32,768 positions takes about 15
/// MB.
const LONGEST_LINE: u64 = 256 << 20;

/// Reads lines of any format into one buffer.
pub struct LineReader {
    path: PathBuf,
    source: Source,
    buffer: Vec<u8>,
    number: u64,
    cut: bool,
}

enum Source {
    Plain(BufReader<File>),
    Frames(Box<BufReader<FrameReader>>),
    #[cfg(feature = "parquet")]
    Parquet(Box<super::parquet::ParquetLines>),
    Other(Box<dyn LineSource>),
}

/// Makes lines of something else.
pub(crate) trait LineSource: Send + 'static {
    /// Appends the next line to `line`, without an end. Returns whether there is one.
    fn next_line(&mut self, line: &mut Vec<u8>) -> std::io::Result<bool>;

    /// Whether what it reads ended too early, as a killed process leaves it.
    fn is_cut(&self) -> bool;
}

impl std::fmt::Debug for LineReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LineReader").field("path", &self.path).field("number", &self.number).finish()
    }
}

impl LineReader {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// The file can't be read.
    pub fn open(path: &Path, format: LineFormat) -> Result<Self, Error> {
        let file = File::open(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let source = match format {
            LineFormat::Jsonl => Source::Plain(BufReader::with_capacity(1 << 20, file)),
            LineFormat::JsonlZst => Source::Frames(Box::new(BufReader::new(FrameReader::new(file)))),
            #[cfg(feature = "parquet")]
            LineFormat::Parquet => {
                let lines = super::parquet::ParquetLines::open(file);
                let read = |source| Error::Read { path: path.to_owned(), source };
                Source::Parquet(Box::new(lines.map_err(read)?))
            }
            #[cfg(not(feature = "parquet"))]
            LineFormat::Parquet => {
                format.check()?;
                Source::Plain(BufReader::new(file))
            }
        };
        Ok(Self { path: path.to_owned(), source, buffer: Vec::new(), number: 0, cut: false })
    }

    /// Reads the lines that are made of the file `path`.
    pub(crate) fn over(path: PathBuf, source: impl LineSource) -> Self {
        Self { path, source: Source::Other(Box::new(source)), buffer: Vec::new(), number: 0, cut: false }
    }

    /// The path of the file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of the line that was read last, counted from 1.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Whether the file ended within a line or a frame, as a killed process leaves it. The unfinished part
    /// is not given.
    #[must_use]
    pub fn is_cut(&self) -> bool {
        self.cut
    }

    /// The next line, without its end; `None` at the end of the file, or where it is cut.
    ///
    /// # Errors
    ///
    /// The disk has a fault, a line is longer than 256 MiB, or a frame can't be decoded.
    pub fn next_line(&mut self) -> Result<Option<&[u8]>, Error> {
        self.buffer.clear();
        let read = match &mut self.source {
            Source::Plain(file) => file.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut self.buffer),
            Source::Frames(frames) => frames.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut self.buffer),
            #[cfg(feature = "parquet")]
            Source::Parquet(lines) => {
                let there = lines.next_line(&mut self.buffer).map_err(|source| self.fault(source))?;
                self.number += u64::from(there);
                return Ok(there.then_some(&self.buffer[..]));
            }
            Source::Other(lines) => {
                let there = lines.next_line(&mut self.buffer);
                self.cut = lines.is_cut();
                let there = there.map_err(|source| self.fault(source))?;
                self.number += u64::from(there);
                return Ok(there.then_some(&self.buffer[..]));
            }
        };
        let read = read.map_err(|source| self.fault(source))?;
        if self.buffer.pop_if(|last| *last == b'\n').is_some() {
            self.number += 1;
            return Ok(Some(&self.buffer));
        }
        if read as u64 == LONGEST_LINE {
            let line = self.number + 1;
            let what = format!("line {line} is longer than {LONGEST_LINE} bytes");
            return Err(self.fault(std::io::Error::new(std::io::ErrorKind::InvalidData, what)));
        }
        self.cut = read > 0 || matches!(&self.source, Source::Frames(frames) if frames.get_ref().is_cut());
        Ok(None)
    }

    fn fault(&self, source: std::io::Error) -> Error {
        Error::Read { path: self.path.clone(), source }
    }
}

/// The number of bytes of a file up to the end of its last whole line (or frame of lines).
pub(super) fn whole_bytes(path: &Path, format: LineFormat) -> Result<u64, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read)?;
    if format == LineFormat::JsonlZst {
        let mut frames = FrameReader::new(file);
        std::io::copy(&mut frames, &mut std::io::sink()).map_err(read)?;
        return Ok(frames.whole());
    }
    let mut end = file.metadata().map_err(read)?.len();
    let mut piece = vec![0; 1 << 16];
    while end > 0 {
        let length = end.min(piece.len() as u64);
        let start = end - length;
        let part = &mut piece[..length as usize];
        file.seek(SeekFrom::Start(start)).and_then(|_| file.read_exact(part)).map_err(read)?;
        if let Some(at) = part.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start + at as u64 + 1);
        }
        end = start;
    }
    Ok(0)
}
