//! Reads tensors back from the files of steps.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use safetensors::tensor::Metadata;
use safetensors::{Dtype, SafeTensors};

use super::writer::step_file;
use crate::Error;

/// Files that are kept in memory. Rows of a chunked run lie in several steps.
const KEPT: usize = 8;

/// The tensors of a trace.
#[derive(Debug)]
pub(super) struct TensorFiles {
    directory: PathBuf,
    /// The files that were read last, the latest last.
    open: VecDeque<StepFile>,
}

#[derive(Debug)]
struct StepFile {
    step: u64,
    bytes: Vec<u8>,
    /// Where the tensors begin, and which there are; `None` if the step has no file.
    metadata: Option<(usize, Metadata)>,
}

impl TensorFiles {
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), open: VecDeque::new() }
    }

    /// The bytes of row `row` of a tensor, f32 in little-endian order; `None` if it was not kept.
    ///
    /// # Errors
    ///
    /// The file can't be read, or is no such file.
    pub fn row(&mut self, step: u64, name: &str, row: usize) -> Result<Option<&[u8]>, Error> {
        let file = self.file(step)?;
        let Some((start, metadata)) = &file.metadata else { return Ok(None) };
        let Some(info) = metadata.info(name).filter(|info| info.dtype == Dtype::F32) else {
            return Ok(None);
        };
        let (rows, width) = match info.shape[..] {
            [rows, width] => (rows, width * 4),
            _ => return Ok(None),
        };
        // The bytes before the tensors are the length of the header and the header.
        let from = start + 8 + info.data_offsets.0 + row * width;
        Ok(if row < rows { file.bytes.get(from..from + width) } else { None })
    }

    fn file(&mut self, step: u64) -> Result<&StepFile, Error> {
        if let Some(at) = self.open.iter().position(|file| file.step == step) {
            return Ok(&self.open[at]);
        }
        let path = step_file(&self.directory, step);
        let (bytes, metadata) = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => (Vec::new(), None),
            Err(source) => return Err(Error::Read { path, source }),
            Ok(bytes) => {
                let metadata = SafeTensors::read_metadata(&bytes);
                let metadata =
                    metadata.map_err(|error| Error::Run { path: path.clone(), what: error.to_string() })?;
                (bytes, Some(metadata))
            }
        };
        if self.open.len() == KEPT {
            self.open.pop_front();
        }
        self.open.push_back(StepFile { step, bytes, metadata });
        Ok(&self.open[self.open.len() - 1])
    }
}
