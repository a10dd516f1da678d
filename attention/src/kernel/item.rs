//! One item of work, from its queries to its output.

use super::AttentionCall;
use super::element::{Bf16, Element, F16, F32};
use super::registers::Registers;
use super::rows::{self, RowBlock};
use super::scratch::AttentionScratch;
use super::tile::{GROUPS, State, TILE, Tile, add_tile};
use super::work::WorkItem;
use crate::kv_layout::KvDtype;
use crate::lanes::{LANES, Lanes};

/// The arguments of [`AttentionCall::run_item`].
pub(super) struct RunItem<'a> {
    pub call: &'a AttentionCall<'a>,
    pub item: &'a WorkItem,
    pub scratch: &'a mut AttentionScratch,
}

impl RunItem<'_> {
    /// Runs the item.
    ///
    /// # Safety
    ///
    /// The features of `L` are enabled; otherwise as [`AttentionCall::run_item`].
    #[inline(always)]
    pub(super) unsafe fn attend<L: Registers>(self) {
        let RunItem { call, item, scratch } = self;
        let layout = *call.layer.layout();
        let (dim, v_stride) = (layout.head_dim(), layout.v_stride());
        let group = call.work.heads / layout.kv_heads();
        let mut blocks = std::mem::take(&mut scratch.blocks);
        let padded = rows::cut(item, group, L::ROWS, &mut blocks);
        let state = State {
            q: scratch.q.reserve(padded * dim),
            weights: scratch.weights.reserve(L::ROWS * TILE),
            maxima: scratch.maxima.reserve(padded),
            sums: scratch.sums.reserve(padded * LANES),
            acc: scratch.acc.reserve(padded * v_stride),
        };
        let wide = (scratch.wide_k.reserve(TILE * dim), scratch.wide_v.reserve(TILE * v_stride));
        let end = item.last_visible() as usize;
        // SAFETY: `reserve` made room; q has the item's rows; the groups of a tile are those of blocks
        // that the table names and that exist, read up to the last visible key's group.
        unsafe {
            call.gather_queries(item, group, &blocks, state.q.cast_mut());
            for r in 0..padded {
                *state.maxima.add(r) = f32::NEG_INFINITY;
                L::splat(0.0).store(state.sums.add(r * LANES));
            }
            for at in (0..padded * v_stride).step_by(LANES) {
                L::splat(0.0).store(state.acc.add(at));
            }
            let mut start = 0;
            while start < end {
                let tile = match layout.dtype() {
                    KvDtype::F32 => call.tile::<L, F32>(item, start, end, wide),
                    KvDtype::F16 => call.tile::<L, F16>(item, start, end, wide),
                    KvDtype::Bf16 => call.tile::<L, Bf16>(item, start, end, wide),
                };
                add_tile_to_all::<L>(&tile, start, &blocks, state, call.scale);
                start += TILE;
            }
            call.write_out::<L>(item, group, &blocks, state);
        }
        scratch.blocks = blocks;
    }
}

