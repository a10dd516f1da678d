//! How a canvas is denoised.

use std::ops::RangeInclusive;
use std::sync::Arc;

/// How the blocks of a request's canvas are denoised.
#[derive(Clone, Debug, PartialEq)]
pub struct Denoising {
    /// The number of positions of the canvas, a multiple of `block`.
    pub len: u32,
    /// The number of positions of a block.
    pub block: u32,
    /// The number of passes in which a block is filled if there is no threshold. At least 1.
    pub passes: u32,
    /// If given, a pass fills every mask whose token is at least so probable, and always the most certain one.
    pub threshold: Option<f64>,
    /// Which masks are filled first.
    pub remasking: Remasking,
    /// The id of the mask. It is never chosen.
    pub mask: u32,
    /// Whether every pass is a full one (no cache).
    pub always_full: bool,
    /// Whether a block that its first pass fills gets another pass all the same, as in the original program.
    pub extra_pass: bool,
    /// Which tokens of a block skip the later layers; `None` if none do.
    pub skip: Option<Skip>,
    /// The ids that the canvas begins with, masks among them; empty if all are masks.
    pub given: Arc<[u32]>,
    /// Passes whose fills were decided beforehand. The other passes fill what their logits say.
    pub forced: Arc<[ForcedPass]>,
    /// Whether the record of a pass says what it would fill every mask with.
    pub keep_choices: bool,
}

/// A pass that fills certain masks with certain tokens, whatever its logits say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ForcedPass {
    /// The block, counted from 0.
    pub block: u32,
    /// The pass over this block, counted from 0.
    pub step: u32,
    /// Positions, each with its token. Those that are no masks of the block are left alone.
    pub fills: Vec<(u32, u32)>,
}

/// Which masks are filled first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Remasking {
    /// Those whose tokens are the most probable.
    #[default]
    LowConfidence,
    /// Drawn ones.
    Random,
}

/// Which tokens of a block skip the layers behind the first segment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Skip {
    /// The number of layers that every token of the block runs through (K).
    pub layers: u16,
    /// Which states are compared.
    pub states: SkipStates,
    /// Which tokens are stable.
    pub policy: SkipPolicy,
    /// What happens to masks that are judged stable.
    pub guard: Guard,
    /// Whether the second pass of a block is compared with the first one. The program that this comes from left that out.
    pub compares_first: bool,
}

/// Which states of a token are compared between two passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SkipStates {
    /// The outputs of the layers 1 to K - 1 (counted from 0).
    #[default]
    Out,
    /// Their inputs.
    In,
}

/// Which tokens are stable.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SkipPolicy {
    /// Those whose cosines between the two passes are `outlier` at least in every compared layer, and above `threshold` on average.
    Cosine {
        /// The mean is above this.
        threshold: f64,
        /// Each is at least this.
        outlier: f64,
    },
    /// This share of the block's tokens (rounded down): those whose states changed the least since they last ran through all layers, relative
    /// to their lengths. The change of the other tokens decides, so that no threshold has to fit the model; and a token that skips layers pass
    /// after pass drifts further and further, until it is its turn to run.
    LeastMoved {
        /// The share, from 0 to 1.
        share: f64,
    },
    /// This share of the block's tokens that are filled (rounded down): those around which the least was filled since they last ran through all
    /// layers. Each fill counts 1 / distance; a token that was itself filled runs. Masks are never stable. No states are compared, so that one
    /// layer before the judge is enough.
    Settled {
        /// The share, from 0 to 1.
        share: f64,
    },
}

/// What happens to masks that are judged stable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Guard {
    /// They run through all layers all the same.
    #[default]
    Guard,
    /// They skip the later layers, and are filled by their last choice.
    Reuse,
    /// They skip the later layers, and can't be filled in this pass. Blocks may end with masks: this is the fault of the program that token
    /// skip comes from, kept to be studied.
    None,
}

impl Skip {
    /// The states that are compared: for each, the layer that it enters.
    pub(crate) fn compared(&self) -> RangeInclusive<usize> {
        let layers = usize::from(self.layers);
        match self.states {
            // An output of a layer enters the next one.
            SkipStates::Out => 2..=layers,
            SkipStates::In => 1..=layers.saturating_sub(1),
        }
    }
}
