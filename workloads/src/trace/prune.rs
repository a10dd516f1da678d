//! What a trace says about a prompt of which tokens were dropped behind a layer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which tokens of a prompt went on behind a layer. The line comes behind that of the step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PruneRecord {
    /// The request.
    pub request_id: String,
    /// The layer behind which tokens were dropped.
    pub layer: u16,
    /// The step.
    pub step: u64,
    /// How many of the prompt's tokens reached the end of the layer.
    pub input_seq_len: u32,
    /// How many were to be kept.
    pub keep_k: u32,
    /// How many were kept.
    pub tokens_kept: u32,
    /// How many were dropped.
    pub tokens_pruned: u32,
    /// The share that was dropped.
    pub pruning_ratio: f64,
    /// The least score of a token that reached the layer's end.
    pub scores_min: f32,
    /// The greatest score.
    pub scores_max: f32,
    /// The mean score.
    pub scores_mean: f32,
    /// Whether all scores were equal, so that the lowest positions were kept beside those that always stay.
    pub fallback_applied: bool,
    /// The prompt positions that were kept, ascending.
    pub kept: Vec<u32>,
    /// How many blocks of the group behind the layer the dropped tokens would have taken.
    pub blocks_freed: u32,
}
