//! The indexer of one layer in one step: which keys each query token attends to.

use super::TILE;
use super::candidates::Candidates;
use super::fp8::{hadamard, scale_of, to_e4m3};
use super::index_scores::IndexQuery;
use super::rows::{RUN, SparseRow, SparseRows};
use super::selection::SelectionView;
use super::vector_layer::{VectorDtype, VectorLayer, widened};
use crate::error::AttentionError;
use crate::isa::{Isa, Kernel};
use crate::kernel::element::{Bf16, E4m3, Element, F16, F32};
use crate::kernel::scratch::Floats;
use crate::kv_layout::KvDtype;
use crate::lanes::{LANES, LINE, Lanes, e4m3};
use crate::metadata::AttentionMetadata;
use crate::token_rows::TokenRows;
use std::ops::Range;

/// What an indexer is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IndexShape {
    /// Heads; each has `keys.layout().width()` values.
    pub heads: usize,
    /// What the weights of the heads are multiplied with.
    pub scale: f32,
    /// Whether queries are [transformed](super::fp8::hadamard) before they meet keys, which were before they were stored. A
    /// head's values are then a power of two.
    pub hadamard: bool,
}

/// So many keys are worth being shared by threads.
const WORTH_SHARING: usize = 2 * TILE;

/// The working memory of a thread. It grows to the greatest item it has met.
#[derive(Debug, Default)]
pub struct SelectScratch {
    /// Of each row of a run.
    rows: [RowScratch; RUN],
    wide: Floats,
}

#[derive(Debug, Default)]
struct RowScratch {
    candidates: Candidates,
    q: Floats,
    weights: Floats,
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
        if shape.hadamard && !keys.layout().width().is_power_of_two() {
            let head_dim = keys.layout().width();
            return Err(AttentionError::Shape { heads: shape.heads, kv_heads: 1, head_dim });
        }
        q.check("index q", rows.tokens(), shape.heads * keys.layout().width())?;
        weights.check("index weights", rows.tokens(), shape.heads)?;
        if out.rows() < rows.tokens() || out.k() == 0 {
            let (found, needed) = (out.rows() * out.k(), rows.tokens().max(1));
            return Err(AttentionError::SmallBuffer { buffer: "selection", found, needed });
        }
        Ok(SelectCall { isa, metadata, rows, keys, shape, q, weights, out })
    }

    /// How many items there are to run: one for each run of query tokens.
    #[must_use]
    pub fn num_items(&self) -> usize {
        self.rows.num_runs()
    }

    /// Whether the keys of a row are scored. One that sees no more keys than are chosen takes them all, and needs scores only where
    /// they are kept.
    fn scores(&self, row: &SparseRow) -> bool {
        row.visible as usize > self.out.k() || self.out.keeps_scores()
    }

    /// Runs one item: chooses the keys of some query tokens of one sequence. An index beyond the last does nothing.
    ///
    /// # Safety
    ///
    /// The rows were planned from this very metadata, unchanged since. The step's own keys are stored, and nobody writes a slot
    /// of these rows meanwhile. No other thread runs the same item, or uses its rows of the selection, at the same time.
    pub unsafe fn run_item(&self, index: usize, scratch: &mut SelectScratch) {
        // SAFETY: as the caller promises.
        unsafe {
            self.run_part(index, (0, 1), scratch);
            self.join(index, scratch, &[]);
        }
    }

    /// Into how many parts threads had better cut each item: 1, unless there are fewer items than `threads` and many keys.
    #[must_use]
    pub fn parts(&self, threads: usize) -> usize {
        let longest = self.rows.rows().iter().map(|row| row.visible as usize).max().unwrap_or(0);
        let items = self.num_items();
        let scored = longest > self.out.k() || self.out.keeps_scores();
        let long = scored && longest >= WORTH_SHARING;
        if long && items < threads { threads.div_ceil(items.max(1)) } else { 1 }
    }

    /// Scores the keys of one of some parts (which, of how many) of an item, and keeps the best in `scratch`. Where a step has
    /// fewer items than there are threads, threads take parts; then [`join`](Self::join) ends the item. The choice does not
    /// depend on the parts.
    ///
    /// # Safety
    ///
    /// As [`run_item`](Self::run_item), but other threads may run other parts.
    pub unsafe fn run_part(&self, index: usize, (part, parts): (usize, usize), scratch: &mut SelectScratch) {
        // Rows that are not scored come first, for visible keys do not decrease.
        let rows = self.rows.run(index);
        let all = rows.iter().take_while(|row| !self.scores(row)).count();
        let Some(last) = rows[all..].last() else { return };
        let tiles = (last.visible as usize).div_ceil(TILE);
        let tiles = part * tiles / parts.max(1)..(part + 1) * tiles / parts.max(1);
        self.isa.run(ScoreRows { call: self, rows: &rows[all..], tiles, scratch });
    }

    /// Ends an item whose parts were run: writes what was chosen. `first` is the memory of the first part, `others` are those of
    /// the others, in their order.
    ///
    /// # Safety
    ///
    /// As [`run_item`](Self::run_item). The parts were run, and nobody changed their memory since.
    pub unsafe fn join(&self, index: usize, first: &mut SelectScratch, others: &[&SelectScratch]) {
        let mut scored = 0;
        for row in self.rows.run(index) {
            let token = row.token as usize;
            if !self.scores(row) {
                // SAFETY: `new` has found that the row exists; it is this item's.
                unsafe { self.out.write(token, 0..row.visible) };
                continue;
            }
            let candidates = &mut first.rows[scored].candidates;
            others.iter().for_each(|other| candidates.append(&other.rows[scored].candidates));
            // SAFETY: as above.
            unsafe {
                self.out.write(token, candidates.finish());
                if self.out.keeps_scores() {
                    self.out.write_scores(token, candidates.scores());
                }
            }
            scored += 1;
        }
    }
}

