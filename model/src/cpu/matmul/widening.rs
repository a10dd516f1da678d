//! The matrix product on vector units: weights are widened to f32, and each output element is one chain of
//! multiply-adds.

use std::cell::Cell;

use super::Product;
use super::prefetch::{Fetch, Prefetching, into_l1, into_l2};
use crate::cpu::int8::{BLOCK, Int8Weights};
use crate::cpu::panel::{GROUP, TILE, TILE_LEN, Weights};
use pagedraft_attention::isa::{Isa, Kernel};
use pagedraft_attention::lanes::{LANES, Lanes};

/// How many bytes of a group's weights are walked at a time if there is more than one row block. They are
/// then still in L1 for the next row block.
const WEIGHTS_AT_HAND: usize = 24 << 10;

/// The most rows of a block.
const MOST_ROWS: usize = 12;

/// Does one share of `product`.
pub(super) fn work(product: &Product<'_>) {
    match product.w.weights() {
        Weights::F32(w) => product.isa.run(Share::<PlainF32> { product, weights: w }),
        Weights::F16(w) => product.isa.run(Share::<PlainF16> { product, weights: w }),
        Weights::Bf16(w) => product.isa.run(Share::<PairedBf16> { product, weights: w }),
        Weights::Int8 { weights, .. } => product.isa.run(WidenedShare { product, weights }),
    }
}

/// How the elements of a tile of weights become lanes.
trait Element {
    /// The type of the stored bits.
    type Raw: Copy;
    /// How many inputs one step of the inner loop covers.
    const INPUTS: usize;
    /// How many elements lie from one panel to the next within a step.
    const PANEL: usize = LANES * Self::INPUTS;
    /// How many bytes a step uses of both panels.
    const STEP: usize = GROUP * Self::INPUTS * size_of::<Self::Raw>();
    /// Loads the weights of 16 outputs for the inputs of a step. If a step covers a single input, both
    /// results are the same.
    ///
    /// # Safety
    ///
    /// `p` is valid for one step, and the caller has enabled the features of `L`.
    unsafe fn load<L: Lanes>(p: *const Self::Raw) -> (L, L);
}

struct PlainF32;
struct PlainF16;
struct PairedBf16;

impl Element for PlainF32 {
    type Raw = f32;
    const INPUTS: usize = 1;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const f32) -> (L, L) {
        // SAFETY: as the trait demands.
        let v = unsafe { L::load(p) };
        (v, v)
    }
}

impl Element for PlainF16 {
    type Raw = u16;
    const INPUTS: usize = 1;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u16) -> (L, L) {
        // SAFETY: as the trait demands.
        let v = unsafe { L::load_f16(p) };
        (v, v)
    }
}

impl Element for PairedBf16 {
    type Raw = u16;
    const INPUTS: usize = 2;
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const u16) -> (L, L) {
        // SAFETY: as the trait demands.
        unsafe { L::load_bf16_pairs(p) }
    }
}

thread_local! {
    /// The sums of a share. The memory is kept from one product to the next.
    static SUMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

struct Share<'a, E: Element> {
    product: &'a Product<'a>,
    weights: &'a [E::Raw],
}

