//! The attention of one layer in one step over chosen latents.

use super::TILE;
use super::latent_row::{AttendRows, BLOCK, Stage};
use super::rows::{SparseRow, SparseRows};
use super::selection::SelectionView;
use super::vector_layer::{VectorDtype, VectorLayer};
use crate::error::AttentionError;
use crate::isa::Isa;
use crate::kernel::scratch::Floats;
use crate::lanes::LANES;
use crate::metadata::AttentionMetadata;
use crate::token_rows::{TokenRows, check_rows};
use std::marker::PhantomData;

/// How queries and latents are made up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatentShape {
    /// Query heads.
    pub heads: usize,
    /// Values of a latent that are summed; a query has as many in its first part.
    pub rank: usize,
    /// From one head to the next in the second part of the queries.
    pub rotated_stride: usize,
    /// Where the rotated values of a head begin in its second part. There are as many as a latent has behind its first `rank`.
    pub rotated_offset: usize,
    /// What products of queries and latents are multiplied with.
    pub scale: f32,
}

/// The working memory of a thread. It grows to the greatest item it has met: some 420 KiB for latents of 576 values.
#[derive(Debug, Default)]
pub struct LatentScratch {
    pub(super) q: Floats,
    pub(super) weights: Floats,
    pub(super) state: Floats,
    pub(super) acc: Floats,
    pub(super) wide: Floats,
}

/// Lists of so many entries are worth being shared by threads.
const WORTH_SHARING: usize = 2 * TILE;

/// Scores of items that threads share: see [`LatentCall::score_part`].
#[derive(Debug)]
pub struct LatentScores {
    floats: Floats,
    at: *mut f32,
}

// SAFETY: it only points into memory of its own; `LatentCall` demands that threads use different parts.
unsafe impl Send for LatentScores {}
// SAFETY: as above.
unsafe impl Sync for LatentScores {}

impl Default for LatentScores {
    fn default() -> LatentScores {
        LatentScores { floats: Floats::default(), at: std::ptr::null_mut() }
    }
}

impl LatentScores {
    /// Makes room for the scores of a call.
    pub fn prepare(&mut self, call: &LatentCall<'_>) {
        self.at = self.floats.reserve(call.num_items() * Self::item_len(call));
    }

    fn item_len(call: &LatentCall<'_>) -> usize {
        call.selection.k().next_multiple_of(TILE) * LANES
    }

    fn of_item(&self, call: &LatentCall<'_>, index: usize) -> *mut f32 {
        self.at.wrapping_add(index * Self::item_len(call))
    }
}

/// Attention over a list of keys a query token: `out_h = sum over the list of softmax(scale (q_h . latent)) latent[..rank]`, as
/// [`super::reference`] has it. A query is `absorbed_h | rotated_h`: its two parts lie in two buffers.
#[derive(Debug)]
pub struct LatentCall<'a> {
    isa: Isa,
    pub(super) metadata: &'a AttentionMetadata,
    rows: &'a SparseRows,
    pub(super) latents: VectorLayer,
    selection: SelectionView<'a>,
    pub(super) shape: LatentShape,
    pub(super) absorbed: TokenRows<'a>,
    pub(super) rotated: TokenRows<'a>,
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// How many rows share the tiles of their keys.
    block: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: `run_item` demands that items are run by one thread each; an item writes its own part of `out` and only reads
// everything else.
unsafe impl Sync for LatentCall<'_> {}
// SAFETY: `out` is borrowed for as long as the call lives, and f32 may be written from any thread.
unsafe impl Send for LatentCall<'_> {}

