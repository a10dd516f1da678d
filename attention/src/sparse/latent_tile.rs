//! A tile of latents against 16 heads of one query token.

use std::ops::Range;

use super::TILE;
use crate::lanes::{LANES, LINE, Lanes, prefetch};

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
    /// Entries of the next tile as stored, which are prefetched meanwhile: no more than `entries`.
    pub next: &'a [*const u8],
    /// Bytes of a stored value.
    pub size: usize,
}

impl Latents<'_> {
    /// The first `count` entries.
    pub fn first(&self, count: usize) -> Latents<'_> {
        let next = &self.next[..count.min(self.next.len())];
        Latents { entries: &self.entries[..count], next, size: self.size }
    }
}

impl HeadGroup {
    /// No heads.
    pub const NONE: HeadGroup = {
        let none = std::ptr::null_mut();
        HeadGroup {
            q: none,
            weights: none,
            maxima: none,
            factors: none,
            sums: none,
            acc: none,
            width: 0,
            rank: 0,
            heads: 0,
            scale: 0.0,
        }
    };

    /// The products of step 2 of [`super::reference`].
    ///
    /// # Safety
    ///
    /// The pointers are valid for the shapes; the caller has the features of `L`.
    #[inline(always)]
    pub unsafe fn multiply_all<L: Lanes>(&self, latents: &Latents<'_>) {
        debug_assert!(latents.entries.len() <= TILE);
        for start in (0..self.width).step_by(AT_HAND) {
            let values = start..self.width.min(start + AT_HAND);
            let mut done = 0;
            // SAFETY: as the caller promises.
            unsafe {
                // Six entries and 16 heads fill the registers of AVX2.
                done += self.multiply_some::<L, 6>(latents, done, &values);
                done += self.multiply_some::<L, 4>(latents, done, &values);
                self.multiply_some::<L, 1>(latents, done, &values);
            }
        }
    }

    /// Steps 2 to 4: from the products of some entries to their weights.
    ///
    /// # Safety
    ///
    /// As [`multiply_all`](Self::multiply_all), which ran before.
    #[inline(always)]
    pub unsafe fn weigh<L: Lanes>(&self, entries: usize) {
        // SAFETY: as the caller promises.
        unsafe {
            let before = L::load(self.maxima);
            let (mut maximum, scale) = (before, L::splat(self.scale));
            for j in 0..entries {
                let at = self.weights.add(j * LANES);
                let score = scale.mul(L::load(at));
                score.store(at);
                maximum = maximum.max(score);
            }
            maximum.store(self.maxima);
            let factor = before.sub(maximum).exp();
            factor.store(self.factors);
            let mut total = L::splat(0.0);
            for j in 0..entries {
                let at = self.weights.add(j * LANES);
                let weight = L::load(at).sub(maximum).exp();
                weight.store(at);
                total = total.add(weight);
            }
            L::load(self.sums).mul_add(factor, total).store(self.sums);
        }
    }

    /// Goes on with the products of the entries from `first` on, `K` at a time while there are so many; returns how many
    /// that were.
    #[inline(always)]
    unsafe fn multiply_some<L: Lanes, const K: usize>(
        &self,
        latents: &Latents<'_>,
        first: usize,
        values: &Range<usize>,
    ) -> usize {
        let (groups, _) = latents.entries[first..].as_chunks::<K>();
        for (i, group) in groups.iter().enumerate() {
            let first = first + i * K;
            let next = latents.next.get(first..first + K).unwrap_or(&[]);
            // SAFETY: as the caller promises.
            unsafe { self.multiply::<L, K>(group, first, values.clone(), (next, latents.size)) };
        }
        groups.len() * K
    }

    /// Goes on with the products of `K` entries over some values; the first values begin them. The same values of the
    /// entries `next` are prefetched.
    #[inline(always)]
    unsafe fn multiply<L: Lanes, const K: usize>(
        &self,
        entries: &[*const f32; K],
        first: usize,
        values: Range<usize>,
        (next, size): (&[*const u8], usize),
    ) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut dots = [L::splat(0.0); K];
            if values.start > 0 {
                for (j, dot) in dots.iter_mut().enumerate() {
                    *dot = L::load(self.weights.add((first + j) * LANES));
                }
            }
            let line = LINE / size;
            for start in values.clone().step_by(line) {
                next.iter().for_each(|entry| prefetch(entry.wrapping_add(start * size)));
                for d in start..values.end.min(start + line) {
                    let q = L::load(self.q.add(d * LANES));
                    for j in 0..K {
                        dots[j] = q.mul_add(L::splat(*entries[j].add(d)), dots[j]);
                    }
                }
            }
            for (j, &dot) in dots.iter().enumerate() {
                dot.store(self.weights.add((first + j) * LANES));
            }
        }
    }

    /// Step 5: adds the weighted values of the tile, some groups of 16 columns.
    ///
    /// # Safety
    ///
    /// As [`weigh`](Self::weigh), which ran before.
    #[inline(always)]
    pub unsafe fn add_values<L: Lanes>(&self, latents: &Latents<'_>, columns: Range<usize>) {
        // Six heads and 16 columns fill the registers of AVX2. The values of a few columns stay in the first-level cache while
        // all heads take them.
        for d in columns.map(|group| group * LANES) {
            let mut head = 0;
            // SAFETY: as the caller promises.
            unsafe {
                head += self.add_heads::<L, 6>(latents, head, d);
                head += self.add_heads::<L, 4>(latents, head, d);
                self.add_heads::<L, 1>(latents, head, d);
            }
        }
    }

    /// 16 values of the heads from `first` on, `H` at a time while there are so many; returns how many that were.
    #[inline(always)]
    unsafe fn add_heads<L: Lanes, const H: usize>(
        &self,
        latents: &Latents<'_>,
        first: usize,
        d: usize,
    ) -> usize {
        let groups = (self.heads - first) / H;
        for i in 0..groups {
            // SAFETY: as the caller promises.
            unsafe { self.add_block::<L, H>(latents, first + i * H, d) };
        }
        groups * H
    }

    /// 16 values of `H` heads.
    #[inline(always)]
    unsafe fn add_block<L: Lanes, const H: usize>(&self, latents: &Latents<'_>, head: usize, d: usize) {
        // SAFETY: as the caller promises.
        unsafe {
            let mut acc = [L::splat(0.0); H];
            for (h, acc) in acc.iter_mut().enumerate() {
                let factor = L::splat(*self.factors.add(head + h));
                *acc = L::load(self.acc.add((head + h) * self.rank + d)).mul(factor);
            }
            for (j, &entry) in latents.entries.iter().enumerate() {
                let values = L::load(entry.add(d));
                let weights = self.weights.add(j * LANES + head);
                for (h, acc) in acc.iter_mut().enumerate() {
                    *acc = L::splat(*weights.add(h)).mul_add(values, *acc);
                }
            }
            for (h, acc) in acc.iter().enumerate() {
                acc.store(self.acc.add((head + h) * self.rank + d));
            }
        }
    }
}