/// Some query tokens of one sequence against some tiles of its keys.
struct ScoreRows<'a> {
    call: &'a SelectCall<'a>,
    rows: &'a [SparseRow],
    tiles: Range<usize>,
    scratch: &'a mut SelectScratch,
}

impl Kernel for ScoreRows<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller has the features; the call was checked when it was made.
        unsafe {
            match self.call.keys.layout().dtype() {
                VectorDtype::Plain(KvDtype::F32) => self.score::<L, F32>(),
                VectorDtype::Plain(KvDtype::F16) => self.score::<L, F16>(),
                VectorDtype::Plain(KvDtype::Bf16) => self.score::<L, Bf16>(),
                VectorDtype::Fp8 { .. } => self.score::<L, E4m3>(),
            }
        }
    }
}

impl ScoreRows<'_> {
    #[inline(always)]
    unsafe fn score<L: Lanes, E: Element>(self) {
        let ScoreRows { call, rows, tiles, scratch } = self;
        let stride = call.keys.layout().stride();
        let (first, last) = (&rows[0], &rows[rows.len() - 1]);
        let table = call.metadata.block_tables.get(first.row as usize).unwrap_or(&[]);
        let wide = scratch.wide.reserve(TILE * stride);
        let mut queries = [IndexQuery::NONE; RUN];
        for ((row, scratch), query) in rows.iter().zip(&mut scratch.rows).zip(&mut queries) {
            *query = call.query(*row, &mut scratch.q, &mut scratch.weights);
            scratch.candidates.begin(call.out.k());
        }
        let (mut keys, mut scores, mut scales) = ([std::ptr::null(); TILE], [0.0; TILE], [1.0; TILE]);
        let (mut next, lines) = ([std::ptr::null(); TILE], call.keys.layout().token_bytes().div_ceil(LINE));
        for tile in tiles {
            let start = tile * TILE;
            let seen = |row: &SparseRow| (row.visible as usize).saturating_sub(start).min(TILE);
            for (j, (key, scale)) in keys[..seen(last)].iter_mut().zip(&mut scales).enumerate() {
                let stored = call.keys.at(table, start + j);
                // SAFETY: the rows' table reaches what the last one sees, as the plan has found; there is room for a tile.
                unsafe {
                    *scale = call.keys.scale_at(stored);
                    *key = widened::<L, E>(stored, 0..stride / LANES, wide.add(j * stride));
                }
            }
            let ahead = (last.visible as usize).saturating_sub(start + TILE).min(TILE);
            for (j, next) in next[..ahead].iter_mut().enumerate() {
                *next = call.keys.at(table, start + TILE + j);
            }
            // The keys of the next tile are fetched while the first row is scored.
            let mut ahead = &next[..ahead];
            for ((row, query), scratch) in rows.iter().zip(&queries).zip(&mut scratch.rows) {
                let count = seen(row);
                // SAFETY: the keys were just widened.
                unsafe {
                    query.score_all::<L>(&keys[..count], (ahead, lines), &mut scores);
                    if size_of::<E::Raw>() == 1 {
                        scores.iter_mut().zip(&scales).for_each(|(score, scale)| *score *= scale);
                    }
                    scratch.candidates.take_in::<L>(start as u32, &scores[..count]);
                }
                ahead = &[];
            }
        }
    }
}

impl SelectCall<'_> {
    /// Lays a query out by value, then head. Where keys are in fp8, each head is too, and its scale goes into its weight.
    fn query(&self, row: SparseRow, q: &mut Floats, weights: &mut Floats) -> IndexQuery {
        let (heads, dim) = (self.shape.heads, self.keys.layout().width());
        let padded = heads.next_multiple_of(LANES);
        // Behind the query there is room for one head.
        let (q, weights) = (q.reserve(dim * (padded + 1)), weights.reserve(padded));
        let token = row.token as usize;
        // SAFETY: `new` has found that q and weights have the row; there is room for the padded shapes and a head.
        unsafe {
            std::slice::from_raw_parts_mut(q, dim * padded).fill(0.0);
            std::slice::from_raw_parts_mut(weights, padded).fill(0.0);
            let head = std::slice::from_raw_parts_mut(q.add(dim * padded), dim);
            let (from, own) = (self.q.row(token), self.weights.row(token));
            for h in 0..heads {
                head.copy_from_slice(std::slice::from_raw_parts(from.add(h * dim), dim));
                if self.shape.hadamard {
                    hadamard(head);
                }
                let mut weight = self.shape.scale * *own.add(h);
                if let VectorDtype::Fp8 { power_of_two } = self.keys.layout().dtype() {
                    let scale = scale_of(head, power_of_two);
                    head.iter_mut().for_each(|x| *x = e4m3(to_e4m3(*x / scale)));
                    weight *= scale;
                }
                *weights.add(h) = weight;
                for (d, &value) in head.iter().enumerate() {
                    *q.add(d * padded + h) = value;
                }
            }
        }
        IndexQuery { q, weights, heads: padded, dim }
    }
}
