//! Writes the records of a trace.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::compact::EXTENSION;
use super::compact_writer::CompactWriter;
use super::records::read_compact;
use super::{DSA_STEM, DsaFormat, DsaLine, DsaToken, DsaTraceConfig};
use crate::Error;
use crate::run::{Begin, Leftovers, LineFormat, LineWriter};
use crate::trace::beside::{Begun, Beside, Earlier};
use crate::trace::rotation::Rotation;

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
    /// Where its file is cut, if it is.
    rotation: Option<Rotation>,
    leftovers: Arc<Leftovers>,
}

impl DsaWriter {
    /// Opens the file. Records that a stopped run left of steps that its trace has are kept.
    pub(in crate::trace) fn open(
        beside: Beside<'_>,
        config: &DsaTraceConfig,
        block_size: u32,
        format: DsaFormat,
    ) -> Result<Self, Error> {
        let jsonl = LineFormat::Jsonl.extension();
        let (extension, other) = match format {
            DsaFormat::Jsonl => (jsonl, EXTENSION),
            DsaFormat::Compact => (EXTENSION, jsonl),
        };
        if beside.first_step.is_some()
            && let Some(path) = super::files(beside.directory, other).into_iter().next()
        {
            let what = "the stopped run's records are stored so; go on with the same --trace-dsa-format";
            return Err(Error::Run { path, what: what.to_owned() });
        }
        let compact = (format == DsaFormat::Compact).then(CompactWriter::default);
        let Begun { path, begin, rotation } =
            beside.begin(DSA_STEM, extension, |path, first| match format {
                DsaFormat::Compact => compact_before(path, first),
                DsaFormat::Jsonl => lines_before(path, first),
            })?;
        let has_header = begin == Begin::Append && std::fs::metadata(&path).is_ok_and(|file| file.len() > 0);
        let lines = LineWriter::open_bytes(path, begin, Arc::clone(&beside.leftovers))?;
        let mut writer = Self {
            config: config.clone(),
            block_size,
            lines,
            compact,
            header: Vec::new(),
            rotation,
            leftovers: beside.leftovers,
        };
        if !has_header {
            writer.new_header()?;
        }
        Ok(writer)
    }

    /// Writes the records of a token.
    pub(in crate::trace) fn write(&mut self, token: &DsaToken) -> Result<(), Error> {
        self.begin()?;
        match &mut self.compact {
            Some(compact) => self.lines.write_bytes(compact.frame(token))?,
            None => self.write_lines(token)?,
        }
        self.rotate()
    }

    /// Writes the records of a token as lines.
    fn write_lines(&mut self, token: &DsaToken) -> Result<(), Error> {
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

    /// Begins another file if the present one is full. A compact file can be read without those before it.
    fn rotate(&mut self) -> Result<(), Error> {
        let Some(rotation) = &mut self.rotation else { return Ok(()) };
        let leftovers = &self.leftovers;
        let open = |path| LineWriter::open_bytes(path, Begin::New, Arc::clone(leftovers));
        if rotation.rotate(&mut self.lines, open)?
            && let Some(compact) = &mut self.compact
        {
            *compact = CompactWriter::default();
            self.new_header()?;
        }
        Ok(())
    }

    /// Has the first line of a compact file written with the next token.
    fn new_header(&mut self) -> Result<(), Error> {
        if self.compact.is_some() {
            self.header = CompactWriter::header(&self.config, self.block_size)
                .map_err(|source| Error::Encode { what: "a header", source })?;
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

/// What a compact file has of the steps before `first`. A run that was stopped before its first record left an empty file.
fn compact_before(path: &Path, first: u64) -> Result<Earlier, Error> {
    if std::fs::metadata(path).is_ok_and(|file| file.len() == 0) {
        return Ok(Earlier::default());
    }
    let mut any = false;
    let bytes = read_compact(path, |token| {
        let earlier = token.step < first;
        any |= earlier;
        earlier
    })?;
    Ok(Earlier { bytes, any })
}

/// What a file of lines has of the steps before `first`.
pub(in crate::trace) fn lines_before(path: &Path, first: u64) -> Result<Earlier, Error> {
    #[derive(Deserialize)]
    struct Line {
        step: u64,
    }
    let read = |source| Error::Read { path: path.to_owned(), source };
    let mut file = BufReader::new(std::fs::File::open(path).map_err(read)?);
    let (mut bytes, mut line) = (0, Vec::new());
    while file.read_until(b'\n', &mut line).map_err(read)? > 0 {
        let known = line.ends_with(b"\n").then(|| serde_json::from_slice::<Line>(&line).ok()).flatten();
        if known.is_none_or(|line| line.step >= first) {
            break;
        }
        bytes += line.len() as u64;
        line.clear();
    }
    Ok(Earlier { bytes, any: bytes > 0 })
}
