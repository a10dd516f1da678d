//! The product with AMX tiles.
//!
//! 16 x 32 inputs by 32 x 16 weights an instruction; two panels, and with more than 16 rows two row
//! tiles, at a time. A row alone is computed by the same instructions as in a tile of 16, which is
//! configured to have fewer rows.

use super::Product;
use crate::cpu::memory::Memory;
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
    /// Tiles 0 to 3 sums, 4 and 5 inputs, all of `rows` rows; 6 and 7 weights.
    fn with_rows(rows: usize) -> TileConfig {
        let mut config = TileConfig {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            bytes_a_row: [0; 16],
            rows: [0; 16],
        };
        config.bytes_a_row[..8].fill(64);
        config.rows[..6].fill(rows as u8);
        config.rows[6..8].fill(16);
        config
    }
}

/// Two row tiles of sums.
#[repr(align(64))]
struct Sums([f32; 2 * TILE_ROWS * GROUP]);

/// Tiles of a group that are walked at a time when there are more than two row tiles, so that they
/// are still in L1 for the next two.
const TILES_AT_HAND: usize = 12;
/// Elements by which weights that are read from memory are fetched ahead of their use.
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
            // SAFETY: no inputs: the sums are zero. The caller has the features.
            return unsafe { finish_zeros::<L>(p) };
        }
        let Ok(mut sums) = Memory::<f32>::zeroed(p.blocks * TILE_ROWS * GROUP) else { return };
        let config = TileConfig::with_rows(m.min(TILE_ROWS));
        // SAFETY: AMX is available and permitted (`Product::new`); the configuration is a valid one.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        while let Some(run) = p.chunks.draw() {
            for item in run {
                let (group, blocks) = p.item(item);
                let w = weights[group * p.w.group_len()..][..tiles * TILE_LEN].as_ptr();
                let at_a_time = if blocks.len() > 2 { TILES_AT_HAND } else { tiles };
                // The first two row tiles of a lone pair meet weights that are still in memory: they
                // run ahead of themselves. Otherwise the next group is fetched bit by bit.
                let pairs = blocks.len().div_ceil(2);
                let mut ahead = w.wrapping_add(if pairs == 1 { AHEAD } else { p.w.group_len() });
                let mut tile = 0;
                while tile < tiles {
                    let part = at_a_time.min(tiles - tile);
                    let mut block = blocks.start;
                    while block < blocks.end {
                        let sums = sums[(block - blocks.start) * TILE_ROWS * GROUP..].as_mut_ptr();
                        // SAFETY: tiles are configured; `w` has `tiles` tiles, each row tile as many, and
                        // `sums` room for two row tiles; the item is ours alone.
                        unsafe {
                            let w = w.add(tile * TILE_LEN);
                            let x = p.x.row_tile(block).add(tile * 512).cast_const();
                            if block + 1 < blocks.end {
                                let x = [x, p.x.row_tile(block + 1).add(tile * 512).cast_const()];
                                ahead = match pairs {
                                    1 => two_row_tiles::<32>(x, w, part, sums, tile == 0, ahead),
                                    2 => two_row_tiles::<16>(x, w, part, sums, tile == 0, ahead),
                                    3 | 4 => two_row_tiles::<8>(x, w, part, sums, tile == 0, ahead),
                                    _ => two_row_tiles::<4>(x, w, part, sums, tile == 0, ahead),
                                };
                            } else {
                                one_row_tile::<32>(x, w, part, sums, tile == 0, ahead);
                            }
                        }
                        block += 2;
                    }
                    tile += part;
                }
                let row = blocks.start * TILE_ROWS;
                let rows = (m - row).min(TILE_ROWS * blocks.len());
                // SAFETY: the sums have these rows; the item is ours alone.
                unsafe { p.finish::<L>(sums.as_ptr(), row, rows, group) };
            }
        }
        // SAFETY: gives the tiles back to their initial state, which the kernel need not save.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

#[inline(always)]
unsafe fn finish_zeros<L: Lanes>(p: &Product<'_>) {
    let zeros = Sums([0.0; 2 * TILE_ROWS * GROUP]);
    while let Some(run) = p.chunks.draw() {
        for item in run {
            let (group, blocks) = p.item(item);
            for block in blocks {
                let row = block * TILE_ROWS;
                let rows = (p.x.m() - row).min(TILE_ROWS);
                // SAFETY: 16 rows of zeros; the item is ours alone; the caller has the features.
                unsafe { p.finish::<L>(zeros.0.as_ptr(), row, rows, group) };
            }
        }
    }
}

