//! What sparse attention computes, written out slowly: the kernels give these very bits.
//!
//! *The score of a key* is `sum over heads h of (scale * w_h) * max(0, q_h . k)`:
//!
//! 1. Each product `q_h . k` is one chain of multiply-adds over ascending d that starts at 0.
//! 2. Heads 16 apart share a partial sum that starts at 0: one multiply-add each of `scale * w_h` (rounded) and the
//!    product, or 0 where that is negative, over ascending h.
//! 3. The 16 partial sums are added in halves folded onto each other (8, 4, 2, 1).
//!
//! Where keys are stored in fp8 (see [`super::fp8`]), `k` are the stored values and `q_h` those of the query divided by the
//! scale of its head and rounded; `scale * w_h`, rounded, is multiplied with that scale, and the sum in the end with the key's.
//!
//! *The selection* is the k keys of the greatest scores (all, if there are fewer); of equal scores the lowest position is
//! chosen. It is in ascending order.
//!
//! *Attention* of one head over a list of n keys:
//!
//! 1. The list is walked in tiles of 64 entries, the last may have fewer.
//! 2. The score of an entry is `scale * (q . latent)`, the product one chain over ascending d that starts at 0.
//! 3. The running maximum becomes that of itself and the tile's scores, and what was summed so far is multiplied with `exp(old
//!    maximum - new)`, the *factor*.
//! 4. The weight of an entry is `exp(score - maximum)`. A tile's weights are added up one by one from 0; the sum becomes
//!    `sum * factor + tile` (one multiply-add).
//! 5. Each output value is one chain: times the factor, then a multiply-add of weight and latent value for each entry,
//!    ascending.
//! 6. In the end each output value is divided by the sum.

use super::TILE;
use crate::reference::Arithmetic;

const LANES: usize = 16;

/// The positions of the `k` greatest scores, ascending.
#[must_use]
pub fn best(scores: &[f32], k: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..scores.len() as u32).collect();
    // A stable sort leaves equal scores in the order of their positions.
    order.sort_by(|&a, &b| {
        scores[b as usize].partial_cmp(&scores[a as usize]).unwrap_or(std::cmp::Ordering::Equal)
    });
    order.truncate(k);
    order.sort_unstable();
    order
}

impl Arithmetic {
    /// The score of one key: `q` is `[heads, dim]`, `weights` `[heads]`, `key` `[dim]`.
    #[must_use]
    pub fn index_score(self, q: &[f32], weights: &[f32], scale: f32, key: &[f32]) -> f32 {
        let mut sums = [0.0f32; LANES];
        for (h, (q, weight)) in q.chunks_exact(key.len()).zip(weights).enumerate() {
            let mut dot = 0.0;
            for (q, k) in q.iter().zip(key) {
                dot = self.mul_add(*q, *k, dot);
            }
            let sum = &mut sums[h % LANES];
            *sum = self.mul_add(scale * weight, dot.max(0.0), *sum);
        }
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                sums[lane] += sums[lane + half];
            }
            half /= 2;
        }
        sums[0]
    }

    /// The output of one head over a list of keys: the weighted mean of the first `rank` values of their latents.
    /// `latent(j, d)` gives value d of entry j as stored; `q` has as many values as a latent.
    #[must_use]
    pub fn attend_list(
        self,
        q: &[f32],
        rank: usize,
        scale: f32,
        entries: usize,
        latent: impl Fn(usize, usize) -> f32,
    ) -> Vec<f32> {
        let mut out = vec![0.0f32; rank];
        let (mut sum, mut maximum) = (0.0f32, f32::NEG_INFINITY);
        for start in (0..entries).step_by(TILE) {
            let tile = start..entries.min(start + TILE);
            let mut scores = Vec::new();
            for j in tile.clone() {
                let mut dot = 0.0;
                for (d, &q) in q.iter().enumerate() {
                    dot = self.mul_add(q, latent(j, d), dot);
                }
                scores.push(scale * dot);
            }
            let before = maximum;
            maximum = scores.iter().copied().fold(maximum, f32::max);
            let factor = self.exp(before - maximum);
            let weights: Vec<f32> = scores.iter().map(|score| self.exp(score - maximum)).collect();
            let total = weights.iter().fold(0.0, |total, weight| total + weight);
            sum = self.mul_add(sum, factor, total);
            for (d, out) in out.iter_mut().enumerate() {
                *out *= factor;
                for (j, &weight) in tile.clone().zip(&weights) {
                    *out = self.mul_add(weight, latent(j, d), *out);
                }
            }
        }
        out.iter().map(|value| value / sum).collect()
    }
}