impl AttentionCall<'_> {
    /// Where query row `row` of an item starts in a matrix of `stride` values a token.
    #[inline(always)]
    fn element(&self, item: &WorkItem, group: usize, row: usize, stride: usize) -> usize {
        let head = item.kv_head as usize * group + row % group;
        (item.token as usize + row / group) * stride + head * self.layer.layout().head_dim()
    }

    #[inline(always)]
    unsafe fn gather_queries(&self, item: &WorkItem, group: usize, blocks: &[RowBlock], q: *mut f32) {
        let dim = self.layer.layout().head_dim();
        for block in blocks {
            for r in 0..block.size {
                let row =
                    self.q.row(0).wrapping_add(self.element(item, group, block.first + r, self.q.stride()));
                // SAFETY: the first `count` rows are the item's; the others are filled with zeroes.
                unsafe {
                    let target = q.add(block.padded * dim + r);
                    for d in 0..dim {
                        *target.add(d * block.size) = if r < block.count { *row.add(d) } else { 0.0 };
                    }
                }
            }
        }
    }

    /// Where the 16 keys and values from `index` on are stored, as bytes.
    #[inline(always)]
    fn group(&self, item: &WorkItem, index: usize) -> Option<(*const u8, *const u8)> {
        let layout = self.layer.layout();
        let (block_size, size) = (layout.block_size() as usize, layout.dtype().size());
        let table = self.metadata.block_tables.get(item.row as usize)?;
        let block = self.layer.block(*table.get(index / block_size)?).cast_const();
        let (head, token) = (item.kv_head as usize, index % block_size);
        let k = block.wrapping_add(layout.k_group(head, token / LANES) * size);
        Some((k, block.wrapping_add(layout.v_row(head, token) * size)))
    }

    /// The groups of the tile from key `start` on that hold keys before `end`: where they lie, or
    /// (16-bit elements) widened into `wide`, which has room for a tile of K and of V.
    #[inline(always)]
    unsafe fn tile<L: Lanes, E: Element>(
        &self,
        item: &WorkItem,
        start: usize,
        end: usize,
        wide: (*mut f32, *mut f32),
    ) -> Tile {
        let (dim, v_stride) = (self.layer.layout().head_dim(), self.layer.layout().v_stride());
        let mut tile = Tile::empty(dim, v_stride, size_of::<E::Raw>());
        for g in 0..(end - start).div_ceil(LANES).min(GROUPS) {
            let index = start + g * LANES;
            let Some((k, v)) = self.group(item, index) else { break };
            let ahead = if index + TILE < end { self.group(item, index + TILE) } else { None };
            (tile.next_k[g], tile.next_v[g]) = ahead.unwrap_or((k, v));
            if size_of::<E::Raw>() == size_of::<f32>() {
                (tile.k[g], tile.v[g]) = (k.cast(), v.cast());
                continue;
            }
            let rows = (end - index).min(LANES);
            // SAFETY: the group's keys, and its values up to `end`, are stored there.
            unsafe {
                tile.k[g] = widen::<L, E>(k.cast(), dim, wide.0.add(g * LANES * dim));
                tile.v[g] =
                    widen::<L, E>(v.cast(), rows * v_stride / LANES, wide.1.add(g * LANES * v_stride));
            }
        }
        tile
    }

    #[inline(always)]
    unsafe fn write_out<L: Lanes>(&self, item: &WorkItem, group: usize, blocks: &[RowBlock], state: State) {
        let layout = self.layer.layout();
        let (dim, v_stride) = (layout.head_dim(), layout.v_stride());
        for block in blocks {
            for r in 0..block.count {
                let out = self.element(item, group, block.first + r, self.out_stride);
                // SAFETY: the item's own part of `out`; a last partial vector goes through a buffer.
                unsafe {
                    let row = block.padded + r;
                    let sum = L::splat(L::load(state.sums.add(row * LANES)).sum());
                    let mut d = 0;
                    while d < dim {
                        let n = (dim - d).min(LANES);
                        let quotients = L::load(state.acc.add(row * v_stride + d)).div(sum);
                        if n == LANES {
                            quotients.store(self.out.add(out + d));
                        } else {
                            let values = quotients.to_array();
                            std::ptr::copy_nonoverlapping(values.as_ptr(), self.out.add(out + d), n);
                        }
                        d += LANES;
                    }
                }
            }
        }
    }
}

/// Widens `vectors` times 16 elements to f32, and returns where they went.
#[inline(always)]
unsafe fn widen<L: Lanes, E: Element>(from: *const E::Raw, vectors: usize, to: *mut f32) -> *const f32 {
    for at in 0..vectors {
        // SAFETY: `tile` has checked both.
        unsafe { E::load::<L>(from.add(at * LANES)).store(to.add(at * LANES)) };
    }
    to.cast_const()
}

/// Adds the tile of keys from `start` on to every block of rows that sees any of them.
#[inline(always)]
unsafe fn add_tile_to_all<L: Registers>(
    tile: &Tile,
    start: usize,
    blocks: &[RowBlock],
    state: State,
    scale: f32,
) {
    // The first block's loops ask for the next tile line by line as they go (blocks lie anywhere, which
    // the hardware's prefetchers cannot foresee); the others ask for what is there already.
    let asked = Tile { next_k: tile.k.map(|k| k.cast()), next_v: tile.v.map(|v| v.cast()), size: 4, ..*tile };
    let mut tile = tile;
    for block in blocks {
        if block.last_visible as usize <= start {
            continue;
        }
        // SAFETY: the block's rows are among those that `state` has room for.
        unsafe {
            let state = State {
                q: state.q.add(block.padded * tile.dim),
                maxima: state.maxima.add(block.padded),
                sums: state.sums.add(block.padded * LANES),
                acc: state.acc.add(block.padded * tile.v_stride),
                ..state
            };
            if const { L::ROWS >= 8 } && block.size == 8 {
                add_tile::<L, 8>(tile, state, &seen(block, start), scale);
            } else if const { L::ROWS >= 4 } && block.size == 4 {
                add_tile::<L, 4>(tile, state, &seen(block, start), scale);
            } else if const { L::ROWS >= 8 } && block.size == 2 {
                add_tile::<L, 2>(tile, state, &seen(block, start), scale);
            } else {
                add_tile::<L, 1>(tile, state, &seen(block, start), scale);
            }
        }
        tile = &asked;
    }
}

/// How many keys of the tile each row of a block sees.
#[inline(always)]
fn seen<const R: usize>(block: &RowBlock, start: usize) -> [usize; R] {
    std::array::from_fn(|r| (block.visible(r) as usize).saturating_sub(start).min(TILE))
}
