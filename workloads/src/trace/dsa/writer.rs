//! Writes the records of a trace.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::compact::compact_file;
use super::compact_writer::CompactWriter;
use super::records::read_compact;
use super::{DSA_STEM, DsaFormat, DsaLine, DsaToken, DsaTraceConfig};
use crate::Error;
use crate::run::{Begin, Leftovers, LineFormat, LineWriter};

/// Writes what the layers chose for tokens, in either format.
#[derive(Debug)]
pub(in crate::trace) struct DsaWriter {
    config: DsaTraceConfig,
    block_size: u32,
    lines: LineWriter,
    /// `None` where a record is a line.
    compact: Option<CompactWriter>,
    /// The first line of a compact file, until it is written: a run that fails before its first step leaves no file.
    header: Vec<u8>,
}

impl DsaWriter {
    /// Opens the file in `directory`. With `keep`, the records that a stopped run left of steps before that one are kept.
    pub(in crate::trace) fn open(
        directory: &Path,
        config: &DsaTraceConfig,
        block_size: u32,
        format: DsaFormat,
        keep: Option<u64>,
        leftovers: Arc<Leftovers>,
    ) -> Result<Self, Error> {
        let lines_path = LineFormat::Jsonl.file(directory, DSA_STEM);
        let compact_path = directory.join(compact_file());
        let (path, other, compact) = match format {
            DsaFormat::Jsonl => (lines_path, compact_path, None),
            DsaFormat::Compact => (compact_path, lines_path, Some(CompactWriter::default())),
        };
        if keep.is_some() && other.exists() {
            let what = "the stopped run's records are stored so; go on with the same --trace-dsa-format";
            return Err(Error::Run { path: other, what: what.to_owned() });
        }
        let there = keep.is_some() && path.exists();
        let mut whole = 0;
        if let (true, Some(first)) =
            (there && std::fs::metadata(&path).is_ok_and(|file| file.len() > 0), keep)
        {
            whole = match format {
                DsaFormat::Compact => read_compact(&path, |token| token.step < first)?,
                DsaFormat::Jsonl => lines_before(&path, first)?,
            };
            let file = OpenOptions::new().write(true).open(&path);
            let cut = file.and_then(|file| file.set_len(whole));
            cut.map_err(|source| Error::Unwritable { path: path.clone(), source })?;
        }
        let begin = if there { Begin::Append } else { Begin::New };
        let lines = LineWriter::open_bytes(path, begin, leftovers)?;
        let header = match compact.is_some() && whole == 0 {
            true => CompactWriter::header(config, block_size),
            false => Ok(Vec::new()),
        };
        let header = header.map_err(|source| Error::Encode { what: "a header", source })?;
        Ok(Self { config: config.clone(), block_size, lines, compact, header })
    }

    /// Writes the records of a token.
    pub(in crate::trace) fn write(&mut self, token: &DsaToken) -> Result<(), Error> {
        self.begin()?;
        if let Some(compact) = &mut self.compact {
            return self.lines.write_bytes(compact.frame(token));
        }
        for layer in 0..self.config.layers {
            let Some(record) = token.record(&self.config, self.block_size, layer) else { continue };
            let record = record.map_err(|what| Error::Run {
                path: self.lines.path().to_owned(),
                what: format!(
                    "layer {layer}, request {:?}, position {}: {what}",
                    token.request_id, token.step_idx
                ),
            })?;
            self.lines.write(&DsaLine::DsaTopk(&record))?;
        }
        Ok(())
    }

    /// Forgets a request, which ended or was preempted.
    pub(in crate::trace) fn forget(&mut self, request_id: &str) {
        if let Some(compact) = &mut self.compact {
            compact.forget(request_id);
        }
    }

    fn begin(&mut self) -> Result<(), Error> {
        match std::mem::take(&mut self.header) {
            header if header.is_empty() => Ok(()),
            header => self.lines.write_bytes(&header),
        }
    }

    pub(in crate::trace) fn close(mut self) -> Result<(), Error> {
        self.begin()?;
        self.lines.close()
    }
}

/// The bytes of the whole lines of steps before `first`.
pub(in crate::trace) fn lines_before(path: &Path, first: u64) -> Result<u64, Error> {
    #[derive(Deserialize)]
    struct Line {
        step: u64,
    }
    let read = |source| Error::Read { path: path.to_owned(), source };
    let mut file = BufReader::new(std::fs::File::open(path).map_err(read)?);
    let (mut whole, mut line) = (0, Vec::new());
    while file.read_until(b'\n', &mut line).map_err(read)? > 0 {
        let known = line.ends_with(b"\n").then(|| serde_json::from_slice::<Line>(&line).ok()).flatten();
        if known.is_none_or(|line| line.step >= first) {
            break;
        }
        whole += line.len() as u64;
        line.clear();
    }
    Ok(whole)
}
