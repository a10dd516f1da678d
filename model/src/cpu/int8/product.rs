//! One share of an 8-bit product.

use std::cell::Cell;
use std::ops::Range;

use super::activations::RowBlock;
use super::unit::Bytes;
use super::weights::BLOCK_BYTES;
use super::{Int8Weights, STEP, STEPS};
use crate::cpu::matmul::Product;
use crate::cpu::matmul::prefetch::into_l1;
use crate::cpu::panel::GROUP;
use pagedraft_attention::lanes::{LANES, Lanes};

/// How many bytes of a group's weights are walked at a time if there is more than one row block. They are then still in L1 or L2 for the
/// next row block.
const WEIGHTS_AT_HAND: usize = 24 << 10;

/// How many bytes ahead of their use weights are prefetched if there is one row block. With all lines prefetched into L1, reading the
/// weights and computing with them overlap: on a Zen 4, 8 rows cost 1.05 of a plain read; with half of the lines fetched into L2, 1.68.
const AHEAD: usize = 4 << 10;

/// Bytes of a cache line.
const LINE: usize = 64;

thread_local! {
    /// The sums of a share. The memory is kept from one product to the next.
    static SUMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Does one share of a product of 8-bit weights.
pub(in crate::cpu) fn work(product: &Product<'_>, weights: &Int8Weights) {
    product.rows().int8().unit().run(Share { product, weights });
}

pub(super) struct Share<'a> {
    product: &'a Product<'a>,
    weights: &'a Int8Weights,
}

impl Share<'_> {
    /// # Safety
    ///
    /// The caller has enabled the features of `B` and of `L`.
    #[inline(always)]
    pub unsafe fn run<B: Bytes, L: Lanes>(self) {
        let Share { product: p, weights } = self;
        let (blocks, block_rows, m) = (weights.blocks(), p.rows().block_rows(), p.rows().m());
        let mut sums = SUMS.take();
        sums.clear();
        sums.resize(p.blocks() * block_rows * GROUP, 0.0);
        let at_hand = WEIGHTS_AT_HAND / BLOCK_BYTES;
        while let Some(run) = p.draw() {
            for item in run {
                let (group, row_blocks) = p.item(item);
                let w = weights.bytes()[group * weights.group_len()..][..weights.group_len()].as_ptr();
                let at_a_time = if row_blocks.len() > 1 { at_hand } else { blocks };
                sums.fill(0.0);
                let mut block = 0;
                while block < blocks {
                    let part = at_a_time.min(blocks - block);
                    let here = w.wrapping_add(block * BLOCK_BYTES);
                    for (i, row_block) in row_blocks.clone().enumerate() {
                        let first = row_block * block_rows;
                        let x = p.rows().int8().row_block(first, block_rows.min(m - first), p.rows().k());
                        let fetch = Fetch::of(row_blocks.len(), i, here, part * BLOCK_BYTES);
                        let sums = sums[i * block_rows * GROUP..].as_mut_ptr();
                        // SAFETY: the row block has `part` blocks of inputs from `block` on, the group has as many of weights, and `sums`
                        // has a row for each of the row block's. The caller has enabled the features.
                        unsafe { by_rows::<B>(x.from_block(block), here, part, fetch, sums) };
                    }
                    block += part;
                }
                self.finish::<L>(&sums, group, row_blocks, block_rows);
            }
        }
        SUMS.set(sums);
    }

    /// Writes the sums of an item to the output.
    #[inline(always)]
    fn finish<L: Lanes>(&self, sums: &[f32], group: usize, row_blocks: Range<usize>, block_rows: usize) {
        for (i, row_block) in row_blocks.enumerate() {
            let first = row_block * block_rows;
            let rows = block_rows.min(self.product.rows().m() - first);
            let sums = sums[i * block_rows * GROUP..][..rows * GROUP].as_ptr();
            // SAFETY: `sums` has `rows` rows. Only this share computes the item, and the caller of `run` has enabled the features.
            unsafe { self.product.finish::<L>(sums, first, rows, group) };
        }
    }
}

