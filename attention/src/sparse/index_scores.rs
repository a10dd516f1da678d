//! The indexer's scores of a few keys, all heads at once.

use crate::lanes::{LANES, Lanes};

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
    /// The scores of `K` keys of `dim` values.
    ///
    /// # Safety
    ///
    /// The pointers are valid for the shapes; the caller has the features of `L`.
    #[inline(always)]
    pub unsafe fn scores<L: Lanes, const K: usize>(&self, keys: &[*const f32; K]) -> [f32; K] {
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
