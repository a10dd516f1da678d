//! The inner loops: some query rows against one tile of keys.
//!
//! Every score is one chain of multiply-adds over d, every weighted sum one chain over keys, whatever
//! else is computed beside it: blocking changes which chains run together, never a chain.
#![allow(clippy::needless_range_loop)] // indices say which register of a block; iterators hide that

use super::registers::Registers;
use crate::lanes::LANES;

/// How many keys a tile has. Tiles are counted from index 0 of the group, whatever the block size.
pub(crate) const TILE: usize = 64;
/// How many groups of 16 keys a tile has.
pub(crate) const GROUPS: usize = TILE / LANES;

/// Where the groups of a tile lie in one of K (16 keys, `[d][16]`) and V (16 value rows), in f32.
pub(crate) struct Tile {
    pub groups: [*const f32; GROUPS],
    /// How many values lie from one row of V to the next.
    pub v_stride: usize,
    pub dim: usize,
    /// What to ask for meanwhile: the same groups of the next tile, as they are stored.
    pub next: [*const u8; GROUPS],
    /// How many bytes an element has in the cache.
    pub size: usize,
}

impl Tile {
    /// A tile whose groups are not filled in yet.
    #[inline(always)]
    pub(crate) fn empty(dim: usize, v_stride: usize, size: usize) -> Tile {
        Tile { groups: [std::ptr::null(); GROUPS], v_stride, dim, next: [std::ptr::null(); GROUPS], size }
    }

    /// The tile as the loops of block `at` of `blocks` see it: each asks for its part of the next tile, line by
    /// line as it goes (a cache's blocks lie anywhere, which the hardware's prefetchers cannot foresee). In one
    /// block's loops all of it would fill the line buffers; what is not its part is there already.
    #[inline(always)]
    pub(crate) fn of_block(&self, at: usize, blocks: usize) -> Tile {
        let next =
            std::array::from_fn(
                |g| {
                    if g * blocks / GROUPS == at { self.next[g] } else { self.groups[g].cast() }
                },
            );
        Tile { next, ..*self }
    }
}

