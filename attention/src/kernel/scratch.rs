//! The working memory of one thread.

use crate::kernel::rows::RowBlock;
use crate::lanes::LANES;

/// 16 floats that fill one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; LANES]);

/// A buffer of floats that starts on a cache line. It keeps its memory between uses.
#[derive(Debug, Default)]
pub(crate) struct Floats(Vec<Line>);

impl Floats {
    /// Makes room for `len` floats and returns their start. They hold whatever was there before.
    pub(crate) fn reserve(&mut self, len: usize) -> *mut f32 {
        let lines = len.div_ceil(LANES);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0.0; LANES]));
        }
        self.0.as_mut_ptr().cast()
    }
}

/// The working memory of a thread that runs items: about 140 KiB if a head has 64 values. It grows to the
/// size of the greatest item so far; later items allocate nothing.
#[derive(Debug, Default)]
pub struct AttentionScratch {
    pub(crate) blocks: Vec<RowBlock>,
    /// The item's queries, laid out as `[block][d][row of the block]`.
    pub(crate) q: Floats,
    /// The weighted sums of values so far, laid out as `[row][d, padded to 16]`.
    pub(crate) acc: Floats,
    /// The sums of weights so far; each row has 16 partial sums.
    pub(crate) sums: Floats,
    /// The greatest score of each row so far.
    pub(crate) maxima: Floats,
    /// The factor by which each row's earlier sums are multiplied when its greatest score grows.
    pub(crate) factors: Floats,
    /// The scores of all rows for the keys of a tile, which are then overwritten by their weights, laid out
    /// as `[row][key]`.
    pub(crate) weights: Floats,
    /// The keys of a tile, widened to f32.
    pub(crate) wide_k: Floats,
    /// The values of a tile, widened to f32.
    pub(crate) wide_v: Floats,
}

impl AttentionScratch {
    /// Makes scratch memory that is empty.
    #[must_use]
    pub fn new() -> AttentionScratch {
        AttentionScratch::default()
    }
}