impl<'a> LatentCall<'a> {
    /// A call for one layer. `rows` was planned from `metadata`; `absorbed` and `out` have `heads * rank` values a token row.
    ///
    /// # Errors
    ///
    /// [`AttentionError::ForeignPlan`], [`AttentionError::Fp8Latents`], [`AttentionError::Shape`], [`AttentionError::SmallBuffer`], [`AttentionError::Isa`].
    #[allow(clippy::too_many_arguments)] // they are the operands of one operation
    pub fn new(
        isa: Isa,
        metadata: &'a AttentionMetadata,
        rows: &'a SparseRows,
        latents: VectorLayer,
        selection: SelectionView<'a>,
        shape: LatentShape,
        absorbed: TokenRows<'a>,
        rotated: TokenRows<'a>,
        out: &'a mut [f32],
        out_stride: usize,
    ) -> Result<LatentCall<'a>, AttentionError> {
        let isa = isa.require()?;
        if rows.geometry() != Some((latents.layout().block_size(), latents.num_blocks())) {
            return Err(AttentionError::ForeignPlan { what: "cache layout" });
        }
        if rows.tokens() != metadata.num_tokens() {
            return Err(AttentionError::ForeignPlan { what: "step" });
        }
        if let VectorDtype::Fp8 { .. } = latents.layout().dtype() {
            return Err(AttentionError::Fp8Latents);
        }
        let LatentShape { heads, rank, rotated_stride, rotated_offset, .. } = shape;
        let width = latents.layout().width();
        if heads == 0 || rank == 0 || rank > width || rotated_offset + (width - rank) > rotated_stride {
            return Err(AttentionError::Shape { heads, kv_heads: 1, head_dim: width });
        }
        absorbed.check("absorbed q", rows.tokens(), heads * rank)?;
        rotated.check("rotated q", rows.tokens(), heads * rotated_stride)?;
        check_rows("out", out.len(), out_stride, rows.tokens(), heads * rank)?;
        if selection.rows() < rows.tokens() {
            let (found, needed) = (selection.rows(), rows.tokens());
            return Err(AttentionError::SmallBuffer { buffer: "selection", found, needed });
        }
        let out = out.as_mut_ptr();
        let borrowed = PhantomData;
        Ok(LatentCall {
            isa,
            metadata,
            rows,
            latents,
            selection,
            shape,
            absorbed,
            rotated,
            out,
            out_stride,
            block: 1,
            borrowed,
        })
    }

    /// The same call, in which rows of a sequence that attend to all keys they see share the tiles of these keys, where so many threads
    /// have enough to do nevertheless: the item of the first such row does the work of up to four, and those of the others
    /// do nothing. That changes no bit.
    #[must_use]
    pub fn share_tiles(mut self, threads: usize) -> LatentCall<'a> {
        self.block = (self.num_items() / (2 * threads).max(1)).clamp(1, BLOCK);
        self
    }

    /// The rows whose work the item of a row does.
    fn rows_of(&self, index: usize) -> &[SparseRow] {
        let (start, run) = self.rows.run_around(index);
        let Some(place) = index.checked_sub(start).filter(|&place| place < run.len()) else { return &[] };
        let first = place - place % self.block;
        let block = &run[first..run.len().min(first + self.block)];
        // SAFETY: nobody writes the selection, as whoever runs an item promises.
        let takes_all =
            |row: &SparseRow| unsafe { self.selection.row(row.token as usize) }.len() == row.visible as usize;
        match block.len() > 1 && block.iter().all(takes_all) {
            true if place == first => block,
            true => &[],
            false => &run[place..=place],
        }
    }

    fn head_groups(&self) -> usize {
        self.shape.heads.div_ceil(LANES)
    }

    /// How many items there are to run: one for each query token and 16 heads.
    #[must_use]
    pub fn num_items(&self) -> usize {
        self.rows.rows().len() * self.head_groups()
    }

    /// Runs one item: writes the output of one query token in up to 16 heads. An index beyond the last does nothing. A row
    /// whose list is empty, or names a key that it does not see, is left as it was.
    ///
    /// # Safety
    ///
    /// The rows were planned from this very metadata, unchanged since. The step's own latents are stored, and nobody writes
    /// a slot of these rows, or the selection, meanwhile. No other thread runs the same item at the same time.
    pub unsafe fn run_item(&self, index: usize, scratch: &mut LatentScratch) {
        // SAFETY: as the caller promises.
        unsafe { self.run(index, Stage::Whole, scratch) }
    }

    /// Into how many parts threads had better cut each item: 1, unless there are fewer items than `threads` and lists are long.
    #[must_use]
    pub fn parts(&self, threads: usize) -> usize {
        let longest = self.rows.rows().iter().map(|row| row.visible as usize).max().unwrap_or(0);
        let items = self.num_items();
        let long = longest.min(self.selection.k()) >= WORTH_SHARING;
        if long && items < threads { threads.div_ceil(items.max(1)) } else { 1 }
    }

    /// Does a part (which, of how many) of the first half of an item: scores for `scores`.
    ///
    /// # Safety
    ///
    /// As [`run_item`](Self::run_item), but other threads may do other parts. `scores` was made for this call.
    pub unsafe fn score_part(
        &self,
        index: usize,
        (part, parts): (usize, usize),
        scores: &LatentScores,
        scratch: &mut LatentScratch,
    ) {
        let stage = Stage::Dots { part, parts, dots: scores.of_item(self, index) };
        // SAFETY: as the caller promises.
        unsafe { self.run(index, stage, scratch) }
    }

    /// Does a part of the second half of an item: some columns of the output.
    ///
    /// # Safety
    ///
    /// As [`score_part`](Self::score_part); all parts of the first half are done.
    pub unsafe fn sum_part(
        &self,
        index: usize,
        (part, parts): (usize, usize),
        scores: &LatentScores,
        scratch: &mut LatentScratch,
    ) {
        let stage = Stage::Sums { part, parts, dots: scores.of_item(self, index) };
        // SAFETY: as the caller promises.
        unsafe { self.run(index, stage, scratch) }
    }

    unsafe fn run(&self, index: usize, stage: Stage, scratch: &mut LatentScratch) {
        let index_of_row = index / self.head_groups();
        let rows = match stage {
            Stage::Whole => self.rows_of(index_of_row),
            _ => self.rows.rows().get(index_of_row..=index_of_row).unwrap_or(&[]),
        };
        let Some(row) = rows.last() else { return };
        // SAFETY: nobody writes the selection, as the caller promises.
        let list = unsafe { self.selection.row(row.token as usize) };
        // Lists ascend, so that the last entry is the greatest.
        if list.last().is_none_or(|&last| last >= row.visible) {
            return;
        }
        let first = index % self.head_groups() * LANES;
        self.isa.run(AttendRows { call: self, rows, list, first, stage, scratch });
    }
}