impl<E: Element> Kernel for Share<'_, E> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let p = self.product;
        let (tiles, block_rows) = (p.w.tiles(), p.x.block_rows());
        let tile_bytes = TILE_LEN * size_of::<E::Raw>();
        // The sums of all row blocks of an item. They are kept here because the inputs may be walked in
        // parts.
        let mut sums = SUMS.take();
        sums.clear();
        sums.resize(p.blocks * block_rows * GROUP, 0.0);
        let wide = matches!(p.isa, Isa::Amx | Isa::Avx512);
        let how = Prefetching::of_machine();
        while let Some(run) = p.chunks.draw() {
            for item in run {
                let (group, blocks) = p.item(item);
                let w = self.weights[group * p.w.group_len()..][..tiles * TILE_LEN].as_ptr();
                let at_a_time = if blocks.len() > 1 { WEIGHTS_AT_HAND / tile_bytes } else { tiles };
                sums.fill(0.0);
                let mut tile = 0;
                while tile < tiles {
                    let part = at_a_time.min(tiles - tile);
                    for (i, block) in blocks.clone().enumerate() {
                        let (x, rows) = p.x.row_block(block);
                        let sums = sums[i * block_rows * GROUP..].as_mut_ptr();
                        // SAFETY: the block has `rows` values per input from `tile` on, the group has
                        // `part` tiles from there, and `sums` has `rows` rows. The caller has enabled the
                        // features.
                        unsafe {
                            let x = x.add(tile * TILE * rows);
                            let w = w.add(tile * TILE_LEN);
                            let fetch = Fetch::of(how, (i, blocks.len()), rows, w.cast(), part * tile_bytes);
                            block_product::<L, E>(wide, rows, x, w, part, sums, fetch);
                        }
                    }
                    tile += part;
                }
                for (i, block) in blocks.enumerate() {
                    let rows = block_rows.min(p.x.m() - block * block_rows);
                    let sums = sums[i * block_rows * GROUP..].as_ptr();
                    // SAFETY: `sums` has `rows` rows. Only this share computes the item, and the caller has
                    // enabled the features.
                    unsafe { p.finish::<L>(sums, block * block_rows, rows, group) };
                }
            }
        }
        SUMS.set(sums);
    }
}

/// A share of a product of 8-bit weights with activations in f32. A part of a group's weights is widened to f32 at a time, and then used
/// by all row blocks, so that the result has the bits of a product with the widened matrix.
struct WidenedShare<'a> {
    product: &'a Product<'a>,
    weights: &'a Int8Weights,
}

impl Kernel for WidenedShare<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        const BLOCKS: usize = WEIGHTS_AT_HAND / (BLOCK * GROUP * size_of::<f32>());
        let (p, tiles, block_rows) = (self.product, self.product.w.tiles(), self.product.x.block_rows());
        let mut widened = vec![0.0; BLOCKS * BLOCK * GROUP];
        let mut sums = vec![0.0; p.blocks * block_rows * GROUP];
        let wide = matches!(p.isa, Isa::Amx | Isa::Avx512);
        while let Some(run) = p.chunks.draw() {
            for item in run {
                let (group, row_blocks) = p.item(item);
                sums.fill(0.0);
                for first in (0..self.weights.blocks()).step_by(BLOCKS) {
                    let last = (first + BLOCKS).min(self.weights.blocks());
                    self.weights.widen(group, first..last, &mut widened);
                    // The last block may lie beyond the padding of the inputs, which ends with a tile.
                    let tile = first * (BLOCK / TILE);
                    let part = (last * (BLOCK / TILE)).min(tiles) - tile;
                    for (i, row_block) in row_blocks.clone().enumerate() {
                        let (x, rows) = p.x.row_block(row_block);
                        let sums = sums[i * block_rows * GROUP..].as_mut_ptr();
                        // SAFETY: the block has `rows` values per input from `tile` on, there are `part` tiles of widened weights, and
                        // `sums` has `rows` rows. The caller has enabled the features.
                        unsafe {
                            let x = x.add(tile * TILE * rows);
                            let w = widened.as_ptr();
                            block_product::<L, PlainF32>(wide, rows, x, w, part, sums, Fetch::Nothing);
                        }
                    }
                }
                for (i, row_block) in row_blocks.enumerate() {
                    let rows = block_rows.min(p.x.m() - row_block * block_rows);
                    let sums = sums[i * block_rows * GROUP..].as_ptr();
                    // SAFETY: as in `Share`.
                    unsafe { p.finish::<L>(sums, row_block * block_rows, rows, group) };
                }
            }
        }
    }
}

