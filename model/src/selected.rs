//! Rows of a buffer that was read from a device.

use std::ops::Range;

/// Some rows of a buffer, in the order they were asked for.
#[derive(Clone, Copy, Debug)]
pub struct Selected<'a> {
    data: &'a [f32],
    width: usize,
    /// Where each row lies; if this is `None`, they lie one after the other.
    rows: Option<&'a [u32]>,
}

impl<'a> Selected<'a> {
    /// Rows of `width` values out of `data`: those of the indices `rows`, or else all of them as they lie.
    pub(crate) fn new(data: &'a [f32], width: usize, rows: Option<&'a [u32]>) -> Self {
        Self { data, width, rows }
    }

    /// Row `i` of those asked for; empty if there is none.
    #[must_use]
    pub fn row(&self, i: usize) -> &'a [f32] {
        self.block(i..i + 1)
    }

    /// Rows `range` of those asked for, which must have been neighbours in the step: `[range.len(), width]`, row-major.
    #[must_use]
    pub fn block(&self, range: Range<usize>) -> &'a [f32] {
        let first = match self.rows {
            Some(rows) => rows.get(range.start).map_or(usize::MAX, |&row| row as usize),
            None => range.start,
        };
        let start = first.saturating_mul(self.width);
        self.data.get(start..start.saturating_add(range.len() * self.width)).unwrap_or_default()
    }
}
