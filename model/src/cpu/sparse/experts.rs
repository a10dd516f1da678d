//! The experts of a layer: the rows of each expert are one product.

use super::row_kernels::add_scaled;
use super::state::Routed;
use crate::cpu::device::CpuDevice;
use crate::cpu::matmul::{Epilogue, OutRows, matmul};
use crate::cpu::rowwise;
use crate::device::BufferId;
use crate::error::ModelError;

impl CpuDevice {
    pub(super) fn experts(
        &mut self,
        x: BufferId,
        (choices, weights): (BufferId, BufferId),
        (gate_up, down): (BufferId, BufferId),
        [gathered, wide, narrow, sums]: [BufferId; 4],
        out: BufferId,
        rows: usize,
    ) -> Result<(), ModelError> {
        // Rows that are pads were routed nowhere.
        let rows = rows.min(self.sparse.rows());
        let mut routed = std::mem::take(&mut self.sparse.routed);
        routed.clear();
        for r in 0..rows {
            let experts = self.buffer(choices).choices().row(r)?;
            let own = experts.iter().zip(0..);
            routed.extend(own.map(|(&expert, place)| Routed { expert, row: r as u32, place }));
        }
        // By expert, then row: a row's experts are added in the order of their ids.
        routed.sort_unstable();
        for r in 0..rows {
            // SAFETY: rows are written by this thread alone.
            unsafe { self.rows_mut(sums).row(r) }.fill(0.0);
        }
        for own in routed.chunk_by(|a, b| a.expert == b.expert) {
            let expert = own[0].expert as usize;
            let (from, to) = (self.rows(x), self.rows_mut(gathered));
            for (i, routed) in own.iter().enumerate() {
                // SAFETY: rows are written by this thread alone.
                unsafe { to.row(i) }.copy_from_slice(from.row(routed.row as usize));
            }
            let m = own.len();
            self.expert_product(gathered, (gate_up, expert), wide, m)?;
            let (from, to) = (self.rows(wide), self.rows_mut(narrow));
            self.for_rows(m, from.width(), |i| {
                let (gate, up) = from.row(i).split_at(from.width() / 2);
                // SAFETY: each row is written by one thread.
                rowwise::swiglu(self.isa, gate, up, unsafe { to.row(i) });
            });
            // The gathered rows are not needed any more: their place takes the result.
            self.expert_product(narrow, (down, expert), gathered, m)?;
            let (from, weights, to) = (self.rows(gathered), self.rows(weights), self.rows_mut(sums));
            self.for_rows(m, from.width(), |i| {
                let Routed { row, place, .. } = own[i];
                let weight = weights.row(row as usize)[place as usize];
                // SAFETY: a row has an expert once, so that each sum is written by one thread.
                add_scaled(self.isa, weight, from.row(i), unsafe { to.row(row as usize) });
            });
        }
        let (from, to) = (self.rows(sums), self.rows_mut(out));
        self.for_rows(rows, from.width(), |r| {
            // SAFETY: each row is written by one thread.
            add_scaled(self.isa, 1.0, from.row(r), unsafe { to.row(r) });
        });
        self.sparse.routed = routed;
        Ok(())
    }

    /// `out = x W^T` of `m` rows with one matrix of a stack.
    fn expert_product(
        &mut self,
        x: BufferId,
        (matrices, expert): (BufferId, usize),
        out: BufferId,
        m: usize,
    ) -> Result<(), ModelError> {
        let w = &self.buffers[matrices.index()].matrices()[expert];
        let from = self.buffers[x.index()].activations().rows();
        self.packed.pack(&self.team, self.isa, w.inputs(), from.data(), m, w.k(), from.width())?;
        let out = self.rows_mut(out);
        // SAFETY: the product is the only one that touches `out`.
        let to = OutRows::new(unsafe { out.all() }, m, w.n(), out.width());
        matmul(&self.team, self.isa, &self.packed, w, None, to, Epilogue::Store);
        Ok(())
    }
}
