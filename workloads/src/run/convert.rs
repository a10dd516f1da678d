//! Converts lines from one format into another.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::LineFormat;
use super::reader::LineReader;
use super::sink::FRAME_BYTES;
use crate::Error;
use crate::trace::replace_file_with;

/// Writes the lines of `from` to `path`, where the file appears whole or not at all. Returns the number of
/// lines. Memory is bounded by a frame, a row group (some 8 MiB of lines) or a line.
///
/// # Errors
///
/// A line can't be read, the disk has a fault, or this build does not have the format. Parquet takes only
/// text.
pub fn convert_lines(from: &mut LineReader, path: &Path, format: LineFormat) -> Result<u64, Error> {
    format.check()?;
    let mut lines = 0;
    replace_file_with(path, |file| {
        lines = match format {
            LineFormat::Jsonl => plain(from, file),
            LineFormat::JsonlZst => frames(from, file),
            LineFormat::Parquet => parquet(from, file),
        }?;
        Ok(())
    })
    .map_err(|fault| match fault {
        Fault::Read(error) => error,
        Fault::Write(source) => Error::Write { path: path.to_owned(), source },
    })?;
    Ok(lines)
}

/// The side on which a conversion failed.
pub(super) enum Fault {
    Read(Error),
    Write(std::io::Error),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Read(error)
    }
}

impl From<std::io::Error> for Fault {
    fn from(error: std::io::Error) -> Self {
        Self::Write(error)
    }
}

fn plain(from: &mut LineReader, file: &mut File) -> Result<u64, Fault> {
    let mut file = BufWriter::with_capacity(1 << 18, file);
    while let Some(line) = from.next_line()? {
        file.write_all(line)?;
        file.write_all(b"\n")?;
    }
    file.flush()?;
    Ok(from.number())
}

fn frames(from: &mut LineReader, file: &mut File) -> Result<u64, Fault> {
    let mut frame = Vec::new();
    loop {
        let line = from.next_line()?;
        let last = line.is_none();
        if let Some(line) = line {
            frame.extend_from_slice(line);
            frame.push(b'\n');
        }
        if frame.len() >= FRAME_BYTES || (last && !frame.is_empty()) {
            file.write_all(&compress_to_vec(frame.as_slice(), CompressionLevel::Fastest))?;
            frame.clear();
        }
        if last {
            return Ok(from.number());
        }
    }
}

#[cfg(feature = "parquet")]
fn parquet(from: &mut LineReader, file: &mut File) -> Result<u64, Fault> {
    let mut writer = super::parquet::ParquetWriter::new(file)?;
    while let Some(line) = from.next_line()? {
        let added = writer.add(line)?;
        if let Err(what) = added {
            let (path, line) = (from.path().to_owned(), from.number());
            return Err(Fault::Read(Error::Run { path, what: format!("line {line}: {what}") }));
        }
    }
    writer.finish()?;
    Ok(from.number())
}

#[cfg(not(feature = "parquet"))]
fn parquet(_: &mut LineReader, _: &mut File) -> Result<u64, Fault> {
    LineFormat::Parquet.check()?;
    Ok(0)
}

#[cfg(test)]
mod tests;
