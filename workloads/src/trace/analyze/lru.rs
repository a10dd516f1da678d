//! Reuse distances: what a cache that drops the least recently used would have held.

/// No last use.
const NEVER: u32 = u32::MAX;

/// A list of small numbers by their last use. For each use it tells how many others were used since the one before it, by Mattson's
/// stack in a Fenwick tree: O(log n) a use.
#[derive(Debug, Default)]
pub(super) struct LruStack {
    /// By number: the time of its last use.
    last: Vec<u32>,
    /// Counts the times that are last uses. Index 0 is not used.
    tree: Vec<u32>,
    time: u32,
}

impl LruStack {
    /// Uses `id`. Returns the number of other ids used since its last use; `None` if it was never used.
    pub(super) fn touch(&mut self, id: u32) -> Option<u64> {
        let place = id as usize;
        if place >= self.last.len() {
            self.last.resize(place + 1, NEVER);
        }
        if self.time as usize + 1 >= self.tree.len() {
            self.renumber();
        }
        let before = self.last[place];
        let distance = (before != NEVER).then(|| {
            let since = self.used(self.time) - self.used(before + 1);
            self.add(before, u32::MAX);
            u64::from(since)
        });
        self.add(self.time, 1);
        self.last[place] = self.time;
        self.time += 1;
        distance
    }

    /// The number of last uses before `time`.
    fn used(&self, time: u32) -> u32 {
        let (mut at, mut sum) = (time, 0);
        while at > 0 {
            sum += self.tree[at as usize];
            at &= at - 1;
        }
        sum
    }

    /// Adds to the count of a time, wrapping around.
    fn add(&mut self, time: u32, count: u32) {
        let mut at = time as usize + 1;
        while at < self.tree.len() {
            self.tree[at] = self.tree[at].wrapping_add(count);
            at += at & at.wrapping_neg();
        }
    }

    /// Gives last uses the first times, and makes room for as many again.
    fn renumber(&mut self) {
        let mut used: Vec<(u32, usize)> = self
            .last
            .iter()
            .enumerate()
            .filter(|(_, time)| **time != NEVER)
            .map(|(id, &t)| (t, id))
            .collect();
        used.sort_unstable();
        self.tree.clear();
        self.tree.resize(2 * used.len() + 1024, 0);
        for (time, (_, id)) in (0..).zip(&used) {
            self.last[*id] = time;
            self.add(time, 1);
        }
        self.time = used.len() as u32;
    }
}
