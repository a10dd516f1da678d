//! Where the keys chosen for each token row are written.

use std::marker::PhantomData;

/// The keys chosen for each of some token rows: `[rows, k]` positions, of which row r has `lens[r]`, ascending.
///
/// It is a raw view, so that threads can write different rows at once.
#[derive(Clone, Copy, Debug)]
pub struct SelectionView<'a> {
    positions: *mut u32,
    lens: *mut u32,
    rows: usize,
    k: usize,
    borrowed: PhantomData<&'a mut [u32]>,
}

// SAFETY: the view only points; its methods demand that a row has one user where it is written.
unsafe impl Send for SelectionView<'_> {}
// SAFETY: as above.
unsafe impl Sync for SelectionView<'_> {}

impl<'a> SelectionView<'a> {
    /// A view of `lens.len()` rows.
    ///
    /// # Panics
    ///
    /// If `positions` has not room for `k` a row.
    #[must_use]
    pub fn new(positions: &'a mut [u32], lens: &'a mut [u32], k: usize) -> SelectionView<'a> {
        let rows = lens.len();
        assert!(
            rows.checked_mul(k).is_some_and(|len| len <= positions.len()),
            "{rows} rows of {k} positions"
        );
        // SAFETY: both are borrowed for as long as the view lives.
        unsafe { Self::from_raw(positions.as_mut_ptr(), lens.as_mut_ptr(), rows, k) }
    }

    /// The same of raw memory.
    ///
    /// # Safety
    ///
    /// For as long as the view lives, there are `rows * k` positions and `rows` lengths, which are used through such views
    /// only.
    #[must_use]
    pub unsafe fn from_raw(positions: *mut u32, lens: *mut u32, rows: usize, k: usize) -> SelectionView<'a> {
        SelectionView { positions, lens, rows, k, borrowed: PhantomData }
    }

    /// Rows that there is room for.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Keys that a row has room for.
    #[must_use]
    pub fn k(&self) -> usize {
        self.k
    }

    /// The keys of a row, ascending; empty of a row that does not exist.
    ///
    /// # Safety
    ///
    /// Nobody writes the row meanwhile.
    #[must_use]
    pub unsafe fn row(&self, row: usize) -> &'a [u32] {
        if row >= self.rows {
            return &[];
        }
        // SAFETY: within the view, as just checked; a length is at most `k`.
        unsafe {
            let len = (*self.lens.add(row) as usize).min(self.k);
            std::slice::from_raw_parts(self.positions.add(row * self.k), len)
        }
    }

    /// Writes the keys of a row: the first `k` of them.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    ///
    /// # Safety
    ///
    /// Nobody else uses the row meanwhile.
    pub unsafe fn write(&self, row: usize, positions: impl Iterator<Item = u32>) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        let mut len = 0;
        // SAFETY: within the view, as just checked.
        unsafe {
            for position in positions.take(self.k) {
                *self.positions.add(row * self.k + len) = position;
                len += 1;
            }
            *self.lens.add(row) = len as u32;
        }
    }
}
