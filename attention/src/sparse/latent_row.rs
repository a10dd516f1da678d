//! Some query tokens of a sequence in up to 16 heads over their lists of keys.

use std::ops::Range;

use super::TILE;
use super::latent_call::{LatentCall, LatentScratch};
use super::latent_tile::{HeadGroup, Latents};
use super::rows::SparseRow;
use super::vector_layer::{VectorDtype, widened};
use crate::isa::Kernel;
use crate::kernel::element::{Bf16, Element, F16, F32};
use crate::kv_layout::KvDtype;
use crate::lanes::{LANES, Lanes};

/// What is done of an item. The bits do not depend on how it is shared: a score is one chain over the values of a latent,
/// and an output value one chain over the entries.
#[derive(Clone, Copy)]
pub(super) enum Stage {
    /// All of it.
    Whole,
    /// The products of the queries with some tiles of entries, which are put at `dots`, `[entries][16 heads]`.
    Dots { part: usize, parts: usize, dots: *mut f32 },
    /// Some columns of the output, from those products.
    Sums { part: usize, parts: usize, dots: *const f32 },
}

/// The most query tokens that share the tiles of their keys: what they sum and their queries stay in the second-level cache (68 KiB each).
pub(super) const BLOCK: usize = 4;

pub(super) struct AttendRows<'a> {
    pub call: &'a LatentCall<'a>,
    /// One row; or up to [`BLOCK`] of one sequence that attend to all keys they see, in ascending order.
    pub rows: &'a [SparseRow],
    /// The list of the last of them, with which those of the others begin.
    pub list: &'a [u32],
    /// The first head.
    pub first: usize,
    pub stage: Stage,
    pub scratch: &'a mut LatentScratch,
}

impl Kernel for AttendRows<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        // SAFETY: the caller has the features; the call was checked when it was made.
        unsafe {
            match self.call.latents.layout().dtype() {
                VectorDtype::Plain(KvDtype::F32) => self.attend::<L, F32>(),
                VectorDtype::Plain(KvDtype::F16) => self.attend::<L, F16>(),
                VectorDtype::Plain(KvDtype::Bf16) => self.attend::<L, Bf16>(),
                // `LatentCall::new` refuses these.
                VectorDtype::Fp8 { .. } => {}
            }
        }
    }
}

/// Part `part` of `parts` of the numbers below `n`.
fn share(n: usize, part: usize, parts: usize) -> Range<usize> {
    part * n / parts..(part + 1) * n / parts
}

