//! The bytes and lines of a text file, which may be plain or gzip.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;

use super::DatasetError;

/// The longest line (or element of a JSON array) that is read, in bytes. A longer one is an error that is
/// found without holding all of it in memory.
pub(super) const MAX_LINE: usize = 64 << 20;

/// The first bytes of files that are not text, and what the message says about them.
const NOT_TEXT: [(&[u8], &str); 7] = [
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; only gzip and plain text are read: unpack it"),
    (b"\xfd7zXZ", "is compressed with xz; only gzip and plain text are read: unpack it"),
    (b"BZh", "is compressed with bzip2; only gzip and plain text are read: unpack it"),
    (b"PK\x03\x04", "is a zip archive; only gzip and plain text are read: unpack it"),
    (b"PAR1", "is Parquet; convert it to csv or JSON lines"),
    (b"\xff\xfe", "is UTF-16; convert it to UTF-8"),
    (b"\xfe\xff", "is UTF-16; convert it to UTF-8"),
];

/// Reads gzip data of one or more members. Anything else in the file is an error.
struct GzipMembers(Option<GzDecoder<BufReader<File>>>);

/// The error for a file that goes on with other data behind its gzip data.
#[derive(Debug, thiserror::Error)]
#[error("something that is not gzip follows the gzip data; cut it off, or fetch the file again")]
struct NotGzip;

impl Read for GzipMembers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let read = member.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match member.get_mut().fill_buf()?.first() {
                None => break,
                Some(0x1f) => self.0 = self.0.take().map(|over| GzDecoder::new(over.into_inner())),
                Some(_) => return Err(io::Error::other(NotGzip)),
            }
        }
        Ok(0)
    }
}

/// A file that is read forwards once.
pub(super) struct TextFile {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
    /// The line of the next byte, counted from 1.
    line: u64,
    buffer: Vec<u8>,
}

impl TextFile {
    /// Opens a file. Gzip is recognised by its first two bytes. A byte-order mark is skipped.
    pub(super) fn open(path: &Path) -> Result<Self, DatasetError> {
        let unreadable = |source| DatasetError::Read { path: path.to_path_buf(), source };
        let mut plain = BufReader::with_capacity(1 << 16, File::open(path).map_err(unreadable)?);
        let start = plain.fill_buf().map_err(unreadable)?;
        if let Some((_, what)) = NOT_TEXT.iter().find(|(magic, _)| start.starts_with(magic)) {
            return Err(DatasetError::File { path: path.to_path_buf(), what: (*what).into() });
        }
        let reader: Box<dyn BufRead + Send> = if start.starts_with(b"\x1f\x8b") {
            Box::new(BufReader::with_capacity(1 << 16, GzipMembers(Some(GzDecoder::new(plain)))))
        } else {
            Box::new(plain)
        };
        let mut file = Self { path: path.to_path_buf(), reader, line: 1, buffer: Vec::new() };
        if file.peek()? == Some(0xEF) {
            for expected in *b"\xEF\xBB\xBF" {
                if file.peek()? != Some(expected) {
                    return Err(file.error(file.line, "its first bytes are not UTF-8; convert it to UTF-8"));
                }
                file.bump();
            }
        }
        Ok(file)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The line of the next byte, counted from 1.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    pub(super) fn error(&self, line: u64, what: impl Into<String>) -> DatasetError {
        DatasetError::Line { path: self.path.clone(), line, what: what.into() }
    }

    pub(super) fn file_error(&self, what: impl Into<String>) -> DatasetError {
        DatasetError::File { path: self.path.clone(), what: what.into() }
    }

    /// The next byte, which is not consumed; `None` at the end.
    pub(super) fn peek(&mut self) -> Result<Option<u8>, DatasetError> {
        Ok(self.ahead()?.first().copied())
    }

    /// Consumes the byte that was peeked at.
    pub(super) fn bump(&mut self) {
        if let Ok(Some(byte)) = self.peek() {
            self.line += u64::from(byte == b'\n');
            self.reader.consume(1);
        }
    }

    /// The bytes that can be looked at now; none at the end.
    pub(super) fn ahead(&mut self) -> Result<&[u8], DatasetError> {
        loop {
            match self.reader.fill_buf() {
                Ok(_) => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(self.unreadable(e)),
            }
        }
        // The buffer is asked for again because the borrow can't leave the loop. This reads nothing more.
        match self.reader.fill_buf() {
            Ok(bytes) => Ok(bytes),
            Err(source) => Err(DatasetError::Read { path: self.path.clone(), source }),
        }
    }

    /// Consumes `n` of the bytes [`ahead`](Self::ahead), of which `newlines` end lines.
    pub(super) fn advance(&mut self, n: usize, newlines: u64) {
        self.reader.consume(n);
        self.line += newlines;
    }

    /// The next line with its number, without its end (`\n`, `\r\n` or the end of the file); `None` at the
    /// end.
    pub(super) fn next_line(&mut self) -> Result<Option<(u64, &str)>, DatasetError> {
        let number = self.line;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        let read = self.reader.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut buffer);
        match read.map_err(|e| self.unreadable(e))? {
            0 => return Ok(None),
            _ if buffer.len() > MAX_LINE => return Err(self.error(number, too_long("line"))),
            _ => {}
        }
        if buffer.last() == Some(&b'\n') {
            buffer.pop();
            self.line += 1;
        }
        if buffer.last() == Some(&b'\r') {
            buffer.pop();
        }
        self.buffer = buffer;
        match std::str::from_utf8(&self.buffer) {
            Ok(text) => Ok(Some((number, text))),
            Err(e) => Err(DatasetError::Line {
                path: self.path.clone(),
                line: number,
                what: not_utf8(&self.buffer, e),
            }),
        }
    }

    /// The next line that is not blank.
    pub(super) fn next_full_line(&mut self) -> Result<Option<(u64, &str)>, DatasetError> {
        loop {
            match self.next_line()? {
                Some((_, text)) if text.trim().is_empty() => {}
                Some((number, _)) => {
                    // The text is made again from the buffer, because the borrow can't leave the loop. The
                    // bytes were checked before.
                    return Ok(std::str::from_utf8(&self.buffer).ok().map(|text| (number, text)));
                }
                None => return Ok(None),
            }
        }
    }

    fn unreadable(&self, e: io::Error) -> DatasetError {
        match e.kind() {
            ErrorKind::UnexpectedEof => {
                self.error(self.line, "the gzip data ends in the middle: the file is cut; fetch it again")
            }
            ErrorKind::InvalidData | ErrorKind::InvalidInput => {
                self.error(self.line, format!("the gzip data is damaged ({e}); fetch the file again"))
            }
            _ if e.get_ref().is_some_and(|inner| inner.is::<NotGzip>()) => {
                self.error(self.line, NotGzip.to_string())
            }
            _ => DatasetError::Read { path: self.path.clone(), source: e },
        }
    }
}

pub(super) fn too_long(what: &str) -> String {
    format!("this {what} is longer than {} MiB, the most that is read of one", MAX_LINE >> 20)
}

pub(super) fn not_utf8(bytes: &[u8], e: std::str::Utf8Error) -> String {
    let at = e.valid_up_to();
    let byte = bytes.get(at).copied().unwrap_or_default();
    format!("byte {} (0x{byte:02x}) is not UTF-8; convert the file to UTF-8", at + 1)
}
