//! A tile of latents against 16 heads of one query token.

use std::ops::Range;

use super::TILE;
use crate::lanes::{LANES, Lanes};

/// Values of the queries that are at hand in the first-level cache (12 KiB) while all entries of a tile are scored.
const AT_HAND: usize = 192;

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
            for start in (0..self.width).step_by(AT_HAND) {
                let values = start..self.width.min(start + AT_HAND);
                let mut j = 0;
                while j + 4 <= entries.len() {
                    let four = [entries[j], entries[j + 1], entries[j + 2], entries[j + 3]];
                    self.multiply::<L, 4>(&four, j, values.clone());
                    j += 4;
                }
                while j < entries.len() {
                    self.multiply::<L, 1>(&[entries[j]], j, values.clone());
                    j += 1;
                }
            }
            let before = L::load(self.maxima);
            let (mut maximum, scale) = (before, L::splat(self.scale));
            for j in 0..entries.len() {
                let at = self.weights.add(j * LANES);
                let score = scale.mul(L::load(at));
                score.store(at);
                maximum = maximum.max(score);
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

    /// Goes on with the products of `K` entries over some values; the first values begin them.
    #[inline(always)]
    unsafe fn multiply<L: Lanes, const K: usize>(
        &self,
        entries: &[*const f32; K],
        first: usize,
        values: Range<usize>,
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut dots = [L::splat(0.0); K];
            if values.start > 0 {
                for (j, dot) in dots.iter_mut().enumerate() {
                    *dot = L::load(self.weights.add((first + j) * LANES));
                }
            }
            for d in values {
                let q = L::load(self.q.add(d * LANES));
                for j in 0..K {
                    dots[j] = q.mul_add(L::splat(*entries[j].add(d)), dots[j]);
                }
            }
            for (j, &dot) in dots.iter().enumerate() {
                dot.store(self.weights.add((first + j) * LANES));
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
        let mut d = 0;
        // The values of a few columns stay in the first-level cache while all heads take them.
        // SAFETY: as the caller promises.
        unsafe {
            while d + 2 * LANES <= self.rank {
                self.add_columns::<L, 2>(latents, d);
                d += 2 * LANES;
            }
            if d < self.rank {
                self.add_columns::<L, 1>(latents, d);
            }
        }
    }

    /// `G` times 16 values of all heads.
    #[inline(always)]
    unsafe fn add_columns<L: Lanes, const G: usize>(&self, latents: &Latents<'_>, d: usize) {
        let mut head = 0;
        // SAFETY: as the caller promises.
        unsafe {
            while head + 2 <= self.heads {
                self.add_block::<L, 2, G>(latents, head, d);
                head += 2;
            }
            if head < self.heads {
                self.add_block::<L, 1, G>(latents, head, d);
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
