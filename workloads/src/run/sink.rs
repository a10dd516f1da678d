//! Writes lines to a file on behalf of a writer.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::reader::{LineReader, whole_bytes};
use super::{Begin, LineFormat};
use crate::Error;

/// A frame waits at most this long for more lines ...
const FRAME_EVERY: Duration = Duration::from_secs(1);
/// ... or until there are this many bytes of them.
pub(super) const FRAME_BYTES: usize = 256 << 10;
/// How many characters of a line a message shows if two lines differ.
const SHOWN: usize = 160;

/// Why a sink could not take lines.
#[derive(Debug)]
pub(super) enum Fault {
    /// The operating system refused.
    Disk(std::io::Error),
    /// A repeated line differs from the line in the file.
    Differs(String),
}

impl From<std::io::Error> for Fault {
    fn from(source: std::io::Error) -> Self {
        Self::Disk(source)
    }
}

impl Fault {
    pub(super) fn into_error(self, path: PathBuf) -> Error {
        match self {
            Self::Disk(source) => Error::Write { path, source },
            Self::Differs(what) => Error::Run { path, what },
        }
    }
}

/// Takes whole lines and writes them.
#[derive(Debug)]
pub(super) struct Sink {
    file: File,
    /// The number of bytes of the file that are whole lines.
    whole: u64,
    frame: Option<Frame>,
    repeated: Option<LineReader>,
}

/// Lines that are compressed together.
#[derive(Debug)]
struct Frame {
    lines: Vec<u8>,
    since: Instant,
}

impl Sink {
    pub(super) fn open(path: &Path, format: LineFormat, begin: Begin) -> Result<Self, Error> {
        let unwritable = |source| Error::Unwritable { path: path.to_owned(), source };
        let mut repeated = None;
        let (file, whole) = if begin == Begin::New {
            (OpenOptions::new().create_new(true).append(true).open(path).map_err(unwritable)?, 0)
        } else {
            let file = OpenOptions::new().create(true).append(true).open(path).map_err(unwritable)?;
            let whole = whole_bytes(path, format)?;
            file.set_len(whole).map_err(unwritable)?;
            if begin == Begin::Repeat {
                repeated = Some(LineReader::open(path, format)?);
            }
            (file, whole)
        };
        let frame =
            (format == LineFormat::JsonlZst).then(|| Frame { lines: Vec::new(), since: Instant::now() });
        Ok(Self { file, whole, frame, repeated })
    }

    /// Opens a file that is new, or appended to as it is.
    pub(super) fn open_bytes(path: &Path, begin: Begin) -> Result<Self, Error> {
        let unwritable = |source| Error::Unwritable { path: path.to_owned(), source };
        let mut options = OpenOptions::new();
        let options = options.append(true).create_new(begin == Begin::New);
        let file = options.open(path).map_err(unwritable)?;
        let whole = file.metadata().map_err(unwritable)?.len();
        Ok(Self { file, whole, frame: None, repeated: None })
    }

    /// Writes plain lines to a file that a test made.
    #[cfg(test)]
    pub(super) fn over(file: File) -> Self {
        Self { file, whole: 0, frame: None, repeated: None }
    }

    /// Writes lines, or keeps them for the next frame.
    pub(super) fn take(&mut self, lines: &[u8]) -> Result<(), Fault> {
        let lines = self.compare(lines)?;
        let Some(frame) = &mut self.frame else { return self.write(lines) };
        if frame.lines.is_empty() {
            frame.since = Instant::now();
        }
        frame.lines.extend_from_slice(lines);
        if frame.lines.len() >= FRAME_BYTES || frame.since.elapsed() >= FRAME_EVERY {
            return self.write_frame();
        }
        Ok(())
    }

    /// Writes the lines that it kept. With `complete`, all lines that were there must have been repeated.
    pub(super) fn end(&mut self, complete: bool) -> Result<(), Fault> {
        self.write_frame()?;
        if let (true, Some(there)) = (complete, &mut self.repeated)
            && there.next_line().map_err(|e| Fault::Differs(e.to_string()))?.is_some()
        {
            let line = there.number();
            return Err(Fault::Differs(format!(
                "line {line} is there, and the run made again ends before it"
            )));
        }
        Ok(())
    }

    fn write_frame(&mut self) -> Result<(), Fault> {
        let Some(frame) = &mut self.frame else { return Ok(()) };
        if frame.lines.is_empty() {
            return Ok(());
        }
        let bytes = compress_to_vec(frame.lines.as_slice(), CompressionLevel::Fastest);
        frame.lines.clear();
        self.write(&bytes)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        if let Err(source) = self.file.write_all(bytes) {
            // This cuts the file back to whole lines. If it fails too, readers ignore a cut last line.
            let _ = self.file.set_len(self.whole);
            return Err(source.into());
        }
        self.whole += bytes.len() as u64;
        Ok(())
    }

    /// The part of `lines` that goes beyond the lines in the file. Everything before it must equal those
    /// lines.
    fn compare<'a>(&mut self, lines: &'a [u8]) -> Result<&'a [u8], Fault> {
        let mut rest = lines;
        while let (Some(there), false) = (&mut self.repeated, rest.is_empty()) {
            let end = rest.iter().position(|byte| *byte == b'\n').map_or(rest.len(), |at| at + 1);
            let (line, others) = rest.split_at(end);
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let number = there.number() + 1;
            match there.next_line().map_err(|e| Fault::Differs(e.to_string()))? {
                Some(old) if old == line => rest = others,
                Some(old) => {
                    return Err(Fault::Differs(format!(
                        "line {number} differs from the one that is made now; the run that is there is another\n  \
                         there: {}\n  now:   {}",
                        around(old, line),
                        around(line, old)
                    )));
                }
                None => self.repeated = None,
            }
        }
        Ok(rest)
    }
}

/// The part of `line` around the place where it begins to differ from `other`.
fn around(line: &[u8], other: &[u8]) -> String {
    let differs = line.iter().zip(other).position(|(a, b)| a != b).unwrap_or(line.len().min(other.len()));
    let start = differs.saturating_sub(SHOWN / 2);
    let end = line.len().min(start + SHOWN);
    let dots = |yes| if yes { ".." } else { "" };
    let shown = String::from_utf8_lossy(line.get(start..end).unwrap_or_default());
    format!("{}{shown}{}", dots(start > 0), dots(end < line.len()))
}
