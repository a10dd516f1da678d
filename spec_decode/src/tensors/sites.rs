//! Which events a place in a layer gives.

use std::sync::Arc;

use pagedraft_model::{Columns, Device, Observer, Ran, Site, StepInputs};
use pagedraft_scheduler::{KvView, StepPlan};

use super::event::{Fact, TensorEvent, TracedTensor};
use super::rows::{Rotated, TracedRow};
use super::tracer::{TensorTracer, shape_of};
use crate::error::ExecuteError;
use crate::executor::ModelExecutor;

/// A place that is being looked at.
#[derive(Debug, Default)]
pub(super) struct Seen {
    site: Option<(Site, Option<u16>)>,
    /// For each row, its part of each tensor so far, with the tensor's shape in heads.
    tensors: Vec<Vec<(TracedTensor, Vec<usize>)>>,
}

impl<D: Device> ModelExecutor<D> {
    /// Runs a segment operation by operation, and lets the tracer look.
    pub(crate) fn trace_segment(
        &mut self,
        segment: usize,
        plan: &StepPlan,
        kv: &dyn KvView,
        inputs: &StepInputs,
    ) -> Result<Ran, ExecuteError> {
        let rows = self.traced_rows(segment, plan, kv);
        let Some(tracer) = &mut self.tensors else {
            return Ok(self.runner.forward_segment(segment, inputs)?);
        };
        tracer.rows = rows;
        Ok(self.runner.forward_observed(segment, inputs, tracer)?)
    }
}

impl Observer for TensorTracer {
    fn wants(&mut self, site: Site, layer: Option<u16>) -> bool {
        let of_the_cache = matches!(site, Site::KvBefore | Site::KvAfter);
        self.seen.site = Some((site, layer));
        self.seen.tensors.clear();
        self.seen.tensors.resize_with(self.rows.len(), Vec::new);
        self.has_layer(layer) && (!of_the_cache || self.rows.iter().any(|row| row.has_past))
    }

    fn tensor(&mut self, name: &'static str, values: Columns<'_>) {
        let in_heads = matches!(self.seen.site, Some((Site::Rotations | Site::KvBefore | Site::KvAfter, _)));
        // A slot that tokens are appended to holds nothing that means anything; one of a canvas holds what is replaced.
        let means = !matches!(self.seen.site, Some((Site::KvBefore, _)));
        let mut seen = std::mem::take(&mut self.seen.tensors);
        for (row, seen) in self.rows.iter().zip(&mut seen) {
            let (count, rows) = (row.rows.len(), row.rows.clone().map(|r| values.row(r)));
            let shape = shape_of(&values, count, in_heads);
            let tensor = if means || row.pass.is_some() {
                self.traced(name, shape, values.dtype, rows)
            } else {
                TracedTensor { name, shape, stats: None, values: Vec::new() }
            };
            seen.push((tensor, shape_of(&values, count, true)));
        }
        self.seen.tensors = seen;
    }

    fn done(&mut self) {
        let Some((site, layer)) = self.seen.site.take() else { return };
        let rows = std::mem::take(&mut self.rows);
        for (row, seen) in rows.iter().zip(std::mem::take(&mut self.seen.tensors)) {
            let of_the_cache = matches!(site, Site::KvBefore | Site::KvAfter);
            if !of_the_cache || row.has_past {
                Written { tracer: self, row, layer }.site(site, seen);
            }
        }
        self.rows = rows;
    }
}

/// Writes the events of a row at a place.
struct Written<'a> {
    tracer: &'a mut TensorTracer,
    row: &'a TracedRow,
    layer: Option<u16>,
}

