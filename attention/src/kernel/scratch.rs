//! The working memory of one thread.

use crate::kernel::rows::RowBlock;
use crate::lanes::LANES;

/// 16 floats on a cache line of their own.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// A buffer of floats that starts on a cache line and keeps its memory.
#[derive(Debug, Default)]
pub(crate) struct Floats(Vec<Line>);

impl Floats {
    /// Makes room for `len` floats and returns their start; what they hold is whatever was there.
    pub(crate) fn reserve(&mut self, len: usize) -> *mut f32 {
        let lines = len.div_ceil(LANES);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; LANES]));
        }
        self.0.as_mut_ptr().cast()
    }
}

/// The working memory of a thread that runs items: about 140 KiB for a head of 64. It grows to the
/// greatest item it has met, and allocates nothing from then on.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    pub(crate) blocks: Vec<RowBlock>,
    /// Queries, `[block][d][row of the block]`.
    pub(crate) q: Floats,
    /// Weighted sums of values so far, `[row][d, padded]`.
    pub(crate) acc: Floats,
    /// Sums of weights so far, 16 partial ones a row.
    pub(crate) sums: Floats,
    /// Greatest score so far of each row.
    pub(crate) maxima: Floats,
    /// What each row's sums so far are to be multiplied with.
    pub(crate) factors: Floats,
    /// Scores, then weights, of all rows in a tile: `[row][key]`.
    pub(crate) weights: Floats,
    /// Keys of a tile widened to f32.
    pub(crate) wide_k: Floats,
    /// Values of a tile widened to f32.
    pub(crate) wide_v: Floats,
}

impl AttentionScratch {
    /// Empty.
    #[must_use]
    pub fn new() -> AttentionScratch {
        AttentionScratch::default()
    }
}
