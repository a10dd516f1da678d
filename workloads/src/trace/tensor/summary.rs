//! Counts the events of a trace of tensors.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::reader::TensorLines;
use super::record::{LEFT_OUT, TensorValue};
use crate::Error;

/// How many events a trace has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct TensorSummary {
    /// All of them.
    pub entries: u64,
    /// Those that were left out because there would have been too many.
    pub left_out: u64,
    /// The first and the last step.
    pub steps: Option<[u64; 2]>,
    /// The first and the last layer.
    pub layers: Option<[u16; 2]>,
    /// How many there are of each name.
    pub events: BTreeMap<String, u64>,
}

/// Counts the events in a directory; `None` if it has no trace of tensors.
///
/// # Errors
///
/// The trace can't be read.
pub fn summarise_tensors(directory: &Path) -> Result<Option<TensorSummary>, Error> {
    let Some(mut lines) = TensorLines::open(directory)? else { return Ok(None) };
    let mut summary = TensorSummary::default();
    while let Some(record) = lines.next_event()? {
        if record.event == LEFT_OUT {
            if let Some(TensorValue::Count(count)) = record.values.get("entries") {
                summary.left_out += count;
            }
            continue;
        }
        summary.entries += 1;
        let steps = summary.steps.get_or_insert([record.step; 2]);
        *steps = [steps[0].min(record.step), steps[1].max(record.step)];
        if let Some(layer) = record.layer {
            let layers = summary.layers.get_or_insert([layer; 2]);
            *layers = [layers[0].min(layer), layers[1].max(layer)];
        }
        *summary.events.entry(record.event).or_default() += 1;
    }
    Ok(Some(summary))
}
