//! Which keys a row attends to, and attention over them.

use std::sync::atomic::{AtomicUsize, Ordering};

use pagedraft_attention::TokenRows;
use pagedraft_attention::sparse::{
    IndexShape, LatentCall, LatentShape, SelectCall, SelectScratch, VectorLayer,
};
use parking_lot::Mutex;

use super::state::ThreadRoom;
use crate::cpu::buffer::{Rows, RowsMut};
use crate::cpu::device::CpuDevice;
use crate::device::BufferId;
use crate::dsa::HeadColumns;
use crate::error::ModelError;
use crate::kv::KvRef;
use crate::tiers::Attended;

/// What attention over latents reads, besides them, and where it writes.
pub(super) struct Operands<'a> {
    pub shape: LatentShape,
    pub absorbed: Rows<'a>,
    pub rotated: Rows<'a>,
    pub out: RowsMut,
}

impl CpuDevice {
    /// Runs `item(index, room)` for each index below `items`, on all threads.
    pub(super) fn for_items(&self, items: usize, item: impl Fn(usize, &mut ThreadRoom) + Sync) {
        let next = AtomicUsize::new(0);
        let work = |share: usize| {
            let mut room = self.sparse.rooms[share].lock();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= items {
                    return;
                }
                item(index, &mut room);
            }
        };
        // A single item is done sooner than a thread is woken.
        if items < 2 {
            work(0);
        } else {
            self.team.run(&|share, _| work(share));
        }
    }

    pub(super) fn select_keys(
        &self,
        (q, weights): (BufferId, BufferId),
        shape: IndexShape,
        kv: KvRef,
        out: BufferId,
        rows: usize,
    ) -> Result<(), ModelError> {
        self.slots(kv, rows)?;
        let group = usize::from(kv.group.0);
        let (metadata, plan) = (self.inputs.group(group), self.sparse.rows_of(group)?);
        let (q, weights) = (self.rows(q), self.rows(weights));
        let call = SelectCall::new(
            self.isa,
            metadata,
            plan,
            self.kv.vectors(kv)?,
            shape,
            TokenRows::new(q.data(), q.width()),
            TokenRows::new(weights.data(), weights.width()),
            self.buffer(out).choices().view(),
        )?;
        let (items, parts) = (call.num_items(), call.parts(self.team.members()));
        if parts == 1 {
            // SAFETY: the rows were planned from this step's metadata, and its keys are stored. Each item is drawn once.
            self.for_items(items, |item, room| unsafe { call.run_item(item, &mut room.select) });
            return Ok(());
        }
        let mut shared = self.sparse.shared.lock();
        let found = &mut shared.parts;
        found.resize_with(found.len().max(items * parts), Mutex::default);
        // SAFETY: as above; a part has memory of its own.
        self.for_items(items * parts, |i, _| unsafe {
            call.run_part(i / parts, (i % parts, parts), &mut found[i].lock());
        });
        for (item, found) in found.chunks_exact_mut(parts).take(items).enumerate() {
            let mut found = found.iter_mut().map(Mutex::get_mut);
            let Some(first) = found.next() else { continue };
            let others: Vec<&SelectScratch> = found.map(|part| &*part).collect();
            // SAFETY: all parts are done.
            unsafe { call.join(item, first, &others) };
        }
        Ok(())
    }

    pub(super) fn attend_selected(
        &self,
        (absorbed, q): (BufferId, BufferId),
        (columns, rank, scale): (HeadColumns, usize, f32),
        kv: KvRef,
        selection: BufferId,
        out: BufferId,
        rows: usize,
    ) -> Result<(), ModelError> {
        self.slots(kv, rows)?;
        let group = usize::from(kv.group.0);
        let shape = LatentShape {
            heads: columns.heads,
            rank,
            rotated_stride: columns.stride,
            rotated_offset: columns.offset,
            scale,
        };
        let selection = self.buffer(selection).choices().view();
        let (metadata, rows) = (self.inputs.group(group), self.sparse.rows_of(group)?);
        let step = Attended { rows, metadata, selection };
        let (absorbed, q, out) = (self.rows(absorbed), self.rows(q), self.rows_mut(out));
        let operands = Operands { shape, absorbed, rotated: q, out };
        if let Some((tiers, place)) = self.kv.tiered(kv)?.filter(|(tiers, _)| !tiers.lock().is_whole()) {
            return self.attend_in_tiers(&mut tiers.lock(), place, step, &operands);
        }
        self.attend_over(self.kv.vectors(kv)?, step, &operands, 0)
    }

    /// Attention of the rows of `step`, whose row 0 is row `first` of the operands.
    pub(super) fn attend_over(
        &self,
        latents: VectorLayer,
        step: Attended<'_>,
        operands: &Operands<'_>,
        first: usize,
    ) -> Result<(), ModelError> {
        let Operands { absorbed, rotated, out, .. } = operands;
        let tokens = |rows: &Rows<'_>| first * rows.width();
        // SAFETY: the attention call is the only one that touches `out`.
        let data = unsafe { out.all() };
        let call = LatentCall::new(
            self.isa,
            step.metadata,
            step.rows,
            latents,
            step.selection,
            operands.shape,
            TokenRows::new(&absorbed.data()[tokens(absorbed)..], absorbed.width()),
            TokenRows::new(&rotated.data()[tokens(rotated)..], rotated.width()),
            &mut data[first * out.width()..],
            out.width(),
        )?
        .share_tiles(self.team.members());
        let (items, parts) = (call.num_items(), call.parts(self.team.members()));
        if parts == 1 {
            // SAFETY: the rows were planned from this step's metadata, its latents are stored, and the selection is made. Each
            // item is drawn once.
            self.for_items(items, |item, room| unsafe { call.run_item(item, &mut room.latent) });
            return Ok(());
        }
        let scores = &mut self.sparse.shared.lock().scores;
        scores.prepare(&call);
        // SAFETY: as above, for parts; the second halves begin when all first halves are done.
        self.for_items(items * parts, |i, room| unsafe {
            call.score_part(i / parts, (i % parts, parts), scores, &mut room.latent);
        });
        // SAFETY: as above.
        self.for_items(items * parts, |i, room| unsafe {
            call.sum_part(i / parts, (i % parts, parts), scores, &mut room.latent);
        });
        Ok(())
    }
}
