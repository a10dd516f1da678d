//! Keys or experts that were chosen for each token row.

use pagedraft_attention::sparse::{ChosenScores, KeepScores, SelectionView};

use crate::cpu::memory::{Memory, OutOfMemory};
use crate::error::ModelError;

/// `[rows, per_row]` choices, of which each row has some, ascending, and perhaps their scores. Operations of different threads write different rows
/// through [`view`](Self::view).
#[derive(Debug)]
pub(in crate::cpu) struct Choices {
    chosen: Memory<u32>,
    lens: Memory<u32>,
    per_row: usize,
    /// Three figures a row, if scores are kept.
    stats: Option<Memory<f32>>,
    /// `[rows, per_row]`, if each score is kept.
    scores: Option<Memory<f32>>,
}

impl Choices {
    /// Nothing chosen for `rows` rows.
    pub fn new(rows: usize, per_row: usize, keep: KeepScores) -> Result<Self, OutOfMemory> {
        let values = rows.checked_mul(per_row).ok_or(OutOfMemory { bytes: usize::MAX })?;
        let kept = |keep: bool, len| keep.then(|| Memory::zeroed(len)).transpose();
        Ok(Self {
            chosen: Memory::zeroed(values)?,
            lens: Memory::zeroed(rows)?,
            per_row,
            stats: kept(keep != KeepScores::Nothing, rows.saturating_mul(3))?,
            scores: kept(keep == KeepScores::Each, values)?,
        })
    }

    /// A view that threads can write rows through.
    pub fn view(&self) -> SelectionView<'_> {
        // SAFETY: the buffer lives as long as the view, has these shapes, and is written through such views alone.
        unsafe {
            let view = SelectionView::from_raw(
                self.chosen.as_ptr(),
                self.lens.as_ptr(),
                self.lens.len(),
                self.per_row,
            );
            let at = |kept: &Option<Memory<f32>>| kept.as_ref().map_or(std::ptr::null_mut(), Memory::as_ptr);
            view.with_scores(at(&self.stats), at(&self.scores))
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

    /// The scores of what was chosen for a row, if they are kept (see [`SelectionView::scores`]).
    pub fn scores(&self, row: usize) -> Option<ChosenScores<'_>> {
        // SAFETY: operations have ended when this device is asked, so that nobody writes.
        unsafe { self.view().scores(row) }
    }
}
