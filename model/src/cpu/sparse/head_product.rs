//! A product of each head with a matrix of its own.

use parking_lot::Mutex;

use crate::cpu::device::CpuDevice;
use crate::cpu::matmul::{Epilogue, OutRows, Product};
use crate::cpu::memory::OutOfMemory;
use crate::device::BufferId;
use crate::dsa::HeadColumns;
use crate::error::ModelError;

impl CpuDevice {
    /// Threads split the heads: each product is done by one thread.
    pub(super) fn head_product(
        &self,
        x: BufferId,
        columns: HeadColumns,
        matrices: BufferId,
        out: BufferId,
        rows: usize,
    ) -> Result<(), ModelError> {
        let matrices = self.buffer(matrices).matrices();
        let (x, out) = (self.rows(x), self.rows_mut(out));
        let fault: Mutex<Option<OutOfMemory>> = Mutex::new(None);
        let heads = columns.heads.min(matrices.len());
        let head = |h: usize, share: usize| -> Result<(), OutOfMemory> {
            let w = &matrices[h];
            let mut room = self.sparse.rooms[share].lock();
            let from = &x.data()[h * columns.stride + columns.offset..];
            room.packed.begin(self.isa, w.inputs(), from, rows, w.k(), x.width())?.work();
            // SAFETY: heads write different columns, and each is done by one thread.
            let to = unsafe { OutRows::columns(out, h * w.n(), rows, w.n()) };
            Product::new(1, self.isa, &room.packed, w, None, to, Epilogue::Store).work();
            Ok(())
        };
        let work = |share: usize, shares: usize| {
            for h in (share..heads).step_by(shares) {
                if let Err(e) = head(h, share) {
                    *fault.lock() = Some(e);
                }
            }
        };
        if rows > 0 {
            self.team.run(&work);
        }
        fault.into_inner().map_or(Ok(()), |e| Err(e.into()))
    }
}
