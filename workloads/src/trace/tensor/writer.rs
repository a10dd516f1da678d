//! Writes a trace of tensors.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensorError, serialize_to_file};

use super::TENSORS_STEM;
use super::record::{LEFT_OUT, TensorRecord, TensorValue};
use crate::Error;
use crate::run::{Begin, Leftovers, LineFormat, LineWriter};
use crate::trace::beside::{Begun, Beside};
use crate::trace::lines_before;
use crate::trace::rotation::Rotation;

/// The values of a tensor: `[rows, values a row]`.
#[derive(Clone, Copy, Debug)]
pub struct TensorData<'a> {
    /// The tensor's name in its event.
    pub name: &'a str,
    /// The number of rows.
    pub rows: usize,
    /// The values, row by row.
    pub values: &'a [f32],
}

/// The name in the file of a step of a tensor of an event. Within a step no other tensor has it.
#[must_use]
pub fn tensor_name(record: &TensorRecord, tensor: &str) -> String {
    let first = record.positions.first().map_or(0, |range| range[0]);
    let layer = record.layer.map_or_else(|| "-".to_owned(), |layer| layer.to_string());
    format!("{}.{tensor}/layer {layer}/request {}/from {first}", record.event, record.request_id)
}

/// The file of the tensors of a step.
pub(super) fn step_file(directory: &Path, step: u64) -> PathBuf {
    directory.join(TENSORS_STEM).join(format!("step-{step:08}.safetensors"))
}

/// Writes events, and tensors.
#[derive(Debug)]
pub(in crate::trace) struct TensorWriter {
    directory: PathBuf,
    lines: LineWriter,
    /// The step whose tensors are gathered, and what they are: name, rows, and the bytes of the values.
    step: u64,
    gathered: Vec<(String, usize, Vec<u8>)>,
    /// Where the file of the events is cut, if it is.
    rotation: Option<Rotation>,
    leftovers: Arc<Leftovers>,
}

impl TensorWriter {
    /// Opens the file. Events that a stopped run left of steps that its trace has are kept.
    pub(in crate::trace) fn open(beside: Beside<'_>) -> Result<Self, Error> {
        let Begun { path, begin, rotation } =
            beside.begin(TENSORS_STEM, LineFormat::Jsonl.extension(), lines_before)?;
        let lines = LineWriter::open(path, LineFormat::Jsonl, begin, Arc::clone(&beside.leftovers))?;
        let (directory, leftovers) = (beside.directory.to_owned(), beside.leftovers);
        Ok(Self { directory, lines, step: 0, gathered: Vec::new(), rotation, leftovers })
    }

    /// Begins another file if the present one is full.
    fn rotate(&mut self) -> Result<(), Error> {
        let Some(rotation) = &mut self.rotation else { return Ok(()) };
        let leftovers = &self.leftovers;
        let open = |path| LineWriter::open(path, LineFormat::Jsonl, Begin::New, Arc::clone(leftovers));
        rotation.rotate(&mut self.lines, open).map(drop)
    }

    /// Writes an event, with its tensors if they are kept. Events come in the order of the steps.
    pub(in crate::trace) fn write(
        &mut self,
        record: &TensorRecord,
        tensors: &[TensorData<'_>],
    ) -> Result<(), Error> {
        self.lines.write(record)?;
        self.rotate()?;
        if tensors.is_empty() {
            return Ok(());
        }
        if record.step != self.step {
            self.write_step()?;
            self.step = record.step;
        }
        for tensor in tensors {
            let bytes = tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            self.gathered.push((tensor_name(record, tensor.name), tensor.rows, bytes));
        }
        Ok(())
    }

    /// Writes the tensors of the step whose tensors were gathered.
    fn write_step(&mut self) -> Result<(), Error> {
        let gathered = std::mem::take(&mut self.gathered);
        if gathered.is_empty() {
            return Ok(());
        }
        let path = step_file(&self.directory, self.step);
        let fault = |source| Error::Write { path: path.clone(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(fault)?;
        }
        let views = gathered.iter().map(|(name, rows, bytes)| {
            let shape = vec![*rows, bytes.len() / 4 / (*rows).max(1)];
            TensorView::new(Dtype::F32, shape, bytes).map(|view| (name.as_str(), view))
        });
        let views = views.collect::<Result<Vec<_>, _>>();
        let written = views.and_then(|views| serialize_to_file(views, None, &path));
        self.leftovers.keep();
        written.map_err(|error| match error {
            SafeTensorError::IoError(source) => fault(source),
            other => fault(std::io::Error::other(other)),
        })
    }

    /// Ends the trace, in which `left_out` events are missing.
    pub(in crate::trace) fn close(mut self, left_out: u64) -> Result<(), Error> {
        self.write_step()?;
        if left_out > 0 {
            self.lines.write(&TensorRecord {
                event: LEFT_OUT.to_owned(),
                step: self.step,
                values: [("entries".to_owned(), TensorValue::Count(left_out))].into(),
                ..TensorRecord::default()
            })?;
        }
        self.lines.close()
    }
}
