//! Finds where two runs part.
//!
//! Events of the first trace are taken in order, and each is compared with its partner in the second:
//!
//! - of a canvas, the event of the same request, block, pass, layer and name. Other rows there are a difference, because the pass ran
//!   other tokens.
//! - of other requests, the rows of the same request, layer, name and *position*, whatever the step: a chunked, a speculative and a plain
//!   run compute the same positions in different steps. Rows of rejected drafts are left out, and positions that only one run computed
//!   are counted.
//!
//! Where both traces have the tensors (`full`), rows are compared bit by bit. Otherwise the statistics of events with the same rows are.

mod compare;
mod index;

use std::path::Path;

use serde::Serialize;

use super::reader::TensorLines;
use crate::Error;
use compare::Comparison;
use index::Other;

/// How two traces are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DiffOptions {
    /// The greatest absolute difference that does not count: 0 compares bits.
    pub tolerance: f64,
}

/// What was found to differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Parting {
    /// The values of a row.
    Values,
    /// Statistics of the values; the rows themselves were not traced.
    Statistics,
    /// The shape: a pass ran other rows, or the models differ.
    Shape,
}

/// The first difference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// The step in the first trace.
    pub step: u64,
    /// The step in the second one.
    pub other_step: u64,
    /// The layer; null where it belongs to no layer.
    pub layer: Option<u16>,
    /// The event.
    pub event: String,
    /// The tensor.
    pub tensor: String,
    /// The position of the first row that differs; null where only statistics are known.
    pub row: Option<u32>,
    /// The greatest absolute difference in the row; null where it is not known or not finite.
    pub max_abs: Option<f64>,
    /// What differs.
    pub kind: Parting,
    /// The request.
    pub request_id: String,
    /// The block of its canvas.
    pub block: Option<u32>,
    /// The pass over this block.
    pub pass: Option<u32>,
}

/// A layer, in the step in which the runs part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiffLayer {
    /// The layer.
    pub layer: u16,
    /// The greatest absolute difference of a value; null if only statistics or shapes differ.
    pub max_abs: Option<f64>,
    /// The events that differ.
    pub events: Vec<String>,
}

/// A token, in the step in which the runs part.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DiffToken {
    /// The request.
    pub request_id: String,
    /// Its position.
    pub position: u32,
    /// In each trace: `active` if the token ran through all layers, `stable` if it skipped the later ones, null if nothing was judged.
    pub state: [Option<&'static str>; 2],
    /// The greatest absolute difference of a value in any layer; null if no row was compared.
    pub max_abs: Option<f64>,
    /// The greatest absolute difference of its logits; null if they were not compared.
    pub logits_max_abs: Option<f64>,
    /// The token that its logits make the most likely in each trace.
    pub predictions: [Option<u32>; 2],
}

/// Keys and values in the cache, in the step in which the runs part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiffKv {
    /// The layer.
    pub layer: u16,
    /// Positions whose keys differ, as ranges `[first, end)`.
    pub k: Vec<[u32; 2]>,
    /// Positions whose values differ.
    pub v: Vec<[u32; 2]>,
}

/// Two shapes, side by side, in the step in which the runs part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiffShape {
    /// The layer.
    pub layer: Option<u16>,
    /// The event.
    pub event: String,
    /// The tensor.
    pub tensor: String,
    /// The request.
    pub request_id: String,
    /// The shape in the first trace.
    pub a: Vec<usize>,
    /// The shape in the second one.
    pub b: Vec<usize>,
}

/// A token in a layer, in the step in which the runs part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiffCell {
    /// The layer.
    pub layer: u16,
    /// The position.
    pub position: u32,
    /// The greatest absolute difference of a value; null if it is not finite.
    pub max_abs: Option<f64>,
}

/// A step in which something differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DiffStep {
    /// The step in the first trace.
    pub step: u64,
    /// How many events differ.
    pub events: u64,
    /// The greatest absolute difference of a value.
    pub max_abs: Option<f64>,
}

/// How much was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Deltas {
    /// Events of the first trace that were compared with their partners.
    pub events: u64,
    /// Those that differ.
    pub events_different: u64,
    /// Rows of tensors that were compared bit by bit.
    pub rows: u64,
    /// Tensors of which only the statistics could be compared.
    pub statistics: u64,
    /// Tensors that could not be compared: without `full`, statistics of other rows say nothing.
    pub not_comparable: u64,
    /// Rows of tensors of the first trace that the second one does not have.
    pub rows_only_in_a: u64,
    /// Events that only the first trace has.
    pub only_in_a: u64,
    /// Events that only the second trace has.
    pub only_in_b: u64,
    /// Events that each trace has left out.
    pub left_out: [u64; 2],
}

/// Where two runs part. All but the first field and the last two are about the step of the first trace in which they do.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TensorDiff {
    /// The first difference; null if there is none.
    pub first_difference: Option<Difference>,
    /// The layers.
    pub layers: Vec<DiffLayer>,
    /// The tokens.
    pub tokens: Vec<DiffToken>,
    /// The keys and values that differ.
    pub kv: Vec<DiffKv>,
    /// The shapes that differ.
    pub shapes: Vec<DiffShape>,
    /// Layers and tokens whose values differ.
    pub cells: Vec<DiffCell>,
    /// Every step in which something differs.
    pub steps: Vec<DiffStep>,
    /// How much was compared.
    pub compared: Deltas,
}

/// Compares the traces of tensors in two directories. The first is read event by event; of the second the events (not the tensors) are held
/// in memory.
///
/// # Errors
///
/// A directory has no trace of tensors, or it can't be read.
pub fn diff_tensors(a: &Path, b: &Path, options: DiffOptions) -> Result<TensorDiff, Error> {
    let missing = |directory: &Path| Error::Run {
        path: directory.to_owned(),
        what: "there are no tensors in it: trace with --trace-tensors stats or full".to_owned(),
    };
    let mut lines = TensorLines::open(a)?.ok_or_else(|| missing(a))?;
    let other = Other::read(b)?.ok_or_else(|| missing(b))?;
    let mut comparison = Comparison::new(a, b, other, options);
    while let Some(record) = lines.next_event()? {
        comparison.event(&record)?;
    }
    Ok(comparison.finish())
}
