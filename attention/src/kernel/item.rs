//! Runs one work item, from reading its queries to writing its output.

use super::AttentionCall;
use super::element::{Bf16, Element, F16, F32};
use super::registers::Registers;
use super::rows::{self, RowBlock};
use super::scratch::AttentionScratch;
use super::tile::{self, GROUPS, Seen, State, TILE, Tile};
use super::work::WorkItem;
use crate::kv_layout::KvDtype;
use crate::lanes::{LANES, Lanes};
use std::ops::Range;

/// Whether a token's key or its value is meant.
#[derive(Clone, Copy)]
enum Part {
    Keys,
    Values,
}

/// The arguments of [`AttentionCall::run_item`].
pub(super) struct RunItem<'a> {
    pub call: &'a AttentionCall<'a>,
    pub item: &'a WorkItem,
    pub scratch: &'a mut AttentionScratch,
}

impl RunItem<'_> {
    /// Computes the item's output and writes it.
    ///
    /// # Safety
    ///
    /// The features of `L` are enabled. The other demands are those of [`AttentionCall::run_item`].
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
            weights: scratch.weights.reserve(padded * TILE),
            factors: scratch.factors.reserve(padded),
            maxima: scratch.maxima.reserve(padded),
            sums: scratch.sums.reserve(padded * LANES),
            acc: scratch.acc.reserve(padded * v_stride),
        };
        let wide_k = scratch.wide_k.reserve(TILE * dim);
        let wide_v = scratch.wide_v.reserve(TILE * v_stride);
        let (from, end) = (item.first_key() as usize, item.last_visible() as usize);
        // SAFETY: `reserve` made room for every part of the state, and q holds the item's rows. A tile
        // reads only the groups from the first visible key's to the last one's; they lie in blocks that the
        // table names and that exist.
        unsafe {
            call.gather_queries(item, group, &blocks, state.q.cast_mut());
            for r in 0..padded {
                *state.maxima.add(r) = f32::NEG_INFINITY;
                L::splat(0.0).store(state.sums.add(r * LANES));
            }
            for at in (0..padded * v_stride).step_by(LANES) {
                L::splat(0.0).store(state.acc.add(at));
            }
            let mut start = from / TILE * TILE;
            while start < end {
                // Later rows see keys further on. The row blocks at the front that see only keys before
                // this tile, and those at the end whose window begins behind it, have nothing to do here.
                let blind = blocks.iter().take_while(|block| block.last_visible as usize <= start).count();
                let ahead = |block: &&RowBlock| block.first_key(0) as usize >= start + TILE;
                let waiting = blocks.iter().rev().take_while(ahead).count();
                let seeing = &blocks[blind..blocks.len() - waiting];
                // All scores of the tile are computed before its first value is read, so that first K and
                // then V stays in the L1 cache for all rows.
                let k = call.tile::<L>(item, Part::Keys, start, from..end, wide_k);
                for (at, block) in seeing.iter().enumerate() {
                    weigh_keys::<L>(&k.of_block(at, seeing.len()), start, block, state, call.scale);
                }
                let v = call.tile::<L>(item, Part::Values, start, from..end, wide_v);
                for (at, block) in seeing.iter().enumerate() {
                    add_values::<L>(&v.of_block(at, seeing.len()), start, block, state);
                }
                start += TILE;
            }
            call.write_out::<L>(item, group, &blocks, state);
        }
        scratch.blocks = blocks;
    }
}