impl Written<'_> {
    fn site(&mut self, site: Site, seen: Vec<(TracedTensor, Vec<usize>)>) {
        let (tensors, in_heads): (Vec<_>, Vec<_>) = seen.into_iter().unzip();
        let shape = |i: usize| in_heads.get(i).cloned().unwrap_or_default();
        // A latent is rotated without queries beside it.
        let q_and_k = || if in_heads.len() > 1 { (shape(0), shape(1)) } else { (Vec::new(), shape(0)) };
        match site {
            Site::Embedding => self.push("MODEL_FWD_ENTRY", tensors),
            Site::Projections => {
                self.push("ATTN_ENTRY", tensors);
                let (q, k) = q_and_k();
                let shapes = [("q", q.clone()), ("k", k.clone()), ("v", shape(2))];
                self.shapes("ATTN_AFTER_RESHAPE", shapes.into_iter());
                self.rotates(q, k);
            }
            Site::KvBefore => self.push("KV_CACHE_BEFORE", tensors),
            Site::Rotations => {
                let (q, k) = q_and_k();
                self.rotated(tensors, q, k);
            }
            Site::KvAfter => {
                let count = self.row.positions.len();
                let inserted = [("replace_indices", vec![count]), ("k_to_insert", shape(0))];
                self.shapes("KV_CACHE_UPDATE", inserted.into_iter());
                self.push("KV_CACHE_AFTER_REPLACE", tensors);
            }
            Site::IndexKeys => self.push("INDEX_KEYS", tensors),
            Site::Attention => self.push("ATTN_OUTPUT", tensors),
            Site::LayerOutput => self.push("LAYER_OUTPUT", tensors),
        }
    }

    /// What is about to be rotated, and by which positions.
    fn rotates(&mut self, q: Vec<usize>, k: Vec<usize>) {
        let count = self.row.positions.len();
        if self.row.rotated == Rotated::List {
            let ids = Fact::Counts(self.row.positions.to_vec());
            self.says("ATTN_POSITION_IDS", vec![("position_ids", vec![count])], vec![("position_ids", ids)]);
        }
        let before = match self.row.rotated {
            Rotated::Piece => "ROPE_BASELINE_BEFORE",
            Rotated::Block => "ROPE_REPLACE_BEFORE",
            Rotated::List => "ROPE_BEFORE_TOKENSKIP",
        };
        self.shapes(before, [("q_before", q), ("k_before", k)].into_iter());
    }

    /// What was rotated.
    fn rotated(&mut self, tensors: Vec<TracedTensor>, q: Vec<usize>, k: Vec<usize>) {
        let positions = &self.row.positions;
        let (first, last) = (positions.first().copied().unwrap_or(0), positions.last().copied().unwrap_or(0));
        let spans =
            vec![("first_position", Fact::Count(first.into())), ("last_position", Fact::Count(last.into()))];
        let count = positions.len();
        self.shapes("ROPE_FWD_ENTRY", [("q", q.clone()), ("k", k.clone())].into_iter());
        let after = match self.row.rotated {
            Rotated::List => {
                self.says("ROPE_TOKENSKIP_PARAMS", vec![("position_ids", vec![count])], spans);
                self.shapes("ROPE_INDEX_SELECT", [("idx", vec![count])].into_iter());
                self.push("ROPE_TOKENSKIP_RESULT", tensors);
                "ROPE_AFTER_TOKENSKIP"
            }
            way => {
                self.says("ROPE_BASELINE_PARAMS", Vec::new(), spans);
                self.push("ROPE_BASELINE_RESULT", tensors);
                if way == Rotated::Block { "ROPE_REPLACE_AFTER" } else { "ROPE_BASELINE_AFTER" }
            }
        };
        self.shapes(after, [("q_after", q), ("k_after", k)].into_iter());
    }

    fn push(&mut self, event: &'static str, tensors: Vec<TracedTensor>) {
        self.event(event, Arc::clone(&self.row.positions), tensors, Vec::new());
    }

    /// An event that repeats tensors of another one: only their shapes are written.
    fn shapes(&mut self, event: &'static str, shapes: impl Iterator<Item = (&'static str, Vec<usize>)>) {
        self.says(event, shapes.collect(), Vec::new());
    }

    fn says(
        &mut self,
        event: &'static str,
        shapes: Vec<(&'static str, Vec<usize>)>,
        facts: Vec<(&'static str, Fact)>,
    ) {
        let shapes = shapes.into_iter().filter(|(_, shape)| !shape.is_empty());
        let tensor = |(name, shape)| TracedTensor { name, shape, stats: None, values: Vec::new() };
        self.event(event, Arc::default(), shapes.map(tensor).collect(), facts);
    }

    fn event(
        &mut self,
        event: &'static str,
        positions: Arc<[u32]>,
        tensors: Vec<TracedTensor>,
        facts: Vec<(&'static str, Fact)>,
    ) {
        let TracedRow { plan_row, request, pass, .. } = *self.row;
        let layer = self.layer;
        self.tracer.push(TensorEvent { event, layer, request, plan_row, pass, positions, tensors, facts });
    }
}
