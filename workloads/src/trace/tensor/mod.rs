//! Traces of tensors: `trace_tensors.jsonl` with an event a line, and with `full` the tensors themselves, a file a step, in
//! `trace_tensors/`.
//!
//! [`TensorRecord`] is a line. [`summarise_tensors`] counts events, and [`diff_tensors`] finds where two runs part.

mod diff;
mod files;
mod positions;
mod reader;
mod record;
mod summary;
mod writer;

pub use diff::{
    Deltas, DiffCell, DiffKv, DiffLayer, DiffOptions, DiffShape, DiffStep, DiffToken, Difference, Parting,
    TensorDiff, diff_tensors,
};
pub use positions::{position_list, position_ranges};
pub use reader::TensorLines;
pub use record::{LEFT_OUT, TensorRecord, TensorValue};
pub use summary::{TensorSummary, summarise_tensors};
pub use writer::TensorData;
pub(super) use writer::TensorWriter;
use writer::tensor_name;

/// What the names of the file with these events, and of the directory with the tensors, begin with.
pub const TENSORS_STEM: &str = "trace_tensors";
