//! The matrix product with `vdpbf16ps`, which multiplies pairs of bf16: of 16 outputs x 2 inputs at a time.
//!
//! The instruction computes `fma(even, even', fma(odd, odd', acc))` for the two inputs of a pair, the odd one first. It takes denormal
//! numbers for zero, and gives zero for a denormal result.

use std::arch::x86_64::*;
use std::cell::Cell;

use super::Product;
use super::prefetch::{Fetch, Prefetching, into_l1, into_l2};
use crate::cpu::panel::{GROUP, TILE, TILE_LEN};
use pagedraft_attention::lanes::{Avx512, LANES};

/// How many bytes of a group's weights are walked at a time if there is more than one row block. They are then still in L1 for the next
/// row block.
const WEIGHTS_AT_HAND: usize = 24 << 10;

/// The most rows of a block: as many as have room for the sums of two panels in the registers.
pub(in crate::cpu) const MOST_ROWS: usize = 12;

/// Bytes of a step: a pair of inputs of 32 outputs.
const STEP: usize = GROUP * 4;

thread_local! {
    /// The sums of a share. The memory is kept from one product to the next.
    static SUMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Does one share of `product`, whose weights are these.
///
/// # Safety
///
/// The machine has AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,f16c,bmi1,bmi2")]
pub(super) unsafe fn work(product: &Product<'_>, weights: &[u16]) {
    let p = product;
    let (tiles, block_rows) = (p.w.tiles(), p.x.block_rows());
    let tile_bytes = TILE_LEN * size_of::<u16>();
    let mut sums = SUMS.take();
    sums.clear();
    sums.resize(p.blocks * block_rows * GROUP, 0.0);
    let how = Prefetching::of_machine();
    while let Some(run) = p.chunks.draw() {
        for item in run {
            let (group, blocks) = p.item(item);
            let w = weights[group * p.w.group_len()..][..tiles * TILE_LEN].as_ptr();
            let at_a_time = if blocks.len() > 1 { WEIGHTS_AT_HAND / tile_bytes } else { tiles };
            sums.fill(0.0);
            let mut tile = 0;
            while tile < tiles {
                let part = at_a_time.min(tiles - tile);
                for (i, block) in blocks.clone().enumerate() {
                    let (x, rows) = p.x.pair_block(block);
                    let sums = sums[i * block_rows * GROUP..].as_mut_ptr();
                    // SAFETY: the block has pairs of `rows` rows from `tile` on, the group has `part` tiles from there, and `sums` has
                    // `rows` rows. The features are enabled.
                    unsafe {
                        let x = x.add(tile * TILE / 2 * rows);
                        let w = w.add(tile * TILE_LEN).cast::<u8>();
                        let fetch = Fetch::of(how, (i, blocks.len()), rows, w, part * tile_bytes);
                        by_rows(rows, x, w, part, sums, fetch);
                    }
                }
                tile += part;
            }
            for (i, block) in blocks.enumerate() {
                let rows = block_rows.min(p.x.m() - block * block_rows);
                let sums = sums[i * block_rows * GROUP..].as_ptr();
                // SAFETY: `sums` has `rows` rows. Only this share computes the item, and the features are enabled.
                unsafe { p.finish::<Avx512>(sums, block * block_rows, rows, group) };
            }
        }
    }
    SUMS.set(sums);
}

/// Continues the sums `[rows][32]` of a row block over `tiles` tiles.
#[inline(always)]
unsafe fn by_rows(rows: usize, x: *const u32, w: *const u8, tiles: usize, sums: *mut f32, fetch: Fetch) {
    macro_rules! rows {
        ($($rows:literal)*) => {
            match rows {
                // SAFETY: as the function's own.
                $($rows => unsafe { panels::<$rows>(x, w, tiles, sums, fetch) },)*
                _ => debug_assert!(rows <= MOST_ROWS, "a block of {rows} rows"),
            }
        };
    }
    rows!(1 2 3 4 5 6 7 8 9 10 11 12);
}

/// Continues the sums of `R` rows. The rows of `sums` are 32 values apart.
// The loops have constant lengths, so that the compiler unrolls them and the sums stay in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn panels<const R: usize>(
    mut x: *const u32,
    mut w: *const u8,
    tiles: usize,
    sums: *mut f32,
    mut fetch: Fetch,
) {
    // SAFETY: the caller passes `tiles` tiles of weights, as many inputs of `R` rows, and `R` rows of sums, and has enabled the features.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); 2]; R];
        for r in 0..R {
            for c in 0..2 {
                acc[r][c] = _mm512_loadu_ps(sums.add(r * GROUP + c * LANES));
            }
        }
        for _ in 0..tiles {
            for i in 0..TILE / 2 {
                match fetch {
                    Fetch::Nothing => {}
                    Fetch::Half(from) => into_l2(from.wrapping_add(i * STEP / 2)),
                    Fetch::All([first, second]) => {
                        into_l1(first.wrapping_add(i * STEP));
                        into_l1(second.wrapping_add(i * STEP + STEP / 2));
                    }
                }
                let b = [0, 64].map(|at| pairs(_mm512_loadu_si512(w.add(i * STEP + at).cast())));
                for r in 0..R {
                    let v = pairs(_mm512_set1_epi32(x.add(r).read() as i32));
                    for c in 0..2 {
                        acc[r][c] = _mm512_dpbf16_ps(acc[r][c], v, b[c]);
                    }
                }
                x = x.add(R);
            }
            let bytes = TILE_LEN * size_of::<u16>();
            w = w.add(bytes);
            fetch = fetch.further(bytes);
        }
        for r in 0..R {
            for c in 0..2 {
                _mm512_storeu_ps(sums.add(r * GROUP + c * LANES), acc[r][c]);
            }
        }
    }
}

/// The bits as pairs of bf16.
#[inline(always)]
unsafe fn pairs(bits: __m512i) -> __m512bh {
    // SAFETY: both types are 64 bytes of plain bits.
    unsafe { std::mem::transmute(bits) }
}
