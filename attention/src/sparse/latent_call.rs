//! The attention of one layer in one step over chosen latents.

use super::TILE;
use super::latent_tile::{HeadGroup, Latents};
use super::rows::{SparseRow, SparseRows};
use super::selection::SelectionView;
use super::vector_layer::{VectorLayer, widened};
use crate::error::AttentionError;
use crate::isa::{Isa, Kernel};
use crate::kernel::element::{Bf16, Element, F16, F32};
use crate::kernel::scratch::Floats;
use crate::kv_layout::KvDtype;
use crate::lanes::{LANES, Lanes};
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

/// The working memory of a thread. It grows to the greatest item it has met: some 350 KiB for latents of 576 values.
#[derive(Debug, Default)]
pub struct LatentScratch {
    q: Floats,
    weights: Floats,
    state: Floats,
    acc: Floats,
    wide: Floats,
}

/// Attention over a list of keys a query token: `out_h = sum over the list of softmax(scale (q_h . latent)) latent[..rank]`, as
/// [`super::reference`] has it. A query is `absorbed_h | rotated_h`: its two parts lie in two buffers.
#[derive(Debug)]
pub struct LatentCall<'a> {
    isa: Isa,
    metadata: &'a AttentionMetadata,
    rows: &'a SparseRows,
    latents: VectorLayer,
    selection: SelectionView<'a>,
    shape: LatentShape,
    absorbed: TokenRows<'a>,
    rotated: TokenRows<'a>,
    out: *mut f32,
    out_stride: usize,
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
    /// [`AttentionError::ForeignPlan`], [`AttentionError::Shape`], [`AttentionError::SmallBuffer`], [`AttentionError::Isa`].
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
            borrowed,
        })
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
        let Some(&row) = self.rows.rows().get(index / self.head_groups()) else { return };
        // SAFETY: nobody writes the selection, as the caller promises.
        let list = unsafe { self.selection.row(row.token as usize) };
        // Lists ascend, so that the last entry is the greatest.
        if list.last().is_none_or(|&last| last >= row.visible) {
            return;
        }
        let first = index % self.head_groups() * LANES;
        self.isa.run(AttendRow { call: self, row, list, first, scratch });
    }
}

struct AttendRow<'a> {
    call: &'a LatentCall<'a>,
    row: SparseRow,
    list: &'a [u32],
    /// The first head.
    first: usize,
    scratch: &'a mut LatentScratch,
}

impl Kernel for AttendRow<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller has the features; the call was checked when it was made.
        unsafe {
            match self.call.latents.layout().dtype() {
                KvDtype::F32 => self.attend::<L, F32>(),
                KvDtype::F16 => self.attend::<L, F16>(),
                KvDtype::Bf16 => self.attend::<L, Bf16>(),
            }
        }
    }
}

impl AttendRow<'_> {
    #[inline(always)]
    unsafe fn attend<L: Lanes, E: Element>(mut self) {
        let group = self.begin();
        let AttendRow { call, row, list, first, scratch } = self;
        let stride = call.latents.layout().stride();
        let wide = scratch.wide.reserve(TILE * stride);
        let table = call.metadata.block_tables.get(row.row as usize).unwrap_or(&[]);
        let mut entries = [std::ptr::null(); TILE];
        for list in list.chunks(TILE) {
            // SAFETY: the list names keys that the row sees, which its table reaches, as the plan has found. There is room
            // for the vectors of a tile.
            unsafe {
                for (j, (&index, entry)) in list.iter().zip(&mut entries).enumerate() {
                    let stored = call.latents.at(table, index as usize);
                    *entry = widened::<L, E>(stored, stride / LANES, wide.add(j * stride));
                }
                let latents = Latents { entries: &entries[..list.len()] };
                group.weigh::<L>(&latents);
                group.add_values::<L>(&latents);
            }
        }
        let rank = call.shape.rank;
        for h in 0..group.heads {
            // SAFETY: the item's own part of `out`; a last partial vector goes through a buffer.
            unsafe {
                let out = call.out.add(row.token as usize * call.out_stride + (first + h) * rank);
                let sum = L::splat(*group.sums.add(h));
                for d in (0..rank).step_by(LANES) {
                    let values = L::load(group.acc.add(h * group.rank + d)).div(sum);
                    if rank - d >= LANES {
                        values.store(out.add(d));
                    } else {
                        std::ptr::copy_nonoverlapping(values.to_array().as_ptr(), out.add(d), rank - d);
                    }
                }
            }
        }
    }

    /// The state before the first tile, and the queries laid out by value, then head.
    fn begin(&mut self) -> HeadGroup {
        let Self { call, row, first, scratch, .. } = self;
        let shape = call.shape;
        let (width, rank) = (call.latents.layout().width(), shape.rank.next_multiple_of(LANES));
        let heads = (shape.heads - *first).min(LANES);
        let state = scratch.state.reserve(3 * LANES);
        let group = HeadGroup {
            q: scratch.q.reserve(width * LANES),
            weights: scratch.weights.reserve(TILE * LANES),
            maxima: state,
            factors: state.wrapping_add(LANES),
            sums: state.wrapping_add(2 * LANES),
            acc: scratch.acc.reserve(LANES * rank),
            width,
            rank,
            heads,
            scale: shape.scale,
        };
        let q = group.q.cast_mut();
        let token = row.token as usize;
        // SAFETY: `new` has found that both parts of q have the row; the buffers were just reserved.
        unsafe {
            std::slice::from_raw_parts_mut(group.maxima, LANES).fill(f32::NEG_INFINITY);
            std::slice::from_raw_parts_mut(group.sums, LANES).fill(0.0);
            std::slice::from_raw_parts_mut(group.acc, LANES * rank).fill(0.0);
            std::slice::from_raw_parts_mut(q, width * LANES).fill(0.0);
            for lane in 0..heads {
                let h = *first + lane;
                let absorbed = call.absorbed.row(token).add(h * shape.rank);
                for d in 0..shape.rank {
                    *q.add(d * LANES + lane) = *absorbed.add(d);
                }
                let rotated = call.rotated.row(token).add(h * shape.rotated_stride + shape.rotated_offset);
                for d in shape.rank..width {
                    *q.add(d * LANES + lane) = *rotated.add(d - shape.rank);
                }
            }
        }
        group
    }
}
