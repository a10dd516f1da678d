//! The inner loops, which compute some query rows against one tile of keys.
//!
//! Every score is one chain of multiply-adds over d, and every weighted sum is one chain over keys,
//! whatever is computed beside it. The blocking decides which chains run together; it never changes a
//! chain.
#![allow(clippy::needless_range_loop)] // indices say which register of a block; iterators hide that

use super::registers::Registers;
use crate::lanes::{LANES, prefetch};

/// How many keys a tile has. Tiles are counted from index 0 of the group, whatever the block size.
pub(crate) const TILE: usize = 64;
/// How many groups of 16 keys a tile has.
pub(crate) const GROUPS: usize = TILE / LANES;

/// The addresses of a tile's groups as f32, either of K (a group is `[d][16]`, 16 keys) or of V (a group is
/// 16 rows of values).
pub(crate) struct Tile {
    pub groups: [*const f32; GROUPS],
    /// The distance from one row of V to the next, in values.
    pub v_stride: usize,
    pub dim: usize,
    /// What to prefetch meanwhile: the same groups of the next tile, in the cache's element type.
    pub next: [*const u8; GROUPS],
    /// The size of an element of the cache, in bytes.
    pub size: usize,
}

impl Tile {
    /// A tile whose groups are not filled in yet.
    #[inline(always)]
    pub(crate) fn empty(dim: usize, v_stride: usize, size: usize) -> Tile {
        Tile { groups: [std::ptr::null(); GROUPS], v_stride, dim, next: [std::ptr::null(); GROUPS], size }
    }

    /// The tile for the loops of row block number `at` of `blocks`. Each row block prefetches its own share
    /// of the next tile, one line at a time as its loops advance, because the blocks of the cache lie
    /// anywhere and the hardware's prefetchers cannot foresee them. Prefetching the whole tile in one row
    /// block's loops would fill the line buffers. Groups outside the share name the current tile, which is
    /// in the cache already.
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

/// The state of R rows that are worked on: `maxima[R]`, `factors[R]`, `sums[R][16]`, `acc[R][v_stride]` and
/// `weights[R][TILE]`, and the rows' queries as `q[dim][R]`.
#[derive(Clone, Copy)]
pub(crate) struct State {
    pub q: *const f32,
    pub weights: *mut f32,
    pub maxima: *mut f32,
    pub factors: *mut f32,
    pub sums: *mut f32,
    pub acc: *mut f32,
}

/// The keys of a tile that each of R rows sees: row r sees the keys `from[r]..to[r]`, counted from the
/// start of the tile, and none if the two are equal. Both ascend with r. `from` is 0 except in a tile in
/// which some row's window begins.
pub(crate) struct Seen<const R: usize> {
    pub from: [usize; R],
    pub to: [usize; R],
}

/// How many vectors of keys or columns the loops hold in registers beside a block of `rows` rows.
const fn vectors<L: Registers>(rows: usize) -> usize {
    L::VECTORS[3 - rows.ilog2() as usize]
}

/// Computes the weights of a tile's keys for R rows. It updates the rows' maxima and sums of weights, and
/// writes to `factors` what their sums of values so far are to be multiplied by.
///
/// # Safety
///
/// The features of `L` are enabled. `state` has the sizes of R rows. Every group of K that holds a key seen
/// by some row is valid.
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
/// As for [`weigh_keys`]; in addition every group of V that holds a key seen by some row is valid.
#[inline(always)]
pub(crate) unsafe fn add_values<L: Registers, const R: usize>(v: &Tile, state: State, seen: &Seen<R>) {
    // SAFETY: as the caller promises.
    unsafe {
        let row = |r: usize| (state.weights.add(r * TILE), state.acc.add(r * v.v_stride));
        let mut factors: [f32; R] = std::array::from_fn(|r| *state.factors.add(r));
        // All rows share the keys from where the last row's window begins up to the last key that the first
        // row sees.
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

/// Writes the dot products of R queries with the keys of N groups of 16, each a sum of q_d * k_d over
/// ascending d. Returns N.
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

/// A mask kind: all rows see all keys of the tile.
const FULL: u8 = 0;
/// A mask kind: each row sees some keys from the start of the tile on. A row that sees none here has seen
/// some in an earlier tile.
const START: u8 = 1;
/// A mask kind: each row sees some keys anywhere in the tile, or none.
const WINDOW: u8 = 2;

/// Turns scores s into weights exp(scale * s - maximum); masked ones become 0. It updates the rows' maxima
/// and sums of weights, and writes to `factors` what their sums of values so far are to be multiplied by.
#[inline(always)]
unsafe fn soften<L: Registers, const R: usize, const MASK: u8>(state: State, seen: &Seen<R>, scale: f32) {
    // SAFETY: as the caller promises.
    unsafe {
        let mut fallen = [0.0f32; LANES];
        let mut added = [L::splat(0.0); R];
        for r in 0..R {
            let row = state.weights.add(r * TILE);
            // How many keys of a group lie before the first key that the row sees, and how many before the
            // end of what it sees.
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
            // A row whose window begins behind this tile may have no maximum yet. Its difference would be
            // minus infinity less itself, which is NaN, so it stays 0.
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

/// acc = acc * rescale, then adds p_j * v_j for the keys `from..to` of the tile, in order.
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
