//! What a trace says about a pass over a canvas in which tokens may skip layers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the tokens of a block were judged in a pass. The line comes behind that of the step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SkipJudgeRecord {
    /// The request.
    pub request_id: String,
    /// The step.
    pub step: u64,
    /// The block of the canvas, from 0.
    pub block: u32,
    /// The pass over this block, from 0.
    pub pass: u32,
    /// The number of positions that were computed.
    pub rows: u32,
    /// The number of the block's tokens that skipped the later layers.
    pub stable: u32,
    /// The number of the block's tokens that ran through all layers.
    pub active: u32,
    /// The number of masks that the pass could have filled.
    pub masked_before: u32,
    /// The number of masks that were judged stable.
    pub masked_stable: u32,
    /// The number of masks that had no choice in this pass, because they skipped the later layers.
    pub left_aside: u32,
    /// Whether every token of the block skipped the later layers although there were masks.
    pub all_stable_with_masks: bool,
}
