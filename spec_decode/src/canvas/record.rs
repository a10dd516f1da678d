//! What a pass over a canvas did.

use pagedraft_scheduler::RequestKey;

/// What a pass over a canvas did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CanvasPass {
    /// The request.
    pub request: RequestKey,
    /// The block, counted from 0.
    pub block: u32,
    /// The pass over this block, counted from 0.
    pub step: u32,
    /// The number of positions that were computed.
    pub rows: u32,
    /// The first of them.
    pub offset: u32,
    /// The number of masks that could have been filled.
    pub masked_before: u32,
    /// The number of tokens that skipped the later layers.
    pub stable: u32,
    /// The number of the block's tokens that ran through all layers.
    pub active: u32,
    /// The number of masks that were judged stable.
    pub masked_stable: u32,
    /// Whether the states of the block's tokens were compared with those of the pass before.
    pub compared: bool,
    /// The number of masks that this pass could have filled and that had neither a choice of their own nor a kept one.
    pub left_aside: u32,
    /// The number of masks that the block has after this pass.
    pub masks_left: u32,
    /// The sum over the layers of the tokens that ran through each.
    pub token_layers: u64,
    /// Whether the next pass is a full one because this one could not fill anything.
    pub watchdog: bool,
    /// The positions that were filled, ascending.
    pub pos: Vec<u32>,
    /// Their tokens.
    pub tok: Vec<u32>,
    /// The logits of the masks whose rows ran to the end, each with its position, if the executor was told to keep logits.
    pub logits: Vec<(u32, Vec<f32>)>,
    /// The token that each mask would be filled with now, by position, if the request's choices are kept.
    pub choices: Vec<(u32, u32)>,
    /// Whether the block is final with this pass.
    pub ends: bool,
}

impl CanvasPass {
    /// Whether every token of the block skipped the later layers although there were masks.
    #[must_use]
    pub fn is_all_stable(&self) -> bool {
        self.active == 0 && self.masked_before > 0
    }
}
