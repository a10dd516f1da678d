//! A tile of latents against 16 heads of one query token.

use super::TILE;
use crate::lanes::{LANES, Lanes};

/// What a group of 16 heads has summed so far, and the query.
#[derive(Clone, Copy)]
pub(crate) struct HeadGroup {
    /// `[width][16 heads]`, 0 in the padding.
    pub q: *const f32,
    /// `[64 entries][16 heads]`: scores, then weights.
    pub weights: *mut f32,
    /// `[16 heads]`.
    pub maxima: *mut f32,
    /// `[16 heads]`: by what earlier sums shrink.
    pub factors: *mut f32,
    /// `[16 heads]`.
    pub sums: *mut f32,
    /// `[16 heads][rank, padded to 16]`.
    pub acc: *mut f32,
    /// Values of a latent.
    pub width: usize,
    /// Values of a latent that are summed, padded to 16.
    pub rank: usize,
    /// Heads that are real.
    pub heads: usize,
    /// What products are multiplied with.
    pub scale: f32,
}

/// The latents of a tile, widened.
pub(crate) struct Latents<'a> {
    /// The first value of each entry.
    pub entries: &'a [*const f32],
}

impl HeadGroup {
    /// Steps 2 to 4 of [`super::reference`]: from scores to weights.
    ///
    /// # Safety
    ///
    /// The pointers are valid for the shapes; the caller has the features of `L`.
    #[inline(always)]
    pub unsafe fn weigh<L: Lanes>(&self, latents: &Latents<'_>) {
        let entries = latents.entries;
        debug_assert!(entries.len() <= TILE);
        // SAFETY: as the caller promises.
        unsafe {
            let mut j = 0;
            while j + 4 <= entries.len() {
                let four = [entries[j], entries[j + 1], entries[j + 2], entries[j + 3]];
                self.score::<L, 4>(&four, j);
                j += 4;
            }
            while j < entries.len() {
                self.score::<L, 1>(&[entries[j]], j);
                j += 1;
            }
            let before = L::load(self.maxima);
            let mut maximum = before;
            for j in 0..entries.len() {
                maximum = maximum.max(L::load(self.weights.add(j * LANES)));
            }
            maximum.store(self.maxima);
            let factor = before.sub(maximum).exp();
            factor.store(self.factors);
            let mut total = L::splat(0.0);
            for j in 0..entries.len() {
                let at = self.weights.add(j * LANES);
                let weight = L::load(at).sub(maximum).exp();
                weight.store(at);
                total = total.add(weight);
            }
            L::load(self.sums).mul_add(factor, total).store(self.sums);
        }
    }

    #[inline(always)]
    unsafe fn score<L: Lanes, const K: usize>(&self, entries: &[*const f32; K], first: usize) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut dots = [L::splat(0.0); K];
            for d in 0..self.width {
                let q = L::load(self.q.add(d * LANES));
                for j in 0..K {
                    dots[j] = q.mul_add(L::splat(*entries[j].add(d)), dots[j]);
                }
            }
            let scale = L::splat(self.scale);
            for (j, &dot) in dots.iter().enumerate() {
                scale.mul(dot).store(self.weights.add((first + j) * LANES));
            }
        }
    }

    /// Step 5: adds the weighted values of the tile.
    ///
    /// # Safety
    ///
    /// As [`weigh`](Self::weigh), which ran before.
    #[inline(always)]
    pub unsafe fn add_values<L: Lanes>(&self, latents: &Latents<'_>) {
        let mut head = 0;
        // SAFETY: as the caller promises.
        unsafe {
            while head + 2 <= self.heads {
                self.add_to_heads::<L, 2>(latents, head);
                head += 2;
            }
            if head < self.heads {
                self.add_to_heads::<L, 1>(latents, head);
            }
        }
    }

    #[inline(always)]
    unsafe fn add_to_heads<L: Lanes, const H: usize>(&self, latents: &Latents<'_>, head: usize) {
        let mut d = 0;
        // SAFETY: as the caller promises.
        unsafe {
            while d + 2 * LANES <= self.rank {
                self.add_block::<L, H, 2>(latents, head, d);
                d += 2 * LANES;
            }
            if d < self.rank {
                self.add_block::<L, H, 1>(latents, head, d);
            }
        }
    }

    /// `G` times 16 values of `H` heads.
    #[inline(always)]
    unsafe fn add_block<L: Lanes, const H: usize, const G: usize>(
        &self,
        latents: &Latents<'_>,
        head: usize,
        d: usize,
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut acc = [[L::splat(0.0); G]; H];
            for (h, acc) in acc.iter_mut().enumerate() {
                let factor = L::splat(*self.factors.add(head + h));
                for (g, acc) in acc.iter_mut().enumerate() {
                    *acc = L::load(self.acc.add((head + h) * self.rank + d + g * LANES)).mul(factor);
                }
            }
            for (j, &entry) in latents.entries.iter().enumerate() {
                let mut values = [L::splat(0.0); G];
                for (g, values) in values.iter_mut().enumerate() {
                    *values = L::load(entry.add(d + g * LANES));
                }
                for (h, acc) in acc.iter_mut().enumerate() {
                    let weight = L::splat(*self.weights.add(j * LANES + head + h));
                    for (g, acc) in acc.iter_mut().enumerate() {
                        *acc = weight.mul_add(values[g], *acc);
                    }
                }
            }
            for (h, acc) in acc.iter().enumerate() {
                for (g, acc) in acc.iter().enumerate() {
                    acc.store(self.acc.add((head + h) * self.rank + d + g * LANES));
                }
            }
        }
    }
}
