//! Attention over latents that lie in tiers, and storing them there.

use pagedraft_attention::TokenRows;
use pagedraft_attention::sparse::SparseRows;

use super::attention::Operands;
use crate::cpu::buffer::Rows;
use crate::cpu::device::CpuDevice;
use crate::error::ModelError;
use crate::tiers::{Attended, GatherRoom, Tiers};

impl CpuDevice {
    /// Stores rows at their slots in layer `place`, as many at a time as tier 0 has frames for.
    pub(super) fn store_in_tiers(
        &self,
        tiers: &mut Tiers,
        place: usize,
        slots: &[i64],
        rows: Rows<'_>,
    ) -> Result<(), ModelError> {
        let (mut first, mut stored) = (0, Vec::new());
        while first < slots.len() {
            tiers.next_store(place, slots, first, &mut stored);
            let from = TokenRows::new(&rows.data()[first * rows.width()..], rows.width());
            // SAFETY: no other operation runs, so nobody reads or writes the cache meanwhile.
            unsafe { tiers.vectors(place).write(self.isa, &stored, from) }?;
            first += stored.len();
        }
        Ok(())
    }

    /// Attention in layer `place`, of as many rows at a time as tier 0 has frames for. A row that alone needs more is computed from a
    /// copy of what it selected. The output of a row whose latents are lost is 0.
    pub(super) fn attend_in_tiers(
        &self,
        tiers: &mut Tiers,
        place: usize,
        step: Attended<'_>,
        operands: &Operands<'_>,
    ) -> Result<(), ModelError> {
        let rows = step.rows.rows();
        let (mut part, mut room) = (SparseRows::new(), GatherRoom::default());
        let mut first = 0;
        while first < rows.len() {
            let count = tiers.next_pass(place, step, first);
            let end = first + count.max(1);
            if count > 0 {
                part.clone_part(step.rows, first..end);
                self.attend_over(tiers.vectors(place), Attended { rows: &part, ..step }, operands, 0)?;
            } else if tiers.gather(place, step, first, &mut room)? {
                let (gathered, latents) = room.step(&tiers.vectors(place))?;
                self.attend_over(latents, gathered, operands, rows[first].token as usize)?;
            }
            for row in rows[first..end].iter().filter(|row| tiers.is_lost(row.token)) {
                // SAFETY: the attention call has ended, so that nobody else touches the row.
                unsafe { operands.out.row(row.token as usize) }.fill(0.0);
            }
            first = end;
        }
        Ok(())
    }
}
