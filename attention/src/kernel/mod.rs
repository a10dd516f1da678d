//! Paged attention on the CPU.
//!
//! [`WorkList::plan`] cuts a step into items (some queries of one row, in the heads that share one key
//! head), and [`AttentionCall::run_item`] runs one of them. The caller chooses which thread runs which item
//! and in which order; the result is the same to the bit. [`crate::reference`] writes out what is computed.
//!
//! Explicit key lists and latents (sparse attention) have kernels of their own: see [`crate::sparse`].
//!
//! Where more goes: pruned tree masks replace `visible` by a bit mask of the tile. Splitting one long context over
//! threads has to use splits at fixed absolute indices, merged by a fixed tree, for every query and
//! at every thread count: it changes the reduction, thus the reference first.

pub(crate) mod element;
mod enter;
mod item;
mod registers;
mod rows;
pub(crate) mod scratch;
mod tile;
pub(crate) mod work;

pub use scratch::AttentionScratch;
pub use work::WorkList;

use crate::error::AttentionError;
use crate::isa::Isa;
use crate::kv_layer::KvLayer;
use crate::metadata::AttentionMetadata;
use crate::token_rows::{TokenRows, check_rows};
use std::marker::PhantomData;

/// The attention of one layer in one step: out = softmax(scale * q K^T + mask) V, where K and V are read as
/// stored, through the block tables. Query head h reads key head `h / (heads / kv_heads)`.
#[derive(Debug)]
pub struct AttentionCall<'a> {
    isa: Isa,
    metadata: &'a AttentionMetadata,
    work: &'a WorkList,
    layer: KvLayer,
    scale: f32,
    q: TokenRows<'a>,
    out: *mut f32,
    out_stride: usize,
    borrowed: PhantomData<&'a mut [f32]>,
}

// SAFETY: `run_item` demands that no two threads run the same item. An item writes only its own part of
// `out`, and only reads everything else.
unsafe impl Sync for AttentionCall<'_> {}
// SAFETY: `out` is borrowed for as long as the call lives, and f32 may be written from any thread.
unsafe impl Send for AttentionCall<'_> {}

impl<'a> AttentionCall<'a> {
    /// A call for one layer. `work` was planned from `metadata`. `q` has `heads * head_dim` values per
    /// token row, already rotated by RoPE. `out` has as many, and its rows start `out_stride` values apart.
    ///
    /// # Errors
    ///
    /// [`AttentionError::ForeignPlan`], [`AttentionError::SmallBuffer`], [`AttentionError::Isa`].
    #[allow(clippy::too_many_arguments)] // they are the operands of one operation
    pub fn new(
        isa: Isa,
        metadata: &'a AttentionMetadata,
        work: &'a WorkList,
        layer: KvLayer,
        scale: f32,
        q: TokenRows<'a>,
        out: &'a mut [f32],
        out_stride: usize,
    ) -> Result<AttentionCall<'a>, AttentionError> {
        let isa = isa.require()?;
        if work.geometry != Some((*layer.layout(), layer.num_blocks())) {
            return Err(AttentionError::ForeignPlan { what: "cache layout" });
        }
        if work.tokens != metadata.num_tokens() {
            return Err(AttentionError::ForeignPlan { what: "step" });
        }
        let width = work.heads * layer.layout().head_dim();
        q.check("q", work.tokens, width)?;
        check_rows("out", out.len(), out_stride, work.tokens, width)?;
        let out = out.as_mut_ptr();
        Ok(AttentionCall { isa, metadata, work, layer, scale, q, out, out_stride, borrowed: PhantomData })
    }

    /// How many items there are to run.
    #[must_use]
    pub fn num_items(&self) -> usize {
        self.work.len()
    }

    /// Runs one item: writes the output of some queries in the heads that share one key head. An index
    /// beyond the last item does nothing.
    ///
    /// # Safety
    ///
    /// The work list was planned from this very metadata, which has not changed since. The step's own K and
    /// V are stored already, and nobody writes a slot of these rows during the call. No other thread runs
    /// the same item at the same time.
    pub unsafe fn run_item(&self, index: usize, scratch: &mut AttentionScratch) {
        if let Some(item) = self.work.items.get(index) {
            // SAFETY: `new` has checked that the machine has `isa`; the caller promises the rest.
            unsafe { enter::enter(self.isa, item::RunItem { call: self, item, scratch }) };
        }
    }

    /// Runs all items on this thread.
    ///
    /// # Safety
    ///
    /// As [`run_item`](Self::run_item).
    pub unsafe fn run_all(&self, scratch: &mut AttentionScratch) {
        for index in 0..self.num_items() {
            // SAFETY: as the caller promises.
            unsafe { self.run_item(index, scratch) };
        }
    }
}