impl AttendRows<'_> {
    #[inline(always)]
    unsafe fn attend<L: Lanes, E: Element>(mut self) {
        let mut all_groups = [HeadGroup::NONE; BLOCK];
        let groups = &mut all_groups[..self.rows.len()];
        self.begin(groups);
        let AttendRows { call, rows, list, stage, .. } = self;
        let Some(last) = rows.last() else { return };
        let stride = call.latents.layout().stride();
        let wide = self.scratch.wide.reserve(TILE * stride);
        let table = call.metadata.block_tables.get(last.row as usize).unwrap_or(&[]);
        let (all, columns) = (list.len().div_ceil(TILE), groups[0].rank / LANES);
        let (tiles, summed) = match stage {
            Stage::Whole => (0..all, 0..columns),
            Stage::Dots { part, parts, .. } => (share(all, part, parts), 0..0),
            Stage::Sums { part, parts, .. } => (0..all, share(columns, part, parts)),
        };
        let read = if let Stage::Sums { .. } = stage { summed.clone() } else { 0..stride / LANES };
        let (mut entries, mut next) = ([std::ptr::null(); TILE], [std::ptr::null(); TILE]);
        let mut ahead = list.chunks(TILE).skip(tiles.start + 1);
        for (list, tile) in list.chunks(TILE).skip(tiles.start).zip(tiles) {
            let ahead = ahead.next().unwrap_or(&[]);
            for (&index, next) in ahead.iter().zip(&mut next) {
                *next = call.latents.at(table, index as usize);
            }
            // SAFETY: the list names keys that the row sees, which its table reaches, as the plan has found. There is room
            // for the vectors of a tile, and at `dots` for all entries.
            unsafe {
                for (j, (&index, entry)) in list.iter().zip(&mut entries).enumerate() {
                    let stored = call.latents.at(table, index as usize);
                    *entry = widened::<L, E>(stored, read.clone(), wide.add(j * stride));
                }
                let (entries, next) = (&entries[..list.len()], &next[..ahead.len()]);
                let latents = Latents { entries, next, size: size_of::<E::Raw>() };
                let group = &mut groups[0];
                match stage {
                    Stage::Whole => {
                        // The last row sees most keys. It comes first, and has those of the next tile fetched.
                        for (group, row) in groups.iter().zip(rows).rev() {
                            let seen = (row.visible as usize).saturating_sub(tile * TILE).min(entries.len());
                            if seen == 0 {
                                continue;
                            }
                            let latents = latents.first(seen);
                            group.multiply_all::<L>(&latents);
                            group.weigh::<L>(seen);
                            group.add_values::<L>(&latents, summed.clone());
                        }
                    }
                    Stage::Dots { dots, .. } => {
                        group.weights = dots.add(tile * TILE * LANES);
                        group.multiply_all::<L>(&latents);
                    }
                    Stage::Sums { dots, .. } => {
                        let from = dots.add(tile * TILE * LANES);
                        std::ptr::copy_nonoverlapping(from, group.weights, list.len() * LANES);
                        group.weigh::<L>(list.len());
                        group.add_values::<L>(&latents, summed.clone());
                    }
                }
            }
        }
        for (group, row) in groups.iter().zip(rows) {
            // SAFETY: the caller has the features.
            unsafe { self.write_out::<L>(group, row.token, summed.clone()) };
        }
    }

    /// Writes the output of some groups of 16 columns.
    #[inline(always)]
    unsafe fn write_out<L: Lanes>(&self, group: &HeadGroup, token: u32, columns: Range<usize>) {
        let Self { call, first, .. } = self;
        let rank = call.shape.rank;
        for h in 0..group.heads {
            // SAFETY: the item's own part of `out`; a last partial vector goes through a buffer.
            unsafe {
                let out = call.out.add(token as usize * call.out_stride + (first + h) * rank);
                let sum = L::splat(*group.sums.add(h));
                for d in columns.clone().map(|group| group * LANES) {
                    let values = L::load(group.acc.add(h * group.rank + d)).div(sum);
                    if rank - d >= LANES {
                        values.store(out.add(d));
                    } else {
                        std::ptr::copy_nonoverlapping(values.to_array().as_ptr(), out.add(d), rank - d);
                    }
                }
            }
        }
    }

    /// The state of each row before the first tile, and the queries laid out by value, then head.
    fn begin(&mut self, groups: &mut [HeadGroup]) {
        let Self { call, rows, first, scratch, .. } = self;
        let shape = call.shape;
        let (width, rank) = (call.latents.layout().width(), shape.rank.next_multiple_of(LANES));
        let heads = (shape.heads - *first).min(LANES);
        let weights = scratch.weights.reserve(TILE * LANES);
        let state = scratch.state.reserve(rows.len() * 3 * LANES);
        let (q, acc) =
            (scratch.q.reserve(rows.len() * width * LANES), scratch.acc.reserve(rows.len() * LANES * rank));
        for (i, (group, row)) in groups.iter_mut().zip(*rows).enumerate() {
            let (state, q) = (state.wrapping_add(i * 3 * LANES), q.wrapping_add(i * width * LANES));
            *group = HeadGroup {
                q,
                weights,
                maxima: state,
                factors: state.wrapping_add(LANES),
                sums: state.wrapping_add(2 * LANES),
                acc: acc.wrapping_add(i * LANES * rank),
                width,
                rank,
                heads,
                scale: shape.scale,
            };
            let token = row.token as usize;
            // SAFETY: `new` has found that both parts of q have the row; the buffers were just reserved.
            unsafe {
                std::slice::from_raw_parts_mut(group.maxima, LANES).fill(f32::NEG_INFINITY);
                std::slice::from_raw_parts_mut(group.sums, LANES).fill(0.0);
                std::slice::from_raw_parts_mut(group.acc, LANES * rank).fill(0.0);
                std::slice::from_raw_parts_mut(q, width * LANES).fill(0.0);
                for lane in 0..heads {
                    let h = *first + lane;
                    let absorbed = call.absorbed.row(token).add(h * shape.rank);
                    for d in 0..shape.rank {
                        *q.add(d * LANES + lane) = *absorbed.add(d);
                    }
                    let rotated =
                        call.rotated.row(token).add(h * shape.rotated_stride + shape.rotated_offset);
                    for d in shape.rank..width {
                        *q.add(d * LANES + lane) = *rotated.add(d - shape.rank);
                    }
                }
            }
        }
    }
}
