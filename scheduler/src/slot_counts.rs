use serde::Serialize;

/// One number of KV slots for each row and KV group, row by row in one buffer: `[rows, groups]`.
///
/// A plan says with it how many slots each row may use at most, an outcome how many each row really took. The buffer
/// is kept from step to step, so that writing a step allocates nothing.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct SlotCounts {
    groups: usize,
    counts: Vec<u32>,
}

impl Clone for SlotCounts {
    fn clone(&self) -> Self {
        Self { groups: self.groups, counts: self.counts.clone() }
    }

    /// Keeps the buffer of `self`.
    fn clone_from(&mut self, from: &Self) {
        self.groups = from.groups;
        self.counts.clone_from(&from.counts);
    }
}

impl SlotCounts {
    /// Forgets all rows; each row from here on has `groups` counts.
    pub fn begin(&mut self, groups: usize) {
        self.groups = groups;
        self.counts.clear();
    }

    /// Appends a row and gives its counts, all 0, to be filled in.
    pub fn push(&mut self) -> &mut [u32] {
        let start = self.counts.len();
        self.counts.resize(start + self.groups, 0);
        &mut self.counts[start..]
    }

    /// Appends a row with `slots` in each group that is `counted`, and 0 in the others.
    #[inline]
    pub(crate) fn push_each(&mut self, counted: &[bool], slots: u32) {
        match counted {
            [true] => self.counts.push(slots),
            _ => self.counts.extend(counted.iter().map(|&yes| if yes { slots } else { 0 })),
        }
    }

    /// The counts of a row; empty where there is no such row.
    #[must_use]
    #[inline]
    pub fn row(&self, row: usize) -> &[u32] {
        self.counts.get(row * self.groups..(row + 1) * self.groups).unwrap_or_default()
    }

    /// The same, to be changed.
    pub fn row_mut(&mut self, row: usize) -> &mut [u32] {
        self.counts.get_mut(row * self.groups..(row + 1) * self.groups).unwrap_or_default()
    }

    /// Takes a row out; those behind it move up.
    pub fn remove(&mut self, row: usize) {
        if (row + 1) * self.groups <= self.counts.len() {
            self.counts.drain(row * self.groups..(row + 1) * self.groups);
        }
    }

    /// Counts a row.
    #[must_use]
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// How many rows there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.counts.len().checked_div(self.groups).unwrap_or(0)
    }

    /// Whether there are no rows.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }
}