/// Continues (or, `fresh`, begins) the sums of one row tile and a group, `[16][32]`, over `tiles` tiles
/// of inputs.
///
/// # Safety
///
/// Tiles are configured; the pointers are valid for `tiles` (more than 0) tiles and the sums.
#[inline(always)]
unsafe fn one_row_tile<const LINES: usize>(
    x: *const u16,
    w: *const u16,
    tiles: usize,
    sums: *mut f32,
    fresh: bool,
    mut ahead: *const u16,
) -> *const u16 {
    // SAFETY: as the function's own.
    unsafe {
        asm!(
            "test {fresh}, {fresh}",
            "jnz 4f",
            "tileloadd tmm0, [{sums} + {sums_row}*1]",
            "tileloadd tmm1, [{sums} + {sums_row}*1 + 64]",
            "jmp 2f",
            "4:",
            "tilezero tmm0",
            "tilezero tmm1",
            "2:",
            "tileloadd tmm4, [{x} + {row}*1]",
            "tileloadd tmm6, [{w} + {row}*1]",
            "tileloadd tmm7, [{w} + {row}*1 + 1024]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "add {x}, 1024",
            "add {w}, 2048",
            ".rept {lines}",
            "prefetcht0 [{ahead}]",
            "add {ahead}, 64",
            ".endr",
            "dec {tiles}",
            "jnz 2b",
            "tilestored [{sums} + {sums_row}*1], tmm0",
            "tilestored [{sums} + {sums_row}*1 + 64], tmm1",
            x = inout(reg) x => _,
            w = inout(reg) w => _,
            tiles = inout(reg) tiles => _,
            ahead = inout(reg) ahead,
            lines = const LINES,
            fresh = in(reg) usize::from(fresh),
            row = in(reg) 64usize,
            sums = in(reg) sums,
            sums_row = in(reg) 128usize,
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
    ahead
}

/// Continues (or begins) the sums of two row tiles and a group, `[32][32]`.
///
/// # Safety
///
/// As [`one_row_tile`].
#[inline(always)]
unsafe fn two_row_tiles<const LINES: usize>(
    x: [*const u16; 2],
    w: *const u16,
    tiles: usize,
    sums: *mut f32,
    fresh: bool,
    mut ahead: *const u16,
) -> *const u16 {
    // SAFETY: as the function's own.
    unsafe {
        asm!(
            "test {fresh}, {fresh}",
            "jnz 4f",
            "tileloadd tmm0, [{sums} + {sums_row}*1]",
            "tileloadd tmm1, [{sums} + {sums_row}*1 + 64]",
            "tileloadd tmm2, [{sums} + {sums_row}*1 + 2048]",
            "tileloadd tmm3, [{sums} + {sums_row}*1 + 2112]",
            "jmp 2f",
            "4:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{x0} + {row}*1]",
            "tileloadd tmm6, [{w} + {row}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w} + {row}*1 + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{x1} + {row}*1]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {x0}, 1024",
            "add {x1}, 1024",
            "add {w}, 2048",
            ".rept {lines}",
            "prefetcht0 [{ahead}]",
            "add {ahead}, 64",
            ".endr",
            "dec {tiles}",
            "jnz 2b",
            "tilestored [{sums} + {sums_row}*1], tmm0",
            "tilestored [{sums} + {sums_row}*1 + 64], tmm1",
            "tilestored [{sums} + {sums_row}*1 + 2048], tmm2",
            "tilestored [{sums} + {sums_row}*1 + 2112], tmm3",
            x0 = inout(reg) x[0] => _,
            x1 = inout(reg) x[1] => _,
            w = inout(reg) w => _,
            tiles = inout(reg) tiles => _,
            ahead = inout(reg) ahead,
            lines = const LINES,
            fresh = in(reg) usize::from(fresh),
            row = in(reg) 64usize,
            sums = in(reg) sums,
            sums_row = in(reg) 128usize,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
    ahead
}
