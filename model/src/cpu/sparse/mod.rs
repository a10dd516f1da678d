//! Sparse attention over latents, and experts, on the CPU.

mod attention;
mod choices;
mod experts;
mod head_product;
mod index_mass;
mod latents;
mod route;
mod row_kernels;
mod state;
mod tiered;

pub(super) use choices::Choices;
pub(super) use state::SparseState;

use super::device::CpuDevice;
use crate::device::BufferId;
use crate::dsa::SparseOp;
use crate::error::ModelError;
use pagedraft_attention::sparse::IndexShape;

impl CpuDevice {
    /// Runs one operation on all threads. A row of any result is computed by one fixed sequence of operations, whichever
    /// thread has it and whatever rows stand beside it.
    pub(super) fn run_sparse(&mut self, op: SparseOp<BufferId>) -> Result<(), ModelError> {
        match op {
            SparseOp::Rotate { x, columns, rotation, rows } => {
                self.rotate_heads(x, columns, rotation, rows);
            }
            SparseOp::CacheLatents { x, weight, eps, rotation, kv, rows } => {
                self.cache_latents(x, (weight, eps), rotation, kv, rows)?;
            }
            SparseOp::CacheIndexKeys { x, norm, eps, rotation, hadamard, kv, rows } => {
                self.cache_index_keys(x, (norm, eps), (rotation, hadamard), kv, rows)?;
            }
            SparseOp::HeadMatMul { x, columns, matrices, out, rows } => {
                self.head_product(x, columns, matrices, out, rows)?;
            }
            SparseOp::Select { q, weights, scale, heads, hadamard, kv, out, rows } => {
                self.select_keys((q, weights), IndexShape { heads, scale, hadamard }, kv, out, rows)?;
            }
            SparseOp::Attend { absorbed, q, columns, kv, selection, scale, rank, out, rows } => {
                self.attend_selected((absorbed, q), (columns, rank, scale), kv, selection, out, rows)?;
            }
            SparseOp::Route { logits, bias, router, out, weights, rows } => {
                self.route(logits, bias, &router, (out, weights), rows);
            }
            SparseOp::Experts { x, choices, weights, gate_up, down, room, out, rows } => {
                self.experts(x, (choices, weights), (gate_up, down), room, out, rows)?;
            }
        }
        Ok(())
    }
}
