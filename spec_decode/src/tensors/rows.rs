//! The rows of a segment whose tensors are looked at.

use std::ops::Range;
use std::sync::Arc;

use pagedraft_model::Device;
use pagedraft_scheduler::{Kind, KvView, RequestKey, StepPlan};

use crate::executor::ModelExecutor;

/// By which positions the queries and keys of a row are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rotated {
    /// By those of a piece of a sequence.
    Piece,
    /// By those of a block whose keys and values are replaced in the cache.
    Block,
    /// By a list of positions, because some tokens of the block may have skipped the layer.
    List,
}

/// A plan row that runs in a segment.
#[derive(Clone, Debug)]
pub(super) struct TracedRow {
    pub plan_row: u32,
    pub request: RequestKey,
    /// Its token rows.
    pub rows: Range<usize>,
    /// The positions in the sequence of these rows.
    pub positions: Arc<[u32]>,
    /// Whether keys and values of the sequence are in the cache already, which these rows replace or are added to.
    pub has_past: bool,
    pub rotated: Rotated,
    /// The block of its canvas and the pass over this block, if it has a canvas.
    pub pass: Option<(u32, u32)>,
}

impl<D: Device> ModelExecutor<D> {
    /// The plan rows of a segment, in the order in which they run.
    pub(super) fn traced_rows(&self, segment: usize, plan: &StepPlan, kv: &dyn KvView) -> Vec<TracedRow> {
        let from = self.sources(plan, kv);
        let (here, groups) = (&self.rows[segment], &self.segments[segment].groups);
        let traced = |&i: &u32| {
            let row = &plan.rows[i as usize];
            let count = here.known[i as usize] as usize + from.drafts_of(i as usize).len();
            let start = here.starts[i as usize] as usize;
            let canvas = self.canvases.get(row.request);
            let active = canvas.and_then(|canvas| canvas.active()).filter(|_| segment > 0);
            let listed = active.is_some() && canvas.is_some_and(|canvas| canvas.was_compared());
            let positions = match active {
                Some(active) => active.to_vec(),
                None => from.positions(row, segment as u16, count as u32),
            };
            let (rotated, has_past) = match row.kind {
                Kind::Denoise { .. } if listed => (Rotated::List, true),
                Kind::Denoise { full: false, .. } => (Rotated::Block, true),
                Kind::Denoise { .. } => (Rotated::Piece, false),
                _ => (Rotated::Piece, from.has_past(row, segment as u16, groups.first().copied())),
            };
            TracedRow {
                plan_row: i,
                request: row.request,
                rows: start..start + count,
                positions: Arc::from(positions),
                has_past,
                rotated,
                pass: canvas.map(|canvas| canvas.pass()),
            }
        };
        here.order.iter().map(traced).collect()
    }
}
