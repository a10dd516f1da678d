//! The forward pass, one operation at a time, with somebody who looks at its tensors.

use std::slice;

use super::Runner;
use crate::device::{Device, Op};
use crate::dsa::SparseOp;
use crate::error::ModelError;
use crate::graph::Ran;
use crate::kv::{KvRef, KvRows};
use crate::observe::{Columns, Observer, Site};
use crate::step_inputs::StepInputs;

/// Names of the two halves of what a KV cache holds.
type Names = (&'static str, &'static str);

impl<D: Device> Runner<D> {
    /// [`forward_segment`](Self::forward_segment), but operation by operation whatever was captured, while `observer` looks at the
    /// tensors. The bits are the same.
    ///
    /// # Errors
    ///
    /// Those of [`forward_segment`](Self::forward_segment), or a device that does not tell what its KV cache holds.
    pub fn forward_observed(
        &mut self,
        segment: usize,
        inputs: &StepInputs,
        observer: &mut dyn Observer,
    ) -> Result<Ran, ModelError> {
        self.bind_eager(segment, inputs)?;
        let ops = std::mem::take(&mut self.ops);
        let looked = self.run_observed(&ops, inputs, observer);
        self.ops = ops;
        looked?;
        self.counts.add(self.ran);
        Ok(self.ran)
    }

    fn run_observed(
        &mut self,
        ops: &[Op<D::Buf>],
        inputs: &StepInputs,
        observer: &mut dyn Observer,
    ) -> Result<(), ModelError> {
        let mut layer = None;
        let mut stored = KvRows::default();
        for op in ops {
            let kv = written(op);
            if let Some(kv) = kv.filter(|kv| layer != Some(kv.layer)) {
                self.show_output(layer.replace(kv.layer), observer)?;
            }
            if let Some(kv) = kv {
                self.show_projections(op, kv, observer)?;
                self.show_kv((Site::KvBefore, ("past_k", "past_v")), kv, inputs, &mut stored, observer)?;
            }
            let start = std::time::Instant::now();
            self.device.run(slice::from_ref(op))?;
            self.clock(start);
            self.counts.observed += 1;
            self.show_result(op, observer)?;
            if let Some(kv) = kv {
                self.show_kv((Site::KvAfter, ("k_final", "v_final")), kv, inputs, &mut stored, observer)?;
            }
        }
        self.show_output(layer, observer)
    }

    /// Shows what an operation that writes the KV cache is given.
    fn show_projections(
        &mut self,
        op: &Op<D::Buf>,
        kv: KvRef,
        observer: &mut dyn Observer,
    ) -> Result<(), ModelError> {
        if !observer.wants(Site::Projections, Some(kv.layer)) {
            return Ok(());
        }
        match *op {
            Op::RopeAndCache { qkv, rows, .. } => {
                let (heads, kv_heads, dim) = self.heads();
                let (q, k) = (heads * dim, kv_heads * dim);
                let (data, width) = rows_of(&mut self.device, qkv, rows)?;
                observer.tensor("q_in", Columns::new(data, width, (0, q), heads));
                observer.tensor("k_in", Columns::new(data, width, (q, k), kv_heads));
                observer.tensor("v_in", Columns::new(data, width, (q + k, k), kv_heads));
            }
            Op::Sparse(SparseOp::CacheLatents { x, rows, .. }) => {
                show_all(&mut self.device, "latent_in", x, rows, observer)?;
            }
            _ => {}
        }
        observer.done();
        Ok(())
    }