/// Continues the sums `[rows][32]` of a row block over `tiles` tiles. `wide` says that there are enough
/// registers for two panels of 12 rows at a time.
#[inline(always)]
unsafe fn block_product<L: Lanes, E: Element>(
    wide: bool,
    rows: usize,
    x: *const f32,
    w: *const E::Raw,
    tiles: usize,
    sums: *mut f32,
    fetch: Fetch,
) {
    macro_rules! by_rows {
        ($($rows:literal)*) => {
            match (wide, rows) {
                // SAFETY: as the function's own.
                $((true, $rows) => unsafe { panels::<L, E, $rows, 2>(x, w, tiles, sums, fetch) },)*
                // SAFETY: as the function's own.
                (false, 1) => unsafe { panels::<L, E, 1, 2>(x, w, tiles, sums, fetch) },
                // SAFETY: as the function's own.
                (false, 2) => unsafe { panels::<L, E, 2, 2>(x, w, tiles, sums, fetch) },
                // SAFETY: as the function's own; the second panel lies behind the first.
                (false, 3) => unsafe {
                    panels::<L, E, 3, 1>(x, w, tiles, sums, fetch);
                    panels::<L, E, 3, 1>(x, w.add(E::PANEL), tiles, sums.add(LANES), Fetch::Nothing);
                },
                // SAFETY: as above.
                (false, 4) => unsafe {
                    panels::<L, E, 4, 1>(x, w, tiles, sums, fetch);
                    panels::<L, E, 4, 1>(x, w.add(E::PANEL), tiles, sums.add(LANES), Fetch::Nothing);
                },
                // SAFETY: as above.
                (false, 5) => unsafe {
                    panels::<L, E, 5, 1>(x, w, tiles, sums, fetch);
                    panels::<L, E, 5, 1>(x, w.add(E::PANEL), tiles, sums.add(LANES), Fetch::Nothing);
                },
                // SAFETY: as above.
                (false, 6) => unsafe {
                    panels::<L, E, 6, 1>(x, w, tiles, sums, fetch);
                    panels::<L, E, 6, 1>(x, w.add(E::PANEL), tiles, sums.add(LANES), Fetch::Nothing);
                },
                _ => debug_assert!(rows <= MOST_ROWS, "a block of {rows} rows"),
            }
        };
    }
    by_rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// Continues the sums of `R` rows and `P` panels. The rows of `sums` are 32 values apart.
// The loops have constant lengths, so that the compiler unrolls them and the sums stay in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn panels<L: Lanes, E: Element, const R: usize, const P: usize>(
    mut x: *const f32,
    mut w: *const E::Raw,
    tiles: usize,
    sums: *mut f32,
    mut fetch: Fetch,
) {
    // SAFETY: the caller passes `tiles` tiles of weights, as many inputs of `R` rows, and `R` rows of sums,
    // and has enabled the features.
    unsafe {
        let mut acc = [[L::splat(0.0); P]; R];
        for r in 0..R {
            for c in 0..P {
                acc[r][c] = L::load(sums.add(r * GROUP + c * LANES));
            }
        }
        for _ in 0..tiles {
            let mut step = w;
            for i in 0..TILE / E::INPUTS {
                match fetch {
                    Fetch::Nothing => {}
                    Fetch::Half(from) => into_l2(from.wrapping_add(i * E::STEP / 2)),
                    Fetch::All([first, second]) => {
                        into_l1(first.wrapping_add(i * E::STEP));
                        into_l1(second.wrapping_add(i * E::STEP + E::STEP / 2));
                    }
                }
                let mut b = [(L::splat(0.0), L::splat(0.0)); P];
                for c in 0..P {
                    b[c] = E::load::<L>(step.add(c * E::PANEL));
                }
                for r in 0..R {
                    let v = L::splat(*x.add(r));
                    for c in 0..P {
                        acc[r][c] = v.mul_add(b[c].0, acc[r][c]);
                    }
                }
                if E::INPUTS == 2 {
                    for r in 0..R {
                        let v = L::splat(*x.add(R + r));
                        for c in 0..P {
                            acc[r][c] = v.mul_add(b[c].1, acc[r][c]);
                        }
                    }
                }
                x = x.add(R * E::INPUTS);
                step = step.add(GROUP * E::INPUTS);
            }
            w = w.add(TILE_LEN);
            let bytes = TILE_LEN * size_of::<E::Raw>();
            fetch = match fetch {
                Fetch::Nothing => Fetch::Nothing,
                Fetch::Half(from) => Fetch::Half(from.wrapping_add(bytes)),
                Fetch::All(lines) => Fetch::All(lines.map(|at| at.wrapping_add(bytes))),
            };
        }
        for r in 0..R {
            for c in 0..P {
                acc[r][c].store(sums.add(r * GROUP + c * LANES));
            }
        }
    }
}
