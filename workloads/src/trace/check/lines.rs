//! The lines of a file, one at a time.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// A step of 1,000 sequences at 32,768 positions is some 15 MB; what is longer is no trace.
const LONGEST_LINE: u64 = 256 << 20;

/// What comes next in a file.
pub(super) enum Line<'a> {
    /// A line, without its end.
    Whole(&'a [u8]),
    /// Bytes at the end of the file that no line end follows.
    Cut,
    /// Nothing.
    End,
}

/// Reads lines into one buffer.
pub(super) struct Lines {
    file: BufReader<File>,
    buffer: Vec<u8>,
    number: u64,
}

impl Lines {
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self { file: BufReader::with_capacity(1 << 20, File::open(path)?), buffer: Vec::new(), number: 0 })
    }

    /// The number of the line read last, from 1.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn next_line(&mut self) -> std::io::Result<Line<'_>> {
        self.buffer.clear();
        let read = self.file.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(Line::End);
        }
        self.number += 1;
        if self.buffer.pop_if(|last| *last == b'\n').is_some() {
            return Ok(Line::Whole(&self.buffer));
        }
        if read as u64 == LONGEST_LINE {
            let what = format!("line {} is longer than {LONGEST_LINE} bytes", self.number);
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, what));
        }
        Ok(Line::Cut)
    }
}