    /// Shows what an operation has computed.
    fn show_result(&mut self, op: &Op<D::Buf>, observer: &mut dyn Observer) -> Result<(), ModelError> {
        let (site, layer) = match op {
            Op::Embed { .. } => (Site::Embedding, None),
            Op::RopeAndCache { kv, .. } | Op::Sparse(SparseOp::CacheLatents { kv, .. }) => {
                (Site::Rotations, Some(kv.layer))
            }
            Op::Sparse(SparseOp::CacheIndexKeys { kv, .. }) => (Site::IndexKeys, Some(kv.layer)),
            Op::Attention { kv, .. } | Op::Sparse(SparseOp::Attend { kv, .. }) => {
                (Site::Attention, Some(kv.layer))
            }
            _ => return Ok(()),
        };
        if !observer.wants(site, layer) {
            return Ok(());
        }
        let (heads, kv_heads, dim) = self.heads();
        let device = &mut self.device;
        match *op {
            Op::Embed { out, rows, .. } => show_all(device, "x", out, rows, observer)?,
            Op::RopeAndCache { qkv, q, rows, .. } => {
                let (data, width) = rows_of(device, q, rows)?;
                observer.tensor("q_out", Columns::new(data, width, (0, heads * dim), heads));
                let (data, width) = rows_of(device, qkv, rows)?;
                let columns = (heads * dim, kv_heads * dim);
                observer.tensor("k_out", Columns::new(data, width, columns, kv_heads));
            }
            Op::Sparse(SparseOp::CacheLatents { x, rows, .. }) => {
                show_all(device, "latent_out", x, rows, observer)?;
            }
            Op::Sparse(SparseOp::CacheIndexKeys { x, rows, .. }) => {
                show_all(device, "index_k", x, rows, observer)?;
            }
            Op::Attention { out, rows, .. } => show_all(device, "attended", out, rows, observer)?,
            Op::Sparse(SparseOp::Attend { absorbed, out, rows, .. }) => {
                show_all(device, "q_absorbed", absorbed, rows, observer)?;
                show_all(device, "attended", out, rows, observer)?;
            }
            _ => {}
        }
        observer.done();
        Ok(())
    }

    /// Shows what the KV cache holds in the slots of the segment's token rows.
    fn show_kv(
        &mut self,
        (site, (keys, values)): (Site, Names),
        kv: KvRef,
        inputs: &StepInputs,
        stored: &mut KvRows,
        observer: &mut dyn Observer,
    ) -> Result<(), ModelError> {
        if !observer.wants(site, Some(kv.layer)) {
            return Ok(());
        }
        let slots = &inputs.group(usize::from(kv.group.0)).slot_mapping;
        self.device.read_kv(kv, slots, stored)?;
        let halves = [(keys, &stored.keys, stored.key_width), (values, &stored.values, stored.value_width)];
        for (name, data, width) in halves.into_iter().filter(|(.., width)| *width > 0) {
            let mut columns = Columns::new(data, width, (0, width), stored.heads);
            columns.dtype = stored.dtype;
            observer.tensor(name, columns);
        }
        observer.done();
        Ok(())
    }

    /// Shows the residual stream behind a layer.
    fn show_output(&mut self, layer: Option<u16>, observer: &mut dyn Observer) -> Result<(), ModelError> {
        if layer.is_none() || !observer.wants(Site::LayerOutput, layer) {
            return Ok(());
        }
        show_all(&mut self.device, "x", self.model.residual(), self.rows, observer)?;
        observer.done();
        Ok(())
    }

    /// Query heads, key heads, and the values of each.
    fn heads(&self) -> (usize, usize, usize) {
        let config = self.model.config();
        (config.num_heads, config.num_kv_heads, config.head_dim)
    }
}

/// The keys and values, or latents, that an operation writes. It is the first one of its layer that names the layer.
fn written<B>(op: &Op<B>) -> Option<KvRef> {
    match op {
        Op::RopeAndCache { kv, .. } | Op::Sparse(SparseOp::CacheLatents { kv, .. }) => Some(*kv),
        _ => None,
    }
}

/// The first `rows` rows of a buffer, and how many values each has.
fn rows_of<D: Device>(device: &mut D, buffer: D::Buf, rows: usize) -> Result<(&[f32], usize), ModelError> {
    let data = device.read(buffer, rows)?;
    Ok((data, data.len() / rows.max(1)))
}

fn show_all<D: Device>(
    device: &mut D,
    name: &'static str,
    buffer: D::Buf,
    rows: usize,
    observer: &mut dyn Observer,
) -> Result<(), ModelError> {
    let (data, width) = rows_of(device, buffer, rows)?;
    observer.tensor(name, Columns::new(data, width, (0, width), 1));
    Ok(())
}
