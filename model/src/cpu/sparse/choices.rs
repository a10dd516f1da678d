//! Keys or experts that were chosen for each token row.

use pagedraft_attention::sparse::SelectionView;

use crate::cpu::memory::{Memory, OutOfMemory};
use crate::error::ModelError;

/// `[rows, per_row]` choices, of which each row has some, ascending. Operations of different threads write different rows
/// through [`view`](Self::view).
#[derive(Debug)]
pub(in crate::cpu) struct Choices {
    chosen: Memory<u32>,
    lens: Memory<u32>,
    per_row: usize,
}

impl Choices {
    /// Nothing chosen for `rows` rows.
    pub fn new(rows: usize, per_row: usize) -> Result<Self, OutOfMemory> {
        let values = rows.checked_mul(per_row).ok_or(OutOfMemory { bytes: usize::MAX })?;
        Ok(Self { chosen: Memory::zeroed(values)?, lens: Memory::zeroed(rows)?, per_row })
    }

    /// A view that threads can write rows through.
    pub fn view(&self) -> SelectionView<'_> {
        // SAFETY: the buffer lives as long as the view, has these shapes, and is written through such views alone.
        unsafe {
            SelectionView::from_raw(self.chosen.as_ptr(), self.lens.as_ptr(), self.lens.len(), self.per_row)
        }
    }

    /// Says what was chosen for a row.
    pub fn set_row(&self, row: usize, chosen: &[u32]) -> Result<(), ModelError> {
        if row >= self.lens.len() {
            return Err(ModelError::NoSuchTokenRow { row, rows: self.lens.len() });
        }
        // SAFETY: the device is borrowed mutably, so that no operation runs.
        unsafe { self.view().write(row, chosen.iter().copied()) };
        Ok(())
    }

    /// What was chosen for a row.
    pub fn row(&self, row: usize) -> Result<&[u32], ModelError> {
        if row >= self.lens.len() {
            return Err(ModelError::NoSuchTokenRow { row, rows: self.lens.len() });
        }
        // SAFETY: operations have ended when this device is asked, so that nobody writes.
        Ok(unsafe { self.view().row(row) })
    }
}
