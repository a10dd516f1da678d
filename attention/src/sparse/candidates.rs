//! The exact best k of a stream of scores.

/// The `k` best of scores that arrive in the order of their positions. Of equal scores the lowest position is better; a NaN is
/// worse than every number.
///
/// It keeps at most `2 k` candidates and a few more. When it is full, the k-th best is found (quickselect), and what is
/// worse is dropped; later scores that are no better are not taken in at all. Cost: a comparison a score, and O(k) for
/// every k taken in.
#[derive(Debug, Default)]
pub struct Candidates {
    k: usize,
    /// Ascending by position.
    keys: Vec<u64>,
    /// Where quickselect works.
    work: Vec<u64>,
    /// The score that a new candidate has to exceed; `None` while everything is taken in. A later one that equals it is no
    /// better, because its position is higher.
    floor: Option<f32>,
}

/// A number by which candidates are ordered: the greater the better, and no two are equal.
#[inline(always)]
fn key(score: f32, position: u32) -> u64 {
    // Negative and positive zero are one score.
    let bits = (score + 0.0).to_bits();
    let order = match () {
        () if score.is_nan() => 0,
        () if bits >> 31 == 1 => !bits,
        () => bits | 1 << 31,
    };
    u64::from(order) << 32 | u64::from(!position)
}

/// The score of a candidate; `None` of a NaN.
fn score(key: u64) -> Option<f32> {
    match (key >> 32) as u32 {
        0 => None,
        order if order >> 31 == 1 => Some(f32::from_bits(order ^ 1 << 31)),
        order => Some(f32::from_bits(!order)),
    }
}

impl Candidates {
    /// None yet.
    #[must_use]
    pub fn new() -> Candidates {
        Candidates::default()
    }

    /// Begins anew, for the best `k` (at least 1).
    pub fn begin(&mut self, k: usize) {
        self.k = k.max(1);
        self.keys.clear();
        self.floor = None;
    }

    /// Takes in the scores of the positions from `first` on. Positions ascend from call to call.
    pub fn push(&mut self, first: u32, scores: &[f32]) {
        let scores_at = (first..).zip(scores);
        match self.floor {
            None => self.keys.extend(scores_at.map(|(position, &score)| key(score, position))),
            Some(floor) => {
                for (position, &score) in scores_at {
                    if score > floor {
                        self.keys.push(key(score, position));
                    }
                }
            }
        }
        // At least a tile's worth between two cuts, or a small k would be cut again and again.
        if self.keys.len() >= (2 * self.k).max(self.k + super::TILE) {
            self.cut();
        }
    }

    /// Drops all but the best `k`.
    fn cut(&mut self) {
        self.work.clear();
        self.work.extend_from_slice(&self.keys);
        let (_, &mut worst, _) = self.work.select_nth_unstable_by(self.k - 1, |a, b| b.cmp(a));
        self.floor = score(worst);
        self.keys.retain(|&key| key >= worst);
    }

    /// The positions of the best `k` (all, if there are fewer), ascending.
    pub fn finish(&mut self) -> impl ExactSizeIterator<Item = u32> {
        if self.keys.len() > self.k {
            self.cut();
        }
        self.keys.iter().map(|&key| !(key as u32))
    }

    /// The scores of what [`finish`](Self::finish) gave, in its order. Negative zero has become zero.
    pub fn scores(&self) -> impl ExactSizeIterator<Item = f32> {
        self.keys.iter().map(|&key| score(key).unwrap_or(f32::NAN))
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference::best;
    use super::*;

    /// SplitMix64.
    fn random(state: &mut u64) -> u64 {
        *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[test]
    fn the_best_of_a_stream_are_those_of_a_full_sort_whatever_the_ties() {
        let mut state = 20_261_129;
        println!("seed {state}");
        let mut candidates = Candidates::new();
        for case in 0..2000 {
            let n = 1 + random(&mut state) as usize % 700;
            let k = 1 + random(&mut state) as usize % 150;
            // From all alike to all different, with zeros of both signs.
            let levels = [1, 2, 5, 50, 1 << 20][case % 5];
            let scores: Vec<f32> = (0..n)
                .map(|_| {
                    let level = random(&mut state) % levels;
                    let sign = if random(&mut state).is_multiple_of(2) { 1.0 } else { -1.0 };
                    sign * level as f32 / 7.0
                })
                .collect();
            candidates.begin(k);
            let mut first = 0;
            while first < n {
                let len = (1 + random(&mut state) as usize % 64).min(n - first);
                candidates.push(first as u32, &scores[first..first + len]);
                first += len;
            }
            let found: Vec<u32> = candidates.finish().collect();
            assert_eq!(found, best(&scores, k), "case {case}: {k} of {n}, {levels} levels");
            let own: Vec<f32> = found.iter().map(|&position| scores[position as usize]).collect();
            assert_eq!(candidates.scores().collect::<Vec<_>>(), own, "case {case}");
            assert!(candidates.keys.capacity() <= 2 * (2 * 150 + 128), "the scratch is not bounded");
        }
    }

    #[test]
    fn a_nan_is_chosen_last_and_infinities_in_their_order() {
        let scores = [f32::NAN, 1.0, f32::NEG_INFINITY, f32::INFINITY, f32::NAN, -1.0];
        let mut candidates = Candidates::new();
        for (k, expected) in
            [(1, vec![3]), (3, vec![1, 3, 5]), (4, vec![1, 2, 3, 5]), (5, vec![0, 1, 2, 3, 5])]
        {
            candidates.begin(k);
            candidates.push(0, &scores);
            assert_eq!(candidates.finish().collect::<Vec<_>>(), expected, "{k}");
        }
    }
}
