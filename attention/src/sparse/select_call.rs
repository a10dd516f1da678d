//! The indexer of one layer in one step: which keys each query token attends to.

use super::TILE;
use super::candidates::Candidates;
use super::index_scores::IndexQuery;
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
use crate::token_rows::TokenRows;

/// Keys that are scored side by side: with 16 heads they fill the registers of AVX2.
const AT_ONCE: usize = 4;

/// What an indexer is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IndexShape {
    /// Heads; each has `keys.layout().width()` values.
    pub heads: usize,
    /// What the weights of the heads are multiplied with.
    pub scale: f32,
}

/// The working memory of a thread. It grows to the greatest item it has met.
#[derive(Debug, Default)]
pub struct SelectScratch {
    candidates: Candidates,
    q: Floats,
    weights: Floats,
    wide: Floats,
}

/// The selection of one layer: for each query token the keys of the greatest scores (see [`super::reference`]).
#[derive(Debug)]
pub struct SelectCall<'a> {
    isa: Isa,
    metadata: &'a AttentionMetadata,
    rows: &'a SparseRows,
    keys: VectorLayer,
    shape: IndexShape,
    q: TokenRows<'a>,
    weights: TokenRows<'a>,
    out: SelectionView<'a>,
}

impl<'a> SelectCall<'a> {
    /// A call for one layer. `rows` was planned from `metadata`; `q` has `heads * width` values a token row, rotated, and
    /// `weights` has `heads`. As many keys are chosen as a row of `out` has room for.
    ///
    /// # Errors
    ///
    /// [`AttentionError::ForeignPlan`], [`AttentionError::SmallBuffer`], [`AttentionError::Isa`].
    #[allow(clippy::too_many_arguments)] // they are the operands of one operation
    pub fn new(
        isa: Isa,
        metadata: &'a AttentionMetadata,
        rows: &'a SparseRows,
        keys: VectorLayer,
        shape: IndexShape,
        q: TokenRows<'a>,
        weights: TokenRows<'a>,
        out: SelectionView<'a>,
    ) -> Result<SelectCall<'a>, AttentionError> {
        let isa = isa.require()?;
        if rows.geometry() != Some((keys.layout().block_size(), keys.num_blocks())) {
            return Err(AttentionError::ForeignPlan { what: "cache layout" });
        }
        if rows.tokens() != metadata.num_tokens() {
            return Err(AttentionError::ForeignPlan { what: "step" });
        }
        q.check("index q", rows.tokens(), shape.heads * keys.layout().width())?;
        weights.check("index weights", rows.tokens(), shape.heads)?;
        if out.rows() < rows.tokens() || out.k() == 0 {
            let (found, needed) = (out.rows() * out.k(), rows.tokens().max(1));
            return Err(AttentionError::SmallBuffer { buffer: "selection", found, needed });
        }
        Ok(SelectCall { isa, metadata, rows, keys, shape, q, weights, out })
    }

    /// How many items there are to run.
    #[must_use]
    pub fn num_items(&self) -> usize {
        self.rows.rows().len()
    }

    /// Runs one item: chooses the keys of one query token. An index beyond the last does nothing.
    ///
    /// # Safety
    ///
    /// The rows were planned from this very metadata, unchanged since. The step's own keys are stored, and nobody writes a slot
    /// of these rows meanwhile. No other thread runs the same item, or uses its row of the selection, at the same time.
    pub unsafe fn run_item(&self, index: usize, scratch: &mut SelectScratch) {
        let Some(&row) = self.rows.rows().get(index) else { return };
        if row.visible as usize <= self.out.k() {
            // SAFETY: `new` has found that the row exists; it is this item's.
            unsafe {
                self.out.write(row.token as usize, 0..row.visible);
                self.out.write_scores(row.token as usize, std::iter::empty());
            }
            return;
        }
        self.isa.run(SelectRow { call: self, row, scratch });
    }
}

/// One query token that sees more keys than are chosen.
struct SelectRow<'a> {
    call: &'a SelectCall<'a>,
    row: SparseRow,
    scratch: &'a mut SelectScratch,
}

impl Kernel for SelectRow<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller has the features; the call was checked when it was made.
        unsafe {
            match self.call.keys.layout().dtype() {
                KvDtype::F32 => self.select::<L, F32>(),
                KvDtype::F16 => self.select::<L, F16>(),
                KvDtype::Bf16 => self.select::<L, Bf16>(),
            }
        }
    }
}

impl SelectRow<'_> {
    #[inline(always)]
    unsafe fn select<L: Lanes, E: Element>(self) {
        let SelectRow { call, row, scratch } = self;
        let layout = call.keys.layout();
        let stride = layout.stride();
        let query = call.query(row, &mut scratch.q, &mut scratch.weights);
        let wide = scratch.wide.reserve(AT_ONCE * stride);
        let table = call.metadata.block_tables.get(row.row as usize).unwrap_or(&[]);
        let visible = row.visible as usize;
        scratch.candidates.begin(call.out.k());
        let mut scores = [0.0; TILE];
        for start in (0..visible).step_by(TILE) {
            let count = (visible - start).min(TILE);
            // SAFETY: the row's table reaches `visible`, as the plan has found; there is room for the vectors of four keys.
            unsafe {
                let key = |j: usize| {
                    let stored = call.keys.at(table, start + j);
                    widened::<L, E>(stored, stride / LANES, wide.add(j % AT_ONCE * stride))
                };
                let mut j = 0;
                while j + AT_ONCE <= count {
                    let keys = [key(j), key(j + 1), key(j + 2), key(j + 3)];
                    scores[j..j + AT_ONCE].copy_from_slice(&query.scores::<L, AT_ONCE>(&keys));
                    j += AT_ONCE;
                }
                while j < count {
                    scores[j] = query.scores::<L, 1>(&[key(j)])[0];
                    j += 1;
                }
            }
            scratch.candidates.push(start as u32, &scores[..count]);
        }
        // SAFETY: `SelectCall::new` has found that the row exists; it is this item's.
        unsafe {
            call.out.write(row.token as usize, scratch.candidates.finish());
            if call.out.keeps_scores() {
                call.out.write_scores(row.token as usize, scratch.candidates.scores());
            }
        }
    }
}

impl SelectCall<'_> {
    /// Lays a query out by value, then head.
    fn query(&self, row: SparseRow, q: &mut Floats, weights: &mut Floats) -> IndexQuery {
        let (heads, dim) = (self.shape.heads, self.keys.layout().width());
        let padded = heads.next_multiple_of(LANES);
        let (q, weights) = (q.reserve(dim * padded), weights.reserve(padded));
        let token = row.token as usize;
        // SAFETY: `new` has found that q and weights have the row; there is room for the padded shapes.
        unsafe {
            let (from, own) = (self.q.row(token), self.weights.row(token));
            for h in 0..padded {
                *weights.add(h) = if h < heads { self.shape.scale * *own.add(h) } else { 0.0 };
                for d in 0..dim {
                    *q.add(d * padded + h) = if h < heads { *from.add(h * dim + d) } else { 0.0 };
                }
            }
        }
        IndexQuery { q, weights, heads: padded, dim }
    }
}
