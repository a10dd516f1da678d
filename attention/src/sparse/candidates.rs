//! The exact best k of a stream of scores.

use crate::isa::{Isa, Kernel};
use crate::lanes::{LANES, Lanes};

/// Candidates are counted in so many bins when the k-th best is looked for.
const BINS: usize = 1024;

/// The `k` best of scores that arrive in the order of their positions. Of equal scores the lowest position is better; a NaN is
/// worse than every number.
///
/// It keeps at most `2 k` candidates and a few more. When it is full, a lower bound of the k-th best is found by counting the
/// candidates in bins of equal width, and what is below it is dropped; later scores that do not exceed it are not taken in at
/// all. The exact k-th best is found in the end, among the candidates of one bin. Cost: a comparison for 16 scores, and O(k)
/// for every k taken in.
#[derive(Debug, Default)]
pub struct Candidates {
    k: usize,
    /// How many candidates there are.
    len: usize,
    /// Their scores as numbers of the same order; see [`order`].
    orders: Vec<u32>,
    /// Their positions, ascending.
    positions: Vec<u32>,
    bins: Vec<u32>,
    /// The candidates of one bin.
    work: Vec<u32>,
    /// The score that a new candidate has to exceed; `None` while everything is taken in. The k-th best so far is no less, and a
    /// later score that equals it is no better, because its position is higher.
    floor: Option<f32>,
}

/// A number that is greater for a greater score. A NaN has 0, the two zeros have one number.
#[inline(always)]
fn order(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    // All bits of a negative number are turned, and the sign of a positive one.
    let order = bits ^ (((bits as i32 >> 31) as u32) | 1 << 31);
    if score.is_nan() { 0 } else { order }
}

/// The score that has this order; `None` if it is that of a NaN.
fn score(order: u32) -> Option<f32> {
    let bits = if order >> 31 == 1 { order ^ 1 << 31 } else { !order };
    Some(f32::from_bits(bits)).filter(|score| !score.is_nan())
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
        self.len = 0;
        self.floor = None;
        self.make_room(self.limit() + super::TILE);
    }

    /// Takes in the scores of the positions from `first` on. Positions ascend from call to call.
    pub fn push(&mut self, isa: Isa, first: u32, scores: &[f32]) {
        isa.run(Push { candidates: self, first, scores });
    }

    /// Does what [`push`](Self::push) does, inside a kernel.
    ///
    /// # Safety
    ///
    /// The caller has the features of `L`.
    #[inline(always)]
    pub(crate) unsafe fn take_in<L: Lanes>(&mut self, first: u32, scores: &[f32]) {
        let mut position = first;
        for scores in scores.chunks(super::TILE) {
            match self.floor {
                None => self.take_all(position, scores),
                // SAFETY: as the caller promises.
                Some(floor) => unsafe { self.take_above::<L>(floor, position, scores) },
            }
            position = position.wrapping_add(scores.len() as u32);
            if self.len >= self.limit() {
                self.cut(false);
            }
        }
    }

    /// Takes in all of up to a tile of scores.
    #[inline(always)]
    fn take_all(&mut self, first: u32, scores: &[f32]) {
        let end = self.len + scores.len();
        let room = self.orders[self.len..end].iter_mut().zip(&mut self.positions[self.len..end]);
        for ((place, &score), position) in room.zip(scores).zip(first..) {
            (*place.0, *place.1) = (order(score), position);
        }
        self.len = end;
    }

    /// Takes in those of up to a tile of scores that are greater than `floor`.
    #[inline(always)]
    unsafe fn take_above<L: Lanes>(&mut self, floor: f32, first: u32, scores: &[f32]) {
        let (groups, rest) = scores.as_chunks::<LANES>();
        // `begin` and `append` have made room for a tile, which indices modulo its length cannot leave.
        let room = self.len..self.len + super::TILE;
        let (orders, positions) = (&mut self.orders[room.clone()], &mut self.positions[room]);
        let (mut taken, mut position) = (0, first);
        let mut take = |position: u32, score: f32| {
            (orders[taken % super::TILE], positions[taken % super::TILE]) = (order(score), position);
            taken += 1;
        };
        for group in groups {
            // SAFETY: as the caller promises; a group has 16 values.
            let mut above = unsafe { L::load(group.as_ptr()).above(L::splat(floor)) };
            while above != 0 {
                let lane = above.trailing_zeros();
                take(position + lane, group[lane as usize % LANES]);
                above &= above - 1;
            }
            position += LANES as u32;
        }
        for (&score, at) in rest.iter().zip(position..) {
            if score > floor {
                take(at, score);
            }
        }
        self.len += taken;
    }

    /// Takes in the candidates of another, whose positions are all greater.
    pub(crate) fn append(&mut self, other: &Candidates) {
        let end = self.len + other.len;
        self.make_room(end + super::TILE);
        self.orders[self.len..end].copy_from_slice(&other.orders[..other.len]);
        self.positions[self.len..end].copy_from_slice(&other.positions[..other.len]);
        self.len = end;
    }

    /// How many candidates make a cut due: at least a tile more than are kept, or a small k would be cut again and again.
    fn limit(&self) -> usize {
        (2 * self.k).max(self.k + super::TILE)
    }

    fn make_room(&mut self, candidates: usize) {
        if self.orders.len() < candidates {
            self.orders.resize(candidates, 0);
            self.positions.resize(candidates, 0);
        }
    }

    /// Drops all but the best `k`, of which there are more; if it need not be `exact`, a few more may stay.
    #[inline(always)]
    fn cut(&mut self, exact: bool) {
        let orders = &self.orders[..self.len];
        let (low, high) =
            orders.iter().fold((u32::MAX, 0), |(low, high), &order| (low.min(order), high.max(order)));
        let shift = (u32::BITS - (high - low).leading_zeros()).saturating_sub(BINS.ilog2());
        self.bins.clear();
        self.bins.resize(BINS, 0);
        let Some(bins) = self.bins.first_chunk_mut::<BINS>() else { return };
        for &order in orders {
            bins[((order - low) >> shift) as usize % BINS] += 1;
        }
        // The k-th best lies in bin `bin`, and `better` candidates in the bins above.
        let (mut better, mut bin) = (0, BINS - 1);
        while bin > 0 && better + (self.bins[bin] as usize) < self.k {
            better += self.bins[bin] as usize;
            bin -= 1;
        }
        let edge = low + ((bin as u32) << shift);
        if !exact && self.bins[bin] as usize <= self.k / 4 {
            self.floor = score(edge);
            self.keep(|order| order >= edge);
            return;
        }
        self.work.clear();
        self.work.extend(orders.iter().filter(|&&order| order >= edge && (order - edge) >> shift == 0));
        let (_, &mut kth, after) = self.work.select_nth_unstable(self.bins[bin] as usize - (self.k - better));
        let above = better + after.iter().filter(|&&order| order > kth).count();
        self.floor = score(kth);
        // Of those that equal the k-th best, the first are the best.
        let mut room = self.k - above;
        self.keep(|order| {
            let equal = order == kth && room > 0;
            room -= usize::from(equal);
            order > kth || equal
        });
    }

    /// Drops the candidates of which `keep` says no.
    #[inline(always)]
    fn keep(&mut self, mut keep: impl FnMut(u32) -> bool) {
        let (orders, positions) = (&mut self.orders[..self.len], &mut self.positions[..self.len]);
        let mut kept = 0;
        for at in 0..orders.len() {
            let (order, position) = (orders[at], positions[at]);
            // Written without a branch, which would be foreseen half of the time.
            (orders[kept], positions[kept]) = (order, position);
            kept += usize::from(keep(order));
        }
        self.len = kept;
    }

    /// The positions of the best `k` (all, if there are fewer), ascending.
    pub fn finish(&mut self) -> impl ExactSizeIterator<Item = u32> {
        if self.len > self.k {
            self.cut(true);
        }
        self.positions[..self.len].iter().copied()
    }

    /// The scores of what [`finish`](Self::finish) gave, in its order. Negative zero has become zero.
    pub fn scores(&self) -> impl ExactSizeIterator<Item = f32> {
        self.orders[..self.len].iter().map(|&order| score(order).unwrap_or(f32::NAN))
    }
}

