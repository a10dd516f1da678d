//! The matrix product with AMX tiles.
//!
//! One instruction multiplies 16 x 32 inputs by 32 x 16 weights. The two panels of a group are computed
//! together, and with more than 16 rows also two or three row tiles. Fewer than 16 rows are computed by the
//! same instructions: the tiles are then configured to have fewer rows. Rows of inputs are 64 bytes apart (`row`); rows of weights, whose
//! two panels alternate, and rows of sums are 128 bytes apart (`wide`).

use super::Product;
use crate::cpu::panel::{GROUP, TILE_LEN, Weights};
use crate::cpu::rows::TILE_ROWS;
use pagedraft_attention::isa::Kernel;
use pagedraft_attention::lanes::Lanes;
use std::arch::asm;

/// The 64 bytes that `ldtilecfg` reads.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_a_row: [u16; 16],
    rows: [u8; 16],
}

impl TileConfig {
    /// A configuration for `rows` rows of inputs. Tiles 0 to 3 are sums, and 4 and 5 are inputs (or sums if
    /// there are three row tiles); these have `rows` rows. Tiles 6 and 7 have 16 rows; they hold weights
    /// (or inputs in 7 if there are three row tiles).
    fn with_rows(rows: usize) -> TileConfig {
        let mut config =
            TileConfig { palette: 1, start_row: 0, reserved: [0; 14], bytes_a_row: [0; 16], rows: [0; 16] };
        config.bytes_a_row[..8].fill(64);
        config.rows[..6].fill(rows as u8);
        config.rows[6..8].fill(16);
        config
    }
}

/// Room for the sums of three row tiles.
#[repr(align(64))]
struct Sums([f32; 3 * TILE_ROWS * GROUP]);

/// How many elements ahead of their use weights are prefetched, if they are used once.
const AHEAD: usize = 8 * TILE_LEN;

/// A share of a product.
pub(super) struct Share<'a> {
    pub(super) product: &'a Product<'a>,
}

impl Kernel for Share<'_> {
    type Output = ();
    #[inline(always)]
    unsafe fn run<L: Lanes>(self) {
        let p = self.product;
        let Weights::Bf16(weights) = p.w.weights() else { return };
        let (tiles, m) = (p.w.tiles(), p.x.m());
        if tiles == 0 || m == 0 {
            // SAFETY: there are no inputs, so the sums are zero. The caller has enabled the features.
            return unsafe { finish_zeros::<L>(p) };
        }
        let mut sums = Sums([0.0; 3 * TILE_ROWS * GROUP]);
        let sums = sums.0.as_mut_ptr();
        let config = TileConfig::with_rows(m.min(TILE_ROWS));
        // SAFETY: AMX is available and permitted (`Product::new`), and the configuration is valid.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        while let Some(run) = p.chunks.draw() {
            for item in run {
                let (group, blocks) = p.item(item);
                let w = &weights[group * p.w.group_len()..][..tiles * TILE_LEN];
                // Weights that are used once are prefetched just before their use. Weights that several
                // pairs of row tiles use are prefetched bit by bit, while the group before is computed.
                let pairs = blocks.len().div_ceil(2);
                let mut ahead = w.as_ptr().wrapping_add(if pairs == 1 { AHEAD } else { w.len() });
                if let 3 | 4 = blocks.len() {
                    let row = blocks.start * TILE_ROWS;
                    let x = [0, 1, 2].map(|i| p.x.row_tile(blocks.start + i));
                    // SAFETY: as for the calls below; `sums` has room for three row tiles.
                    unsafe {
                        three_row_tiles(x, w, tiles, sums, w.as_ptr().wrapping_add(AHEAD));
                        p.finish::<L>(sums, row, (m - row).min(3 * TILE_ROWS), group);
                        if blocks.len() == 4 {
                            // The weights are in L2 by now, so the next group's are prefetched instead.
                            let row = row + 3 * TILE_ROWS;
                            one_row_tile(
                                p.x.row_tile(blocks.start + 3),
                                w,
                                tiles,
                                sums,
                                w.as_ptr_range().end,
                            );
                            p.finish::<L>(sums, row, (m - row).min(TILE_ROWS), group);
                        }
                    }
                    continue;
                }
                for block in blocks.clone().step_by(2) {
                    let row = block * TILE_ROWS;
                    let rows = (m - row).min(TILE_ROWS * (blocks.end - block).min(2));
                    let x = p.x.row_tile(block);
                    // SAFETY: the tiles are configured. `w` has `tiles` tiles, and so has each row tile;
                    // `sums` has room for two row tiles. Only this share computes the item, and the caller
                    // has enabled the features.
                    unsafe {
                        if block + 1 < blocks.end {
                            let x = [x, p.x.row_tile(block + 1)];
                            let out = Out {
                                at: p.out.at.wrapping_add(row * p.out.stride + group * GROUP),
                                stride: p.out.stride * size_of::<f32>(),
                            };
                            ahead = match pairs {
                                1 => two_row_tiles::<16, 1024>(x, w, tiles, sums, ahead, out),
                                2 => two_row_tiles::<16, 0>(x, w, tiles, sums, ahead, out),
                                3 | 4 => two_row_tiles::<8, 0>(x, w, tiles, sums, ahead, out),
                                _ => two_row_tiles::<4, 0>(x, w, tiles, sums, ahead, out),
                            };
                        } else {
                            one_row_tile(x, w, tiles, sums, ahead);
                        }
                        p.finish::<L>(sums, row, rows, group);
                    }
                }
            }
        }
        // SAFETY: this returns the tiles to their initial state, so that the kernel need not save them.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// Where the sums of two row tiles will go. These lines are prefetched for writing during the computation.
