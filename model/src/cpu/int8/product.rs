//! One share of an 8-bit product.

use std::cell::Cell;
use std::ops::Range;

use super::activations::RowBlock;
use super::format::Layout;
use super::unit::Bytes;
use super::{Format, QuantWeights, STEP};
use crate::cpu::matmul::Product;
use crate::cpu::matmul::prefetch::{Fetch, Prefetching, into_l1, into_l2};
use crate::cpu::panel::GROUP;
use pagedraft_attention::lanes::{LANES, Lanes};

/// How many bytes of a group's weights are walked at a time if there is more than one row block. They are then still in L1 or L2 for the
/// next row block.
const WEIGHTS_AT_HAND: usize = 24 << 10;

/// Bytes of a cache line.
const LINE: usize = 64;

thread_local! {
    /// The sums of a share. The memory is kept from one product to the next.
    static SUMS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Does one share of a product of weights of few bits.
pub(in crate::cpu) fn work(product: &Product<'_>, weights: &QuantWeights) {
    product.rows().int8().unit().run(Share { product, weights });
}

pub(super) struct Share<'a> {
    product: &'a Product<'a>,
    weights: &'a QuantWeights,
}

impl Share<'_> {
    /// # Safety
    ///
    /// The caller has enabled the features of `B` and of `L`.
    #[inline(always)]
    pub unsafe fn run<B: Bytes, L: Lanes>(self) {
        // SAFETY: as the caller's.
        unsafe {
            match self.weights.format() {
                Format::Int8 => self.walk::<B, L, Int8>(),
                Format::Int8Halves => self.walk::<B, L, Int8Halves>(),
                Format::Int4 => self.walk::<B, L, Int4>(),
                Format::Int4Minima => self.walk::<B, L, Int4Minima>(),
            }
        }
    }

    /// # Safety
    ///
    /// Those of [`run`](Self::run); the weights are of format `F`.
    #[inline(always)]
    unsafe fn walk<B: Bytes, L: Lanes, F: Kind>(self) {
        let Share { product: p, weights } = self;
        let (blocks, block_rows, m) = (weights.blocks(), p.rows().block_rows(), p.rows().m());
        let mut sums = SUMS.take();
        sums.clear();
        sums.resize(p.blocks() * block_rows * GROUP, 0.0);
        let how = Prefetching::of_machine();
        let at_hand = WEIGHTS_AT_HAND / F::LAYOUT.bytes();
        while let Some(run) = p.draw() {
            for item in run {
                let (group, row_blocks) = p.item(item);
                let w = weights.bytes()[group * weights.group_len()..][..weights.group_len()].as_ptr();
                let at_a_time = if row_blocks.len() > 1 { at_hand } else { blocks };
                sums.fill(0.0);
                let mut block = 0;
                while block < blocks {
                    let part = at_a_time.min(blocks - block);
                    let here = w.wrapping_add(block * F::LAYOUT.bytes());
                    for (i, row_block) in row_blocks.clone().enumerate() {
                        let first = row_block * block_rows;
                        let x = p.rows().int8().row_block(first, block_rows.min(m - first), p.rows().k());
                        let here_of = (i, row_blocks.len());
                        let fetch = Fetch::of(how, here_of, x.rows, here, part * F::LAYOUT.bytes());
                        let sums = sums[i * block_rows * GROUP..].as_mut_ptr();
                        // SAFETY: the row block has `part` blocks of inputs from `block` on, the group has as many of weights, and `sums`
                        // has a row for each of the row block's. The caller has enabled the features.
                        unsafe { by_rows::<B, F>(x.past_blocks(block), here, part, fetch, sums) };
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

/// A [`Format`] as a type, so that the loops are compiled for each.
trait Kind {
    const LAYOUT: Layout;
}

struct Int8;
struct Int8Halves;
struct Int4;
struct Int4Minima;

impl Kind for Int8 {
    const LAYOUT: Layout = Format::Int8.layout();
}

impl Kind for Int8Halves {
    const LAYOUT: Layout = Format::Int8Halves.layout();
}

impl Kind for Int4 {
    const LAYOUT: Layout = Format::Int4.layout();
}

impl Kind for Int4Minima {
    const LAYOUT: Layout = Format::Int4Minima.layout();
}

/// Continues the sums of a row block over `blocks` blocks of inputs.
#[inline(always)]
unsafe fn by_rows<B: Bytes, F: Kind>(x: RowBlock, w: *const u8, blocks: usize, fetch: Fetch, sums: *mut f32) {
    macro_rules! rows {
        ($panels:literal: $($rows:literal)*) => {
            match x.rows {
                // SAFETY: as the function's own.
                $($rows => unsafe { panels::<B, F, $rows, $panels>(x, w, blocks, fetch, sums) },)*
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

/// Bytes that a step of 4 inputs has in 8 bits, for the 32 outputs of a group.
const STEP_BYTES: usize = GROUP * STEP;
/// Bytes of one panel of it.
const PANEL: usize = LANES * STEP;

/// Continues the sums of `R` rows, `P` panels of 16 outputs at a time. The rows of `sums` are 32 values apart.
// The loops have constant lengths, so that the compiler unrolls them and the sums stay in registers.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn panels<B: Bytes, F: Kind, const R: usize, const P: usize>(
    mut x: RowBlock,
    mut w: *const u8,
    blocks: usize,
    mut fetch: Fetch,
    sums: *mut f32,
) {
    let layout = F::LAYOUT;
    // SAFETY: the caller passes `blocks` blocks of weights and of the inputs of `R` rows, and `R` rows of sums, and has enabled the features.
    unsafe {
        for _ in 0..blocks {
            if let Fetch::All([first, _]) = fetch {
                for line in (layout.quants()..layout.bytes()).step_by(LINE) {
                    into_l1(first.wrapping_add(line));
                }
            }
            for panel in (0..2).step_by(P) {
                for part in 0..layout.scales {
                    let sum_of = |r: usize| {
                        let half = |half: usize| *x.sums.add(half * R + r) as i32;
                        if layout.scales == 1 { half(0) + half(1) } else { half(part) }
                    };
                    let mut acc = [[B::start(0); P]; R];
                    if layout.bias != 0 {
                        for r in 0..R {
                            acc[r] = [B::start(-layout.bias * sum_of(r)); P];
                        }
                    }
                    // A row of the layout is one step in 8 bits, and two in 4 bits.
                    let rows = layout.steps() * layout.bits / 8;
                    let first = part * rows * STEP_BYTES;
                    for row in 0..rows {
                        let ahead = first + row * STEP_BYTES;
                        match fetch {
                            Fetch::Half(from) if panel == 0 => into_l2(from.wrapping_add(ahead / 2)),
                            Fetch::All(lines) if P == 2 => {
                                into_l1(lines[0].wrapping_add(ahead));
                                into_l1(lines[1].wrapping_add(ahead + PANEL));
                            }
                            Fetch::All(lines) => {
                                into_l1(lines[panel].wrapping_add(ahead + panel * PANEL));
                            }
                            Fetch::Half(_) | Fetch::Nothing => {}
                        }
                        let at = w.add(ahead + panel * PANEL);
                        let xs = x.quants.add((part * layout.steps() + row) * R);
                        if layout.bits == 8 {
                            let mut b = [B::weights(at); P];
                            for c in 1..P {
                                b[c] = B::weights(at.add(c * PANEL));
                            }
                            step::<B, R, P>(&mut acc, b, xs);
                        } else {
                            let [low, high] = B::nibbles(at);
                            let (mut b, mut b_high) = ([low; P], [high; P]);
                            for c in 1..P {
                                [b[c], b_high[c]] = B::nibbles(at.add(c * PANEL));
                            }
                            step::<B, R, P>(&mut acc, b, xs);
                            step::<B, R, P>(&mut acc, b_high, xs.add(rows * R));
                        }
                    }
                    for c in 0..P {
                        let first = (panel + c) * LANES;
                        let scales = B::scales(w.add(layout.scale(part)).cast::<u16>().add(first));
                        for r in 0..R {
                            let to = sums.add(r * GROUP + first);
                            B::join(acc[r][c], scales, *x.scales.add(r), to);
                        }
                        if layout.minima {
                            let minima = B::scales(w.add(layout.minimum(part)).cast::<u16>().add(first));
                            for r in 0..R {
                                let to = sums.add(r * GROUP + first);
                                B::raise(minima, *x.scales.add(r) * sum_of(r) as f32, to);
                            }
                        }
                    }
                }
            }
            w = w.add(layout.bytes());
            fetch = fetch.further(layout.bytes());
            x = x.past_blocks(1);
        }
    }
}

/// Adds the products of a step of 4 inputs.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
unsafe fn step<B: Bytes, const R: usize, const P: usize>(
    acc: &mut [[B::Sums; P]; R],
    b: [B::Weights; P],
    x: *const u32,
) {
    // SAFETY: the caller passes 4 inputs of `R` rows, and has enabled the features.
    unsafe {
        for r in 0..R {
            let v = B::inputs(x.add(r));
            for c in 0..P {
                acc[r][c] = B::add(acc[r][c], b[c], v);
            }
        }
    }
}
