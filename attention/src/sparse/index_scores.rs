//! The indexer's scores of a few keys, all heads at once.

use crate::lanes::{LANES, LINE, Lanes, prefetch};

/// A query of the indexer as the kernel reads it, heads side by side and padded to a multiple of 16.
#[derive(Clone, Copy)]
pub(crate) struct IndexQuery {
    /// `[dim][padded heads]`, 0 in the padding.
    pub q: *const f32,
    /// `[padded heads]`: the weights times the scale, 0 in the padding.
    pub weights: *const f32,
    /// Heads, padded.
    pub heads: usize,
    /// Values of a head.
    pub dim: usize,
}

impl IndexQuery {
    /// No query.
    pub const NONE: IndexQuery =
        IndexQuery { q: std::ptr::null(), weights: std::ptr::null(), heads: 0, dim: 0 };

    /// The scores of some keys of `dim` values, in the order of the keys. Meanwhile `lines` cache lines of each of the vectors
    /// `next` are prefetched.
    ///
    /// # Safety
    ///
    /// The pointers are valid for the shapes; the caller has the features of `L`.
    #[inline(always)]
    pub unsafe fn score_all<L: Lanes>(
        &self,
        keys: &[*const f32],
        (next, lines): (&[*const u8], usize),
        scores: &mut [f32],
    ) {
        let mut done = 0;
        // SAFETY: as the caller promises.
        unsafe {
            // Six keys of 16 heads fill the registers of AVX2.
            done += self.score_some::<L, 6>(
                &keys[done..],
                (&next[done.min(next.len())..], lines),
                &mut scores[done..],
            );
            done += self.score_some::<L, 4>(
                &keys[done..],
                (&next[done.min(next.len())..], lines),
                &mut scores[done..],
            );
            self.score_some::<L, 1>(&keys[done..], (&[], 0), &mut scores[done..]);
        }
    }

    /// Scores keys `K` at a time while there are so many, and returns how many that were.
    #[inline(always)]
    unsafe fn score_some<L: Lanes, const K: usize>(
        &self,
        keys: &[*const f32],
        (next, lines): (&[*const u8], usize),
        scores: &mut [f32],
    ) -> usize {
        let (keys, _) = keys.as_chunks::<K>();
        let mut next = next.chunks(K);
        for (keys, scores) in keys.iter().zip(scores.as_chunks_mut::<K>().0) {
            for &key in next.next().unwrap_or(&[]) {
                (0..lines).for_each(|line| prefetch(key.wrapping_add(line * LINE)));
            }
            // SAFETY: as the caller promises.
            *scores = unsafe { self.scores::<L, K>(keys) };
        }
        keys.len() * K
    }

    /// The scores of `K` keys of `dim` values.
    ///
    /// # Safety
    ///
    /// The pointers are valid for the shapes; the caller has the features of `L`.
    #[inline(always)]
    unsafe fn scores<L: Lanes, const K: usize>(&self, keys: &[*const f32; K]) -> [f32; K] {
        // SAFETY: as the caller promises.
        unsafe {
            let mut sums = [L::splat(0.0); K];
            for group in (0..self.heads).step_by(LANES) {
                let mut dots = [L::splat(0.0); K];
                for d in 0..self.dim {
                    let q = L::load(self.q.add(d * self.heads + group));
                    for j in 0..K {
                        dots[j] = q.mul_add(L::splat(*keys[j].add(d)), dots[j]);
                    }
                }
                let weights = L::load(self.weights.add(group));
                for j in 0..K {
                    sums[j] = weights.mul_add(dots[j].max(L::splat(0.0)), sums[j]);
                }
            }
            let mut scores = [0.0; K];
            for j in 0..K {
                scores[j] = sums[j].sum();
            }
            scores
        }
    }
}