/// Asks for a cache line, whatever the address: no other effect.
#[inline(always)]
fn prefetch(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch never faults.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// The state of R rows that are worked on: `maxima[R]`, `factors[R]`, `sums[R][16]`, `acc[R][v_stride]`,
/// `weights[R][TILE]`, and their queries `q[dim][R]`.
#[derive(Clone, Copy)]
pub(crate) struct State {
    pub q: *const f32,
    pub weights: *mut f32,
    pub maxima: *mut f32,
    pub factors: *mut f32,
    pub sums: *mut f32,
    pub acc: *mut f32,
}

/// The keys of a tile that R rows see: row r those of `from[r] .. to[r]`, none where both are equal. Both
/// ascend, and `from` is 0 in all tiles but those in which some row's window begins.
pub(crate) struct Seen<const R: usize> {
    pub from: [usize; R],
    pub to: [usize; R],
}

/// How many vectors the loops hold beside a block of `rows` rows.
const fn vectors<L: Registers>(rows: usize) -> usize {
    L::VECTORS[3 - rows.ilog2() as usize]
}

/// The weights of a tile's keys for R rows; moves maxima and sums of weights on, and leaves the factors for
/// the sums of values.
///
/// # Safety
///
/// The features of `L` are enabled; `state` has the sizes of R rows; the groups of K that hold keys
/// seen by a row are valid.
#[inline(always)]
pub(crate) unsafe fn weigh_keys<L: Registers, const R: usize>(
    k: &Tile,
    state: State,
    seen: &Seen<R>,
    scale: f32,
) {
    let groups = seen.to[R - 1].div_ceil(LANES);
    // SAFETY: as the caller promises.
    unsafe {
        let mut g = seen.from[0] / LANES;
        while g < groups {
            let s = state.weights.add(g * LANES);
            if const { vectors::<L>(R) == 4 } && groups - g >= 4 {
                g += scores::<L, R, 4>(k, g, state.q, s);
            } else if const { vectors::<L>(R) == 2 } && groups - g >= 2 {
                g += scores::<L, R, 2>(k, g, state.q, s);
            } else {
                g += scores::<L, R, 1>(k, g, state.q, s);
            }
        }
        if seen.from[R - 1] > 0 {
            soften::<L, R, WINDOW>(state, seen, scale);
        } else if seen.to[0] == TILE {
            soften::<L, R, FULL>(state, seen, scale);
        } else {
            soften::<L, R, START>(state, seen, scale);
        }
    }
}

/// Adds a tile's values to R rows with the weights that [`weigh_keys`] gave them.
///
/// # Safety
///
/// As of [`weigh_keys`], and the groups of V that hold keys seen by a row are valid.
#[inline(always)]
pub(crate) unsafe fn add_values<L: Registers, const R: usize>(v: &Tile, state: State, seen: &Seen<R>) {
    // SAFETY: as the caller promises.
    unsafe {
        let row = |r: usize| (state.weights.add(r * TILE), state.acc.add(r * v.v_stride));
        let mut factors: [f32; R] = std::array::from_fn(|r| *state.factors.add(r));
        // All rows share the keys from where the last one's window begins to where the first one's sight ends.
        let begin = seen.from[R - 1];
        let shared = seen.to[0].max(begin);
        if R > 1 && begin > 0 {
            for r in 0..R {
                let (weights, acc) = row(r);
                let end = begin.min(seen.to[r]);
                add_keys::<L, 1>(v, weights, acc, &[factors[r]], seen.from[r], end);
            }
            factors = [1.0; R];
        }
        add_keys::<L, R>(v, state.weights, state.acc, &factors, begin, shared);
        if seen.to[R - 1] > shared {
            for (r, &end) in seen.to.iter().enumerate() {
                let (weights, acc) = row(r);
                add_keys::<L, 1>(v, weights, acc, &[1.0], shared, end);
            }
        }
    }
}

/// Writes the sums of q_d * k_d over ascending d for R rows and N groups of 16 keys, and returns N.
#[inline(always)]
unsafe fn scores<L: Registers, const R: usize, const N: usize>(
    k: &Tile,
    group: usize,
    q: *const f32,
    out: *mut f32,
) -> usize {
    let keys_at: [_; N] = std::array::from_fn(|n| k.groups[group + n]);
    let next: [_; N] = std::array::from_fn(|n| k.next[group + n]);
    // SAFETY: as the caller promises.
    unsafe {
        let mut acc = [[L::splat(0.0); N]; R];
        for d in 0..k.dim {
            let mut keys = [L::splat(0.0); N];
            for n in 0..N {
                keys[n] = L::load(keys_at[n].add(d * LANES));
                prefetch(next[n].wrapping_add(d * LANES * k.size));
            }
            for r in 0..R {
                let query = L::splat(*q.add(d * R + r));
                for n in 0..N {
                    acc[r][n] = query.mul_add(keys[n], acc[r][n]);
                }
            }
        }
        for r in 0..R {
            for n in 0..N {
                acc[r][n].store(out.add(r * TILE + n * LANES));
            }
        }
    }
    N
}

/// All rows see all keys of the tile.
const FULL: u8 = 0;
/// Each row sees some keys from the start of the tile on; one that sees none has seen some before.
const START: u8 = 1;
/// Each row sees some keys anywhere in the tile, or none.
const WINDOW: u8 = 2;

/// Turns scores into weights exp(scale * s - maximum), masked ones into 0; moves maxima and sums on, and
/// leaves what the rows' earlier sums of values are to be multiplied with.
#[inline(always)]
unsafe fn soften<L: Registers, const R: usize, const MASK: u8>(state: State, seen: &Seen<R>, scale: f32) {
    // SAFETY: as the caller promises.
    unsafe {
        let mut fallen = [0.0f32; LANES];
        let mut added = [L::splat(0.0); R];
        for r in 0..R {
            let row = state.weights.add(r * TILE);
            // Of a group: how many of its keys lie before the row's sight, and how many before its end.
            let lanes = |g: usize| {
                let before = |key: usize| key.saturating_sub(g * LANES);
                (if MASK == WINDOW { before(seen.from[r]) } else { 0 }, before(seen.to[r]))
            };
            let sees = |g: usize| MASK == FULL || (lanes(g).1 > 0 && (MASK != WINDOW || lanes(g).0 < LANES));
            let mut s = [L::splat(f32::NEG_INFINITY); GROUPS];
            for (g, s) in s.iter_mut().enumerate() {
                if sees(g) {
                    *s = L::load(row.add(g * LANES)).mul(L::splat(scale));
                }
                if MASK != FULL && sees(g) {
                    *s = s.keep_first(lanes(g).1, f32::NEG_INFINITY);
                }
                if MASK == WINDOW && sees(g) {
                    *s = s.drop_first(lanes(g).0, f32::NEG_INFINITY);
                }
            }
            let before = *state.maxima.add(r);
            let here = s[0].max(s[1]).max(s[2].max(s[3])).max_lane();
            let maximum = if here > before { here } else { before };
            *state.maxima.add(r) = maximum;
            // A row whose window begins behind the tile has no maximum yet: minus infinity less itself is NaN.
            if MASK != WINDOW || seen.from[r] < seen.to[r] {
                fallen[r] = before - maximum;
            }

            let mut p = [L::splat(0.0); GROUPS];
            for g in 0..GROUPS {
                if sees(g) {
                    p[g] = s[g].sub(L::splat(maximum)).exp();
                    if MASK != FULL {
                        p[g] = p[g].keep_first(lanes(g).1, 0.0);
                    }
                    if MASK == WINDOW {
                        p[g] = p[g].drop_first(lanes(g).0, 0.0);
                    }
                    p[g].store(row.add(g * LANES));
                }
            }
            added[r] = p[0].add(p[1]).add(p[2].add(p[3]));
        }
        let factors = L::load(fallen.as_ptr()).exp().to_array();
        for r in 0..R {
            *state.factors.add(r) = factors[r];
            let sums = state.sums.add(r * LANES);
            L::load(sums).mul_add(L::splat(factors[r]), added[r]).store(sums);
        }
    }
}

/// acc = acc * rescale, then + p_j * v_j over keys `from .. to` of the tile, in order.
#[inline(always)]
unsafe fn add_keys<L: Registers, const R: usize>(
    v: &Tile,
    p: *const f32,
    acc: *mut f32,
    rescale: &[f32; R],
    from: usize,
    to: usize,
) {
    let columns = v.v_stride / LANES;
    let mut at = 0;
    while at < columns {
        // SAFETY: as the caller promises.
        at += unsafe {
            if const { vectors::<L>(R) == 4 } && columns - at >= 4 {
                add_columns::<L, R, 4>(v, p, acc, rescale, from, to, at * LANES)
            } else if const { vectors::<L>(R) == 2 } && columns - at >= 2 {
                add_columns::<L, R, 2>(v, p, acc, rescale, from, to, at * LANES)
            } else {
                add_columns::<L, R, 1>(v, p, acc, rescale, from, to, at * LANES)
            }
        };
    }
}

/// Does what [`add_keys`] does for N vectors of columns, and returns N.
#[inline(always)]
unsafe fn add_columns<L: Registers, const R: usize, const N: usize>(
    v: &Tile,
    p: *const f32,
    acc: *mut f32,
    rescale: &[f32; R],
    from: usize,
    to: usize,
    column: usize,
) -> usize {
    // SAFETY: as the caller promises.
    unsafe {
        let mut sums = [[L::splat(0.0); N]; R];
        for r in 0..R {
            for n in 0..N {
                let before = L::load(acc.add(r * v.v_stride + column + n * LANES));
                sums[r][n] = before.mul(L::splat(rescale[r]));
            }
        }
        let mut j = from;
        while j < to {
            let group = j / LANES;
            let end = to.min((group + 1) * LANES);
            let first = (j % LANES) * v.v_stride + column;
            let mut row = v.groups[group].add(first);
            let mut next = v.next[group].wrapping_add(first * v.size);
            while j < end {
                let mut values = [L::splat(0.0); N];
                for n in 0..N {
                    values[n] = L::load(row.add(n * LANES));
                    prefetch(next.wrapping_add(n * LANES * v.size));
                }
                for r in 0..R {
                    let weight = L::splat(*p.add(r * TILE + j));
                    for n in 0..N {
                        sums[r][n] = weight.mul_add(values[n], sums[r][n]);
                    }
                }
                row = row.wrapping_add(v.v_stride);
                next = next.wrapping_add(v.v_stride * v.size);
                j += 1;
            }
        }
        for r in 0..R {
            for n in 0..N {
                sums[r][n].store(acc.add(r * v.v_stride + column + n * LANES));
            }
        }
    }
    N
}
