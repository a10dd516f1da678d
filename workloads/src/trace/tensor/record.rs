//! A line of a trace of tensors.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The event of the last line, if events were left out because there would have been too many.
pub const LEFT_OUT: &str = "LEFT_OUT";

/// What was seen of one request at one place of a step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TensorRecord {
    /// The place, such as `ATTN_ENTRY`.
    pub event: String,
    /// The step, as `trace_steps` numbers it.
    pub step: u64,
    /// The layer, from 0; null where it belongs to no layer.
    pub layer: Option<u16>,
    /// The block of the request's canvas, from 0; null if it has no canvas.
    pub block: Option<u32>,
    /// The pass over this block, from 0; null if the request has no canvas.
    pub pass: Option<u32>,
    /// The request.
    pub request_id: String,
    /// The positions in the sequence of the tensors' rows, as ranges `[first, end)`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub positions: Vec<[u32; 2]>,
    /// How many of these rows, from the first on, belong to the sequence: the others are of drafts that were rejected. All, if it is
    /// missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<u32>,
    /// The shapes of its tensors.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// What is known of their values, and what else there is to say.
    pub values: BTreeMap<String, TensorValue>,
}

/// Something known of a tensor, or said beside the tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum TensorValue {
    /// Statistics of a tensor's values. A number that is missing is not a number, or infinite.
    Stats {
        /// The type that the values are stored in.
        dtype: String,
        /// The least value.
        min: Option<f32>,
        /// The greatest value.
        max: Option<f32>,
        /// Their mean.
        mean: Option<f64>,
        /// Their standard deviation.
        std: Option<f64>,
    },
    /// A number.
    Count(u64),
    /// Whole numbers.
    Counts(Vec<u32>),
    /// Real numbers.
    Reals(Vec<Option<f64>>),
}

impl TensorRecord {
    /// The positions of the rows that belong to the sequence.
    #[must_use]
    pub fn kept_positions(&self) -> Vec<u32> {
        let mut positions = super::position_list(&self.positions);
        positions.truncate(self.kept.map_or(usize::MAX, |kept| kept as usize));
        positions
    }

    /// The names of the tensors whose statistics are known.
    pub fn tensors(&self) -> impl Iterator<Item = &str> {
        let known = |value: &TensorValue| matches!(value, TensorValue::Stats { .. });
        self.values.iter().filter(move |(_, value)| known(value)).map(|(name, _)| name.as_str())
    }

    /// Whole numbers that it says, by name; none if it does not say them.
    #[must_use]
    pub fn counts(&self, name: &str) -> &[u32] {
        match self.values.get(name) {
            Some(TensorValue::Counts(counts)) => counts,
            _ => &[],
        }
    }
}
