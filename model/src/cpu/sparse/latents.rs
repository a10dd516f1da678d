//! Rotations, and what is stored of a token: its latent with the rotated key, and its indexer key.

use std::cell::RefCell;

use pagedraft_attention::TokenRows;
use pagedraft_attention::sparse::fp8;

use super::row_kernels::{layer_norm, rotate_pairs};
use crate::cpu::device::CpuDevice;
use crate::cpu::rowwise;
use crate::device::BufferId;
use crate::dsa::{HeadColumns, Rotation};
use crate::error::ModelError;
use crate::kv::KvRef;

thread_local! {
    /// Where values are laid out for a rotation of neighbours.
    static ROOM: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Turns values of a row by the angles of its position.
struct Turn<'a> {
    device: &'a CpuDevice,
    table: &'a [f32],
    values: usize,
    interleaved: bool,
}

impl Turn<'_> {
    fn turn(&self, x: &mut [f32], row: usize) {
        let position = self.device.inputs.positions[row] as usize;
        let angles = &self.table[position * self.values..(position + 1) * self.values];
        ROOM.with_borrow_mut(|room| rotate_pairs(self.device.isa, x, angles, self.interleaved, room));
    }
}

impl CpuDevice {
    fn turning(&self, rotation: Rotation<BufferId>) -> Turn<'_> {
        let Rotation { table, values, interleaved } = rotation;
        Turn { device: self, table: self.buffer(table).vector(), values, interleaved }
    }

    pub(super) fn rotate_heads(
        &self,
        x: BufferId,
        columns: HeadColumns,
        rotation: Rotation<BufferId>,
        rows: usize,
    ) {
        let (x, turn) = (self.rows_mut(x), self.turning(rotation));
        self.for_rows(rows, columns.heads * rotation.values * 2, |r| {
            // SAFETY: each row is read and written by one thread.
            let row = unsafe { x.row(r) };
            for h in 0..columns.heads {
                let at = h * columns.stride + columns.offset;
                turn.turn(&mut row[at..at + rotation.values], r);
            }
        });
    }

    pub(super) fn cache_latents(
        &self,
        x: BufferId,
        (weight, eps): (BufferId, f32),
        rotation: Rotation<BufferId>,
        kv: KvRef,
        rows: usize,
    ) -> Result<(), ModelError> {
        let (rows_mut, turn) = (self.rows_mut(x), self.turning(rotation));
        let weight = self.buffer(weight).vector();
        let width = rows_mut.width();
        self.for_rows(rows, width * 2, |r| {
            // SAFETY: each row is read and written by one thread.
            let (latent, key) = unsafe { rows_mut.row(r) }.split_at_mut(width - rotation.values);
            ROOM.with_borrow_mut(|room| {
                room.clear();
                room.extend_from_slice(latent);
                rowwise::rms_norm(self.isa, room, weight, eps, latent);
            });
            turn.turn(key, r);
        });
        self.store_vectors(x, kv, rows)
    }

    pub(super) fn cache_index_keys(
        &self,
        x: BufferId,
        ((weight, bias), eps): ((BufferId, BufferId), f32),
        (rotation, hadamard): (Rotation<BufferId>, bool),
        kv: KvRef,
        rows: usize,
    ) -> Result<(), ModelError> {
        let (rows_mut, turn) = (self.rows_mut(x), self.turning(rotation));
        let (weight, bias) = (self.buffer(weight).vector(), self.buffer(bias).vector());
        self.for_rows(rows, rows_mut.width() * 2, |r| {
            // SAFETY: each row is read and written by one thread.
            let row = unsafe { rows_mut.row(r) };
            layer_norm(self.isa, row, weight, bias, eps);
            turn.turn(&mut row[..rotation.values], r);
            if hadamard {
                fp8::hadamard(row);
            }
        });
        self.store_vectors(x, kv, rows)
    }

    fn store_vectors(&self, x: BufferId, kv: KvRef, rows: usize) -> Result<(), ModelError> {
        let (layer, slots) = (self.kv.vectors(kv)?, self.slots(kv, rows)?);
        let stored = self.rows(x);
        if let Some((tiers, place)) = self.kv.tiered(kv)?.filter(|(tiers, _)| !tiers.lock().is_whole()) {
            return self.store_in_tiers(&mut tiers.lock(), place, slots, stored);
        }
        // SAFETY: no other operation runs, so nobody reads or writes the cache meanwhile.
        unsafe { layer.write(self.isa, slots, TokenRows::new(stored.data(), stored.width())) }?;
        Ok(())
    }
}