/// The arguments of [`Candidates::push`].
struct Push<'a> {
    candidates: &'a mut Candidates,
    first: u32,
    scores: &'a [f32],
}

impl Kernel for Push<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller has the features.
        unsafe { self.candidates.take_in::<L>(self.first, self.scores) }
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
        let sets: Vec<Isa> = Isa::ALL.into_iter().filter(|isa| isa.available()).collect();
        let mut candidates = Candidates::new();
        for case in 0..2000 {
            let isa = sets[case / 6 % sets.len()];
            let n = 1 + random(&mut state) as usize % 700;
            let k = 1 + random(&mut state) as usize % 150;
            // From all alike to all different, with zeros of both signs.
            let levels = [1, 2, 5, 50, 1 << 20, 1 << 20][case % 6];
            let scores: Vec<f32> = (0..n)
                .map(|_| {
                    let level = random(&mut state) % levels;
                    let sign = if random(&mut state).is_multiple_of(2) { 1.0 } else { -1.0 };
                    // In the last case a few scores are far away, so that one bin holds nearly all others.
                    let far = case % 6 == 5 && level < 1 << 12;
                    sign * level as f32 * if far { 1e25 } else { 1.0 / 7.0 }
                })
                .collect();
            candidates.begin(k);
            let mut first = 0;
            while first < n {
                let len = (1 + random(&mut state) as usize % 64).min(n - first);
                candidates.push(isa, first as u32, &scores[first..first + len]);
                first += len;
            }
            let found: Vec<u32> = candidates.finish().collect();
            assert_eq!(found, best(&scores, k), "case {case} on {isa}: {k} of {n}, {levels} levels");
            let own: Vec<f32> = found.iter().map(|&position| scores[position as usize]).collect();
            assert_eq!(candidates.scores().collect::<Vec<_>>(), own, "case {case}");
            assert!(candidates.orders.len() <= 2 * 150 + 128, "the scratch is not bounded");
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
            candidates.push(Isa::detect(), 0, &scores);
            assert_eq!(candidates.finish().collect::<Vec<_>>(), expected, "{k}");
        }
    }
}
