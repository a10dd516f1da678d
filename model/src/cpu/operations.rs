//! The operations of a step on the CPU.
//!
//! Each operation runs on all threads of the team. A row of a result is computed by one fixed sequence of
//! instructions, whichever thread computes it and whatever the other rows are.

use std::sync::atomic::{AtomicUsize, Ordering};

use pagedraft_attention::TokenRows;
use pagedraft_attention::kernel::AttentionCall;

use super::device::CpuDevice;
use crate::cpu::buffer::{Buffer, Rows, RowsMut};
use crate::cpu::matmul::{Epilogue, OutRows, Product};
use crate::cpu::rowwise;
use crate::device::{BufferId, Op, WriteMode};
use crate::error::ModelError;
use crate::kv::KvRef;

/// The direction in which rows are copied.
#[derive(Clone, Copy)]
enum Way {
    /// From the buffer into the slots.
    Hold,
    /// From the slots into the buffer.
    Fetch,
}

impl CpuDevice {
    pub(super) fn buffer(&self, buf: BufferId) -> &Buffer {
        &self.buffers[buf.index()]
    }

    /// The rows of a buffer, for reading.
    pub(super) fn rows(&self, buf: BufferId) -> Rows<'_> {
        self.buffer(buf).activations().rows()
    }

    /// Runs `each` for every row, the rows split among the threads; a step of few rows stays on this one.
    pub(super) fn for_rows(&self, rows: usize, cost: usize, each: impl Fn(usize) + Sync) {
        // Waking the team costs about as much as some thousand elements.
        if rows < 2 || rows * cost < 8 * 1024 {
            (0..rows).for_each(each);
            return;
        }
        self.team.run(&|worker, workers| {
            let share = rows.div_ceil(workers);
            (worker * share..rows.min((worker + 1) * share)).for_each(&each);
        });
    }

    /// Runs one operation on all threads.
    pub(super) fn run_op(&mut self, op: &Op<BufferId>) -> Result<(), ModelError> {
        match *op {
            Op::Embed { table, out, rows } => {
                let (table, tokens) = (self.buffer(table).table(), &self.inputs.tokens);
                let out = self.rows_mut(out);
                for (r, &token) in tokens.iter().enumerate().take(rows) {
                    // SAFETY: only this thread writes rows.
                    table.read(token as usize, unsafe { out.row(r) });
                }
            }
            Op::RmsNorm { x, weight, out, eps, rows } => {
                let (x, weight, out) = (self.rows(x), self.buffer(weight).vector(), self.rows_mut(out));
                self.for_rows(rows, x.width(), |r| {
                    // SAFETY: each row is written by one thread.
                    rowwise::rms_norm(self.isa, x.row(r), weight, eps, unsafe { out.row(r) });
                });
            }
            Op::MatMul { x, matrix, bias, out, into, rows } => {
                let w = self.buffers[matrix.index()].matrix();
                let x = self.buffers[x.index()].activations().rows();
                self.packed.pack(&self.team, self.isa, w.inputs(), x.data(), rows, w.k(), x.width())?;
                let bias = bias.map(|b| self.buffer(b).vector());
                let epilogue = match into {
                    WriteMode::Store => Epilogue::Store,
                    WriteMode::Add => Epilogue::Add,
                };
                let out = self.rows_mut(out);
                // SAFETY: the product is the only one that touches `out`.
                let out = OutRows::new(unsafe { out.all() }, rows, w.n(), out.width());
                let product =
                    Product::new(self.team.members(), self.isa, &self.packed, w, bias, out, epilogue);
                self.team.run(&|_, _| product.work());
            }
            Op::RopeAndCache { qkv, qk_norm, rope, q, kv, rows } => {
                self.rope_and_cache(qkv, qk_norm, rope, q, kv, rows)?;
            }
            Op::Attention { q, out, kv, scale, rows } => self.attend(q, out, kv, scale, rows)?,
            Op::SwiGlu { x, out, rows } => {
                let (x, out) = (self.rows(x), self.rows_mut(out));
                // Splitting a row among threads would not balance better, because decode steps have several
                // rows.
                self.for_rows(rows, x.width(), |r| {
                    let (gate, up) = x.row(r).split_at(x.width() / 2);
                    // SAFETY: each row is written by one thread.
                    rowwise::swiglu(self.isa, gate, up, unsafe { out.row(r) });
                });
            }
            Op::Gather { x, out, rows } => {
                if self.selection.len() < rows {
                    let what = format!("{} rows are selected, and {rows} are gathered", self.selection.len());
                    return Err(ModelError::BadInputs { what });
                }
                let (x, out) = (self.rows(x), self.rows_mut(out));
                for (r, &from) in self.selection.iter().enumerate().take(rows) {
                    // SAFETY: only this thread writes rows.
                    unsafe { out.row(r) }.copy_from_slice(x.row(from as usize));
                }
            }
            Op::Copy { x, out, rows } => {
                let (x, out) = (self.rows(x), self.rows_mut(out));
                for r in 0..rows {
                    // SAFETY: only this thread writes rows.
                    unsafe { out.row(r) }.copy_from_slice(x.row(r));
                }
            }
            Op::Hold { x, kv, rows } => self.hold_or_fetch(x, kv, rows, Way::Hold)?,
            Op::Fetch { x, kv, rows } => self.hold_or_fetch(x, kv, rows, Way::Fetch)?,
            Op::Sparse(op) => self.run_sparse(op)?,
        }
        Ok(())
    }

    pub(super) fn rows_mut(&self, buf: BufferId) -> RowsMut {
        self.buffer(buf).activations().rows_mut()
    }

    fn rope_and_cache(
        &self,
        qkv: BufferId,
        qk_norm: Option<(BufferId, BufferId, f32)>,
        rope: BufferId,
        q: BufferId,
        kv: KvRef,
        rows: usize,
    ) -> Result<(), ModelError> {
        let (layer, heads) = self.kv.heads(kv)?;
        let slots = self.slots(kv, rows)?;
        let d = layer.layout().head_dim();
        let (q_width, kv_width) = (heads * d, layer.layout().kv_heads() * d);
        let (rows_mut, q_out) = (self.rows_mut(qkv), self.rows_mut(q));
        let rope = self.buffer(rope).vector();
        let norms = qk_norm.map(|(q, k, eps)| (self.buffer(q).vector(), self.buffer(k).vector(), eps));
        self.for_rows(rows, q_width + kv_width, |r| {
            let position = self.inputs.positions[r] as usize;
            let (cos, sin) = rope[position * d..(position + 1) * d].split_at(d / 2);
            // SAFETY: each row is read and written by one thread.
            let (row, q_row) = unsafe { (rows_mut.row(r), q_out.row(r)) };
            for (head, out) in row[..q_width].chunks_exact(d).zip(q_row.chunks_exact_mut(d)) {
                match norms {
                    Some((weight, _, eps)) => rowwise::rms_norm(self.isa, head, weight, eps, out),
                    None => out.copy_from_slice(head),
                }
                rowwise::rotate(self.isa, out, cos, sin);
            }
            for head in row[q_width..q_width + kv_width].chunks_exact_mut(d) {
                if let Some((_, weight, eps)) = norms {
                    rowwise::rms_norm_head(self.isa, head, weight, eps);
                }
                rowwise::rotate(self.isa, head, cos, sin);
            }
        });
        let stored = self.rows(qkv);
        let values = |from: usize| TokenRows::new(&stored.data()[from..], stored.width());
        // SAFETY: no other operation is running, so nobody else reads or writes the cache.
        unsafe { layer.write(self.isa, slots, values(q_width), values(q_width + kv_width)) }?;
        Ok(())
    }

    fn attend(
        &self,
        q: BufferId,
        out: BufferId,
        kv: KvRef,
        scale: f32,
        rows: usize,
    ) -> Result<(), ModelError> {
        let (layer, _) = self.kv.heads(kv)?;
        // A group whose metadata is empty has no work items, so `out` would keep the output of an earlier
        // step. This check fails in that case.
        self.slots(kv, rows)?;
        let group = usize::from(kv.group.0);
        let (metadata, work) = (self.inputs.group(group), &self.work[group]);
        let (q, out) = (self.rows(q), self.rows_mut(out));
        // SAFETY: the attention call is the only one that touches `out`.
        let (data, width) = (unsafe { out.all() }, out.width());
        let q = TokenRows::new(q.data(), q.width());
        let call = AttentionCall::new(self.isa, metadata, work, layer, scale, q, data, width)?;
        let items = AtomicUsize::new(0);
        self.team.run(&|share, _| {
            let mut scratch = self.scratch[share].lock();
            loop {
                let item = items.fetch_add(1, Ordering::Relaxed);
                if item >= call.num_items() {
                    return;
                }
                // SAFETY: the list was planned from this step's metadata, whose K and V are stored, and
                // each item is taken once.
                unsafe { call.run_item(item, &mut scratch) };
            }
        });
        Ok(())
    }

    /// The slots of the first `rows` token rows in a group.
    pub(super) fn slots(&self, kv: KvRef, rows: usize) -> Result<&[i64], ModelError> {
        let all = &self.inputs.group(usize::from(kv.group.0)).slot_mapping;
        all.get(..rows).ok_or_else(|| ModelError::BadInputs {
            what: format!("{} slots in KV group {}, and {rows} token rows", all.len(), kv.group.0),
        })
    }

    /// Copies rows between a buffer and the slots of a group, in either direction.
    fn hold_or_fetch(&self, x: BufferId, kv: KvRef, rows: usize, way: Way) -> Result<(), ModelError> {
        let held = self.kv.rows(kv)?;
        let x = self.rows_mut(x);
        if x.width() != held.width() {
            let what =
                format!("rows of {} values, and their KV group holds rows of {}", x.width(), held.width());
            return Err(ModelError::BadInputs { what });
        }
        for (r, &slot) in self.slots(kv, rows)?.iter().enumerate() {
            let Some(at) = held.row(slot)? else { continue };
            // SAFETY: only this thread uses the row of the buffer. No other operation is running, so nobody
            // else uses the slot, which has `width` values.
            unsafe {
                let row = x.row(r);
                match way {
                    Way::Hold => std::ptr::copy_nonoverlapping(row.as_ptr(), at, row.len()),
                    Way::Fetch => std::ptr::copy_nonoverlapping(at, row.as_mut_ptr(), row.len()),
                }
            }
        }
        Ok(())
    }
}
