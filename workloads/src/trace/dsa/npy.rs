//! Writes records as the arrays that trainers read.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::{DSA_STEM, DsaRecords, DsaTopkRecord, DsaTraceConfig};
use crate::Error;
use crate::json_fault;
use crate::trace::{StepRecord, read_steps};

/// The header of a `.npy` file (version 1.0) with a little-endian int32 array `[tokens, layers, k]` in C order.
#[must_use]
pub fn npy_header([tokens, layers, k]: [usize; 3]) -> Vec<u8> {
    let mut text =
        format!("{{'descr': '<i4', 'fortran_order': False, 'shape': ({tokens}, {layers}, {k}), }}");
    // The magic, the version and the length of the header take 10 bytes, and the array begins at a
    // multiple of 64.
    let padding = 63 - (text.len() + 10) % 64;
    text.extend(std::iter::repeat_n(' ', padding));
    text.push('\n');
    let mut header = Vec::with_capacity(10 + text.len());
    header.extend_from_slice(b"\x93NUMPY\x01\x00");
    header.extend_from_slice(&(text.len() as u16).to_le_bytes());
    header.extend_from_slice(text.as_bytes());
    header
}

/// The number of tokens that each request computed and that belong to its output: those of its prompt and its output but the last, which is
/// never computed.
fn computed_tokens(directory: &Path) -> Result<HashMap<String, usize>, Error> {
    let mut lines = read_steps(directory)?;
    let mut tokens: HashMap<String, usize> = HashMap::new();
    while let Some(line) = lines.next_line()? {
        if !line.starts_with(br#"{"event":"step","#) {
            continue;
        }
        let step: Result<StepRecord, _> = json_fault::parse(line);
        let step = step.map_err(|what| Error::Run {
            what: format!("line {}: {what}", lines.number()),
            path: lines.path().to_owned(),
        })?;
        for (row, outcome) in step.rows.iter().zip(&step.outcome) {
            let known = row.num_computed as usize + row.num_new.saturating_sub(row.num_drafts) as usize;
            let computed = known + outcome.token_ids.len().saturating_sub(1);
            let most = tokens.entry(row.request_id.clone()).or_default();
            *most = computed.max(*most);
        }
    }
    Ok(tokens)
}

/// The arrays of a trace while they are written.
struct Arrays<'a> {
    config: &'a DsaTraceConfig,
    directory: &'a Path,
    tokens: HashMap<String, usize>,
    /// The file of each request. None stays open, because there may be more requests than files that a process can open.
    paths: HashMap<String, PathBuf>,
    /// The file that was written last. All layers of a token follow one another.
    open: Option<(PathBuf, BufWriter<File>)>,
    made: Vec<PathBuf>,
}

/// Writes an array for each request of the trace in `directory` into `to`: int32 `[tokens, layers with an indexer, k]`, ascending positions
/// padded with -1, as `--return-indexer-topk` gives. Tokens without a record (they came from the prefix cache, or their kind of
/// row is not recorded) have -1 everywhere. Returns the files in the order of the requests.
///
/// # Errors
///
/// There are no records, one can't be read, or a file is there already or can't be written.
pub fn write_npy(directory: &Path, to: &Path) -> Result<Vec<PathBuf>, Error> {
    let Some(mut records) = DsaRecords::open(directory)? else {
        let path = directory.join(DSA_STEM);
        return Err(Error::Run { path, what: "there are no records".to_owned() });
    };
    let config = DsaTraceConfig::of_trace(directory)?;
    std::fs::create_dir_all(to).map_err(|source| Error::Write { path: to.to_owned(), source })?;
    let mut arrays = Arrays {
        config: &config,
        directory: to,
        tokens: computed_tokens(directory)?,
        paths: HashMap::new(),
        open: None,
        made: Vec::new(),
    };
    while let Some(record) = records.next_record()? {
        let place = config.indexer_layers.iter().position(|&own| own == record.layer_id);
        // A token that was drafted behind the end of a request belongs to no output.
        let inside =
            arrays.tokens.get(&record.request_id).is_some_and(|&end| (record.step_idx as usize) < end);
        let Some(place) = place.filter(|_| inside && record.accepted != Some(false)) else { continue };
        if record.selected_token_pos.len() > config.index_topk as usize {
            let what = format!("record {} has more than {} keys", records.number(), config.index_topk);
            return Err(Error::Run { path: records.path().to_owned(), what });
        }
        arrays.set(&record, place)?;
    }
    arrays.close()?;
    Ok(arrays.made)
}

impl Arrays<'_> {
    fn set(&mut self, record: &DsaTopkRecord, place: usize) -> Result<(), Error> {
        let (layers, k) = (self.config.indexer_layers.len(), self.config.index_topk as usize);
        let shape = [self.tokens.get(&record.request_id).copied().unwrap_or(0), layers, k];
        let path = match self.paths.get(&record.request_id) {
            Some(path) => path.clone(),
            None => self.begin(&record.request_id, shape)?,
        };
        let failed = |source| Error::Write { path: path.clone(), source };
        if self.open.as_ref().is_none_or(|(open, _)| *open != path) {
            self.close()?;
            let file = OpenOptions::new().write(true).open(&path).map_err(failed)?;
            self.open = Some((path.clone(), BufWriter::new(file)));
        }
        let Some((_, file)) = &mut self.open else { return Ok(()) };
        let row = npy_header(shape).len() + 4 * (record.step_idx as usize * layers + place) * k;
        let mut bytes: Vec<u8> = Vec::with_capacity(4 * k);
        let positions = record.selected_token_pos.iter().map(|&p| i32::try_from(p).unwrap_or(i32::MAX));
        bytes.extend(positions.flat_map(i32::to_le_bytes));
        bytes.resize(4 * k, 0xff);
        file.seek(SeekFrom::Start(row as u64)).map_err(failed)?;
        file.write_all(&bytes).map_err(failed)
    }

    /// Makes the file of a request, with -1 everywhere.
    fn begin(&mut self, request_id: &str, shape: [usize; 3]) -> Result<PathBuf, Error> {
        let path = self.directory.join(file_name(request_id, self.made.len()));
        let failed = |source| Error::Write { path: path.clone(), source };
        let mut file = BufWriter::new(File::create_new(&path).map_err(failed)?);
        file.write_all(&npy_header(shape)).map_err(failed)?;
        let row = vec![0xff; 4 * shape[1] * shape[2]];
        (0..shape[0]).try_for_each(|_| file.write_all(&row)).map_err(failed)?;
        file.flush().map_err(failed)?;
        self.paths.insert(request_id.to_owned(), path.clone());
        self.made.push(path.clone());
        Ok(path)
    }

    fn close(&mut self) -> Result<(), Error> {
        match self.open.take() {
            Some((path, mut file)) => file.flush().map_err(|source| Error::Write { path, source }),
            None => Ok(()),
        }
    }
}

/// The name of a request's file: its own name where that can be one.
fn file_name(request_id: &str, index: usize) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    match (1..=100).contains(&request_id.len()) && request_id.chars().all(plain) {
        true => format!("{request_id}.npy"),
        // No name of the other kind has a point inside.
        false => format!("request.{index}.npy"),
    }
}