/// Which two lines are prefetched in a step; they move on as the weights do. A line that is already there costs nearly nothing.
#[derive(Clone, Copy)]
struct Fetch {
    even: *const u8,
    odd: *const u8,
}

impl Fetch {
    /// For the pass of row block `i` of `row_blocks` over `bytes` bytes of weights from `here` on. The first two passes each fetch half of
    /// the lines of the next part, so that both overlap with reading.
    #[inline(always)]
    fn of(row_blocks: usize, i: usize, here: *const u8, bytes: usize) -> Fetch {
        let next = here.wrapping_add(bytes);
        match (row_blocks, i) {
            (1, _) => Fetch { even: here.wrapping_add(AHEAD), odd: here.wrapping_add(AHEAD + LINE) },
            (_, 0) => Fetch { even: next, odd: here },
            (_, 1) => Fetch { even: here, odd: next.wrapping_add(LINE) },
            _ => Fetch { even: here, odd: here },
        }
    }
}

/// Continues the sums of a row block over `blocks` blocks of inputs.
#[inline(always)]
unsafe fn by_rows<B: Bytes>(x: RowBlock, w: *const u8, blocks: usize, fetch: Fetch, sums: *mut f32) {
    macro_rules! rows {
        ($panels:literal: $($rows:literal)*) => {
            match x.rows {
                // SAFETY: as the function's own.
                $($rows => unsafe { panels::<B, $rows, $panels>(x, w, blocks, fetch, sums) },)*
                other => debug_assert!(false, "a row block of {other} rows"),
            }
        };
    }
    if B::PANELS == 2 {
        rows!(2: 1 2 3 4 5 6 7 8 9 10 11 12);
    } else {
        rows!(1: 1 2 3 4 5 6);
    }
}

/// Continues the sums of `R` rows, `P` panels of 16 outputs at a time. The rows of `sums` are 32 values apart.
// The loops have constant lengths, so that the compiler unrolls them and the sums stay in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn panels<B: Bytes, const R: usize, const P: usize>(
    mut x: RowBlock,
    mut w: *const u8,
    blocks: usize,
    mut fetch: Fetch,
    sums: *mut f32,
) {
    const PANEL: usize = LANES * STEP;
    // SAFETY: the caller passes `blocks` blocks of weights and of the inputs of `R` rows, and `R` rows of sums, and has enabled the features.
    unsafe {
        for _ in 0..blocks {
            let scales = w.add(GROUP * STEP * STEPS).cast::<u16>();
            for panel in (0..2).step_by(P) {
                let mut acc = [[B::zeros(); P]; R];
                let mut xs = x.quants;
                for step in 0..STEPS {
                    let ahead = step * GROUP * STEP;
                    if P == 2 || panel == 0 {
                        into_l1(fetch.even.wrapping_add(ahead));
                    }
                    if P == 2 || panel == 1 {
                        into_l1(fetch.odd.wrapping_add(ahead));
                    }
                    let at = w.add(ahead + panel * PANEL);
                    let mut b = [B::weights(at); P];
                    for c in 1..P {
                        b[c] = B::weights(at.add(c * PANEL));
                    }
                    for r in 0..R {
                        let v = B::inputs(xs.add(r));
                        for c in 0..P {
                            acc[r][c] = B::add(acc[r][c], b[c], v);
                        }
                    }
                    xs = xs.add(R);
                }
                for r in 0..R {
                    let (offset, scale) = (*x.offsets.add(r) as i32, *x.scales.add(r));
                    for c in 0..P {
                        let first = (panel + c) * LANES;
                        B::join(acc[r][c], offset, scales.add(first), scale, sums.add(r * GROUP + first));
                    }
                }
            }
            w = w.add(BLOCK_BYTES);
            fetch.even = fetch.even.wrapping_add(BLOCK_BYTES);
            fetch.odd = fetch.odd.wrapping_add(BLOCK_BYTES);
            x = x.from_block(1);
        }
    }
}