struct Out {
    at: *mut f32,
    /// How many bytes lie from one row to the next.
    stride: usize,
}

#[inline(always)]
unsafe fn finish_zeros<L: Lanes>(p: &Product<'_>) {
    let zeros = Sums([0.0; 3 * TILE_ROWS * GROUP]);
    while let Some(run) = p.chunks.draw() {
        for item in run {
            let (group, blocks) = p.item(item);
            for block in blocks {
                let row = block * TILE_ROWS;
                let rows = (p.x.m() - row).min(TILE_ROWS);
                // SAFETY: there are 16 rows of zeros. Only this share computes the item, and the caller has
                // enabled the features.
                unsafe { p.finish::<L>(zeros.0.as_ptr(), row, rows, group) };
            }
        }
    }
}

/// Computes the sums of one row tile and a group, `[16][32]`, over `tiles` tiles of inputs.
///
/// Half of the cache lines of each tile of weights are prefetched, from `ahead` on. The processor's own
/// prefetcher recognises a stream and fetches the rest. Prefetching all lines was slower, because they
/// occupy the line buffers of L1.
///
/// # Safety
///
/// The tiles are configured, and the pointers are valid for `tiles` (more than 0) tiles and for the sums.
#[inline(always)]
unsafe fn one_row_tile(x: *const u16, w: &[u16], tiles: usize, sums: *mut f32, ahead: *const u16) {
    // SAFETY: the caller promises what the block needs. Prefetches may point anywhere.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{x} + {row}*1]",
            "tileloadd tmm6, [{w} + {wide}*1]",
            "tileloadd tmm7, [{w} + {wide}*1 + 64]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            ".rept 16",
            "prefetcht1 [{ahead}]",
            "add {ahead}, 64",
            ".endr",
            "add {ahead}, 1024",
            "add {x}, 1024",
            "add {w}, 2048",
            "dec {tiles}",
            "jnz 2b",
            "tilestored [{sums} + {wide}*1], tmm0",
            "tilestored [{sums} + {wide}*1 + 64], tmm1",
            x = inout(reg) x => _,
            w = inout(reg) w.as_ptr() => _,
            tiles = inout(reg) tiles => _,
            ahead = inout(reg) ahead => _,
            row = in(reg) 64usize,
            sums = in(reg) sums,
            wide = in(reg) 128usize,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}

