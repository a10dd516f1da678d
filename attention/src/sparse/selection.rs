//! Where the keys chosen for each token row are written.

use std::marker::PhantomData;

/// What is kept of the scores of chosen keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KeepScores {
    /// Nothing.
    #[default]
    Nothing,
    /// The least, the mean and the greatest of a row.
    Stats,
    /// And each score.
    Each,
}

/// The scores of the keys that were chosen for a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChosenScores<'a> {
    /// The least.
    pub min: f32,
    /// Their mean: the sum in f64 over ascending positions, divided by their number and rounded.
    pub mean: f32,
    /// The greatest.
    pub max: f32,
    /// Each, in the order of the positions; empty unless [each](KeepScores::Each) is kept.
    pub each: &'a [f32],
}

/// The keys chosen for each of some token rows: `[rows, k]` positions, of which row r has `lens[r]`, ascending. Their scores may
/// be kept beside them.
///
/// It is a raw view, so that threads can write different rows at once.
#[derive(Clone, Copy, Debug)]
pub struct SelectionView<'a> {
    positions: *mut u32,
    lens: *mut u32,
    /// `[rows, 3]`: least, mean and greatest. Null if no scores are kept.
    stats: *mut f32,
    /// `[rows, k]`. Null unless each score is kept.
    scores: *mut f32,
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
        let none = std::ptr::null_mut();
        SelectionView { positions, lens, stats: none, scores: none, rows, k, borrowed: PhantomData }
    }

    /// The same view, which keeps scores too: `[rows, 3]` figures of each row in `stats`, and, unless `scores` is null, `[rows, k]`
    /// scores there.
    ///
    /// # Safety
    ///
    /// For as long as the view lives, there is this memory, which is used through such views only.
    #[must_use]
    pub unsafe fn with_scores(self, stats: *mut f32, scores: *mut f32) -> SelectionView<'a> {
        SelectionView { stats, scores, ..self }
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

    /// Whether scores are kept.
    #[must_use]
    pub fn keeps_scores(&self) -> bool {
        !self.stats.is_null()
    }

    /// Keeps the scores of a row's keys, in their order: the first `k` of them.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    ///
    /// # Safety
    ///
    /// Nobody else uses the row meanwhile.
    pub unsafe fn write_scores(&self, row: usize, scores: impl Iterator<Item = f32>) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        if self.stats.is_null() {
            return;
        }
        let (mut min, mut max, mut sum, mut len) = (f32::INFINITY, f32::NEG_INFINITY, 0.0f64, 0u32);
        for score in scores.take(self.k) {
            // SAFETY: within the view, as just checked.
            unsafe {
                if !self.scores.is_null() {
                    *self.scores.add(row * self.k + len as usize) = score;
                }
            }
            (min, max, sum, len) = (min.min(score), max.max(score), sum + f64::from(score), len + 1);
        }
        // Not a number if there is no score, or one that is not finite.
        let mean = (sum / f64::from(len)) as f32;
        // SAFETY: within the view, as just checked.
        unsafe { self.stats.add(row * 3).cast::<[f32; 3]>().write_unaligned([min, mean, max]) };
    }

    /// The scores of a row's keys. `None` if no scores are kept, or if a score is not finite.
    ///
    /// # Safety
    ///
    /// Nobody writes the row meanwhile.
    #[must_use]
    pub unsafe fn scores(&self, row: usize) -> Option<ChosenScores<'a>> {
        if self.stats.is_null() || row >= self.rows {
            return None;
        }
        // SAFETY: within the view, as just checked; a length is at most `k`.
        unsafe {
            let [min, mean, max] = self.stats.add(row * 3).cast::<[f32; 3]>().read_unaligned();
            let each = match self.scores.is_null() {
                true => &[],
                false => std::slice::from_raw_parts(self.scores.add(row * self.k), self.row(row).len()),
            };
            mean.is_finite().then_some(ChosenScores { min, mean, max, each })
        }
    }
}