impl AttentionCall<'_> {
    /// The index at which query row `row` of an item starts in a matrix of `stride` values per token.
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
                // SAFETY: the first `count` rows belong to the item; the others are filled with zeroes and
                // not read.
                unsafe {
                    let target = q.add(block.padded * dim + r);
                    for d in 0..dim {
                        *target.add(d * block.size) = if r < block.count { *row.add(d) } else { 0.0 };
                    }
                }
            }
        }
    }

    /// The address at which K or V of the 16 keys from `index` on is stored, or `None` beyond the end of
    /// the table.
    #[inline(always)]
    fn group(&self, item: &WorkItem, part: Part, index: usize) -> Option<*const u8> {
        let layout = self.layer.layout();
        let block_size = layout.block_size() as usize;
        let table = self.metadata.block_tables.get(item.row as usize)?;
        let block = self.layer.block(*table.get(index / block_size)?).cast_const();
        let (head, token) = (item.kv_head as usize, index % block_size);
        let element = match part {
            Part::Keys => layout.k_group(head, token / LANES),
            Part::Values => layout.v_row(head, token),
        };
        Some(block.wrapping_add(element * layout.dtype().size()))
    }

    /// The tile that starts at key `start`, with those of its groups that hold keys of `seen`. A group of
    /// f32 elements is used where it lies; 16-bit elements are widened into `wide`, which has room for one
    /// tile of the part.
    #[inline(always)]
    unsafe fn tile<L: Lanes>(
        &self,
        item: &WorkItem,
        part: Part,
        start: usize,
        seen: Range<usize>,
        wide: *mut f32,
    ) -> Tile {
        // SAFETY: as the caller promises.
        unsafe {
            match self.layer.layout().dtype() {
                KvDtype::F32 => self.tile_of::<L, F32>(item, part, start, seen, wide),
                KvDtype::F16 => self.tile_of::<L, F16>(item, part, start, seen, wide),
                KvDtype::Bf16 => self.tile_of::<L, Bf16>(item, part, start, seen, wide),
            }
        }
    }

    /// Does what [`tile`](Self::tile) does, for a cache whose elements are `E`.
    #[inline(always)]
    unsafe fn tile_of<L: Lanes, E: Element>(
        &self,
        item: &WorkItem,
        part: Part,
        start: usize,
        seen: Range<usize>,
        wide: *mut f32,
    ) -> Tile {
        let (dim, v_stride) = (self.layer.layout().head_dim(), self.layer.layout().v_stride());
        let mut tile = Tile::empty(dim, v_stride, size_of::<E::Raw>());
        let end = seen.end;
        // Groups that lie wholly before the first key seen are skipped, because their blocks may have been
        // freed behind the window.
        let skipped = seen.start.saturating_sub(start) / LANES;
        for g in skipped..(end - start).div_ceil(LANES).min(GROUPS) {
            let index = start + g * LANES;
            let Some(stored) = self.group(item, part, index) else { break };
            let ahead = if index + TILE < end { self.group(item, part, index + TILE) } else { None };
            tile.next[g] = ahead.unwrap_or(stored);
            if size_of::<E::Raw>() == size_of::<f32>() {
                tile.groups[g] = stored.cast();
                continue;
            }
            // Value rows from `end` on may not have been stored yet, so they are not read.
            let (vectors, width) = match part {
                Part::Keys => (dim, dim),
                Part::Values => ((end - index).min(LANES) * v_stride / LANES, v_stride),
            };
            // SAFETY: the group's keys, and its values up to `end`, are stored there.
            tile.groups[g] = unsafe { widen::<L, E>(stored.cast(), vectors, wide.add(g * LANES * width)) };
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
                // SAFETY: this is the item's own part of `out`. A last partial vector is written through a
                // buffer.
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

/// Widens `vectors` vectors of 16 elements to f32, and returns where they were written.
#[inline(always)]
unsafe fn widen<L: Lanes, E: Element>(from: *const E::Raw, vectors: usize, to: *mut f32) -> *const f32 {
    for at in 0..vectors {
        // SAFETY: `tile` has checked both.
        unsafe { E::load::<L>(from.add(at * LANES)).store(to.add(at * LANES)) };
    }
    to.cast_const()
}

impl State {
    /// The part of the state that belongs to the rows of one block.
    #[inline(always)]
    unsafe fn of_block(self, tile: &Tile, block: &RowBlock) -> State {
        // SAFETY: the block's rows are among those that `self` has room for.
        unsafe {
            State {
                q: self.q.add(block.padded * tile.dim),
                weights: self.weights.add(block.padded * TILE),
                maxima: self.maxima.add(block.padded),
                factors: self.factors.add(block.padded),
                sums: self.sums.add(block.padded * LANES),
                acc: self.acc.add(block.padded * tile.v_stride),
            }
        }
    }
}

/// Calls [`tile::weigh_keys`] for one block of rows on the tile that starts at key `start`.
#[inline(always)]
unsafe fn weigh_keys<L: Registers>(k: &Tile, start: usize, block: &RowBlock, state: State, scale: f32) {
    // SAFETY: as the caller promises.
    unsafe {
        let state = state.of_block(k, block);
        if const { L::ROWS >= 8 } && block.size == 8 {
            tile::weigh_keys::<L, 8>(k, state, &Seen::of(block, start), scale);
        } else if const { L::ROWS >= 4 } && block.size == 4 {
            tile::weigh_keys::<L, 4>(k, state, &Seen::of(block, start), scale);
        } else if const { L::ROWS >= 8 } && block.size == 2 {
            tile::weigh_keys::<L, 2>(k, state, &Seen::of(block, start), scale);
        } else {
            tile::weigh_keys::<L, 1>(k, state, &Seen::of(block, start), scale);
        }
    }
}

/// Calls [`tile::add_values`] for one block of rows on the tile that starts at key `start`.
#[inline(always)]
unsafe fn add_values<L: Registers>(v: &Tile, start: usize, block: &RowBlock, state: State) {
    // SAFETY: as the caller promises.
    unsafe {
        let state = state.of_block(v, block);
        if const { L::ROWS >= 8 } && block.size == 8 {
            tile::add_values::<L, 8>(v, state, &Seen::of(block, start));
        } else if const { L::ROWS >= 4 } && block.size == 4 {
            tile::add_values::<L, 4>(v, state, &Seen::of(block, start));
        } else if const { L::ROWS >= 8 } && block.size == 2 {
            tile::add_values::<L, 2>(v, state, &Seen::of(block, start));
        } else {
            tile::add_values::<L, 1>(v, state, &Seen::of(block, start));
        }
    }
}

impl<const R: usize> Seen<R> {
    /// The keys that each row of a block sees in the tile that starts at key `start`.
    #[inline(always)]
    fn of(block: &RowBlock, start: usize) -> Seen<R> {
        let in_tile = |key: u32| (key as usize).saturating_sub(start).min(TILE);
        Seen {
            to: std::array::from_fn(|r| in_tile(block.visible(r))),
            from: match block.windowed() {
                false => [0; R],
                true => std::array::from_fn(|r| in_tile(block.first_key(r))),
            },
        }
    }
}