/// Computes the sums of two row tiles and a group, `[32][32]`.
///
/// For each tile of weights it prefetches `LINES` cache lines from `ahead` on and then skips `SKIP` bytes.
/// Returns the address that it has reached.
///
/// # Safety
///
/// As for [`one_row_tile`].
#[inline(always)]
unsafe fn two_row_tiles<const LINES: usize, const SKIP: usize>(
    x: [*mut u16; 2],
    w: &[u16],
    tiles: usize,
    sums: *mut f32,
    mut ahead: *const u16,
    out: Out,
) -> *const u16 {
    // SAFETY: the caller promises what the block needs. Prefetches may point anywhere.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{x0} + {row}*1]",
            "tileloadd tmm6, [{w} + {wide}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w} + {wide}*1 + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{x1} + {row}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            ".rept {lines}",
            "prefetcht1 [{ahead}]",
            "add {ahead}, 64",
            ".endr",
            "add {ahead}, {skip}",
            "prefetchw [{out}]",
            "prefetchw [{out} + 64]",
            "add {out}, {stride}",
            "add {x0}, 1024",
            "add {x1}, 1024",
            "add {w}, 2048",
            "dec {tiles}",
            "jnz 2b",
            "tilestored [{sums} + {wide}*1], tmm0",
            "tilestored [{sums} + {wide}*1 + 64], tmm1",
            "tilestored [{sums} + {wide}*1 + 2048], tmm2",
            "tilestored [{sums} + {wide}*1 + 2112], tmm3",
            x0 = inout(reg) x[0] => _,
            x1 = inout(reg) x[1] => _,
            w = inout(reg) w.as_ptr() => _,
            tiles = inout(reg) tiles => _,
            ahead = inout(reg) ahead,
            lines = const LINES,
            skip = const SKIP,
            out = inout(reg) out.at => _,
            stride = in(reg) out.stride,
            row = in(reg) 64usize,
            sums = in(reg) sums,
            wide = in(reg) 128usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
    ahead
}

/// Computes the sums of three row tiles and a group, `[48][32]`, in one pass over the weights. Half of the
/// cache lines of the weights are prefetched, from `ahead` on. Six of the eight tiles hold sums, so one is
/// left for inputs and one for weights. Each tile of weights is loaded twice, the second time from L1.
///
/// # Safety
///
/// As for [`one_row_tile`].
#[inline(always)]
unsafe fn three_row_tiles(x: [*mut u16; 3], w: &[u16], tiles: usize, sums: *mut f32, ahead: *const u16) {
    // SAFETY: the caller promises what the block needs. Prefetches may point anywhere.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "tilezero tmm4",
            "tilezero tmm5",
            "2:",
            "tileloadd tmm7, [{x0} + {row}*1]",
            "tileloadd tmm6, [{w} + {wide}*1]",
            "tdpbf16ps tmm0, tmm7, tmm6",
            "tileloadd tmm6, [{w} + {wide}*1 + 64]",
            "tdpbf16ps tmm1, tmm7, tmm6",
            "tileloadd tmm7, [{x1} + {row}*1]",
            "tdpbf16ps tmm3, tmm7, tmm6",
            "tileloadd tmm6, [{w} + {wide}*1]",
            "tdpbf16ps tmm2, tmm7, tmm6",
            "tileloadd tmm7, [{x2} + {row}*1]",
            "tdpbf16ps tmm4, tmm7, tmm6",
            "tileloadd tmm6, [{w} + {wide}*1 + 64]",
            "tdpbf16ps tmm5, tmm7, tmm6",
            ".rept 16",
            "prefetcht1 [{ahead}]",
            "add {ahead}, 64",
            ".endr",
            "add {ahead}, 1024",
            "add {x0}, 1024",
            "add {x1}, 1024",
            "add {x2}, 1024",
            "add {w}, 2048",
            "dec {tiles}",
            "jnz 2b",
            "tilestored [{sums} + {wide}*1], tmm0",
            "tilestored [{sums} + {wide}*1 + 64], tmm1",
            "tilestored [{sums} + {wide}*1 + 2048], tmm2",
            "tilestored [{sums} + {wide}*1 + 2112], tmm3",
            "tilestored [{sums} + {wide}*1 + 4096], tmm4",
            "tilestored [{sums} + {wide}*1 + 4160], tmm5",
            x0 = inout(reg) x[0] => _,
            x1 = inout(reg) x[1] => _,
            x2 = inout(reg) x[2] => _,
            w = inout(reg) w.as_ptr() => _,
            tiles = inout(reg) tiles => _,
            ahead = inout(reg) ahead => _,
            row = in(reg) 64usize,
            sums = in(reg) sums,
            wide = in(reg) 128usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
