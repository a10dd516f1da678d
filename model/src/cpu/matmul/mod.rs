//! Matrix products: `out[m, n] (+)= x[m, k] W[n, k]^T (+ bias[n])`, accumulated in f32.
//!
//! An output element is reduced by one fixed tree, which depends only on k, the type of the weights and the
//! instruction set. It does not depend on the other rows, on the place of its row, on the threads, or on
//! who computes which columns.
//!
//! - AVX-512, AVX2, NEON: one accumulator, one fused multiply-add per input, inputs in ascending order.
//!   All three give the same bits.
//! - Portable: the same chain, but with a rounding after the multiplication as well.
//! - AMX (bf16 only): 32 inputs at a time. Within them there is one chain over the even and one over the
//!   odd inputs, and their sum is added to the accumulator. Denormals count as zero throughout. Other
//!   types take the AVX-512 path.
//!
//! Weights in 8 bits are multiplied with activations in 8 bits by [another rule](crate::cpu::int8), whose bits are the same on every
//! instruction set. If activations stay in f32, the product has the bits of a product with the widened weights in f32.
//!
//! Inputs are padded to a multiple of 32 with zeros, which are part of the chain. Then the bias is added to
//! the sum; with [`Epilogue::Add`] the result is added to what `out` held.
//!
//! Cost: a product of up to 16 rows reads the weights once, at memory speed. With AMX a product of 48 rows
//! takes 1.3 times as long, and from about 100 rows on arithmetic limits the speed.

#[cfg(target_arch = "x86_64")]
mod amx;
pub(super) mod prefetch;
mod widening;

use crate::cpu::buffer::RowsMut;
use crate::cpu::int8;
use crate::cpu::panel::{GROUP, PackedMatrix, TILE, Weights};
use crate::cpu::rows::{Form, PackedRows, TILE_ROWS};
use crate::cpu::team::{Chunks, Team};
use pagedraft_attention::isa::Isa;
use pagedraft_attention::lanes::Lanes;
use std::marker::PhantomData;

/// How many bytes of packed activations a core keeps in L2 while it walks the weights.
const ROWS_AT_HAND: usize = 1_200 << 10;

/// What a product does with what `out` held before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// It is replaced by the result.
    Store,
    /// The result is added to it (a residual).
    Add,
}

/// Where a product writes its result: rows of f32 that begin `stride` values apart.
#[derive(Debug)]
pub struct OutRows<'a> {
    at: *mut f32,
    rows: usize,
    width: usize,
    stride: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

impl<'a> OutRows<'a> {
    /// `rows` rows of `width` values in `out`; row r begins at `r * stride`.
    ///
    /// # Panics
    ///
    /// Panics if rows overlap or leave `out`.
    #[must_use]
    pub fn new(out: &'a mut [f32], rows: usize, width: usize, stride: usize) -> OutRows<'a> {
        let fits = rows == 0 || (stride >= width && out.len() >= (rows - 1) * stride + width);
        assert!(fits, "{rows} rows of {width}, {stride} apart, in {} values", out.len());
        OutRows { at: out.as_mut_ptr(), rows, width, stride, lifetime: PhantomData }
    }
}

impl OutRows<'_> {
    /// `width` columns from column `first` on of the first `rows` rows of a buffer.
    ///
    /// # Panics
    ///
    /// Where they leave the buffer.
    ///
    /// # Safety
    ///
    /// Nobody else uses these columns while the value lives, and the buffer outlives it.
    pub(in crate::cpu) unsafe fn columns<'a>(
        out: RowsMut,
        first: usize,
        rows: usize,
        width: usize,
    ) -> OutRows<'a> {
        assert!(first + width <= out.width() && rows * out.width() <= out.len(), "columns leave the buffer");
        let at = out.as_ptr().wrapping_add(first);
        OutRows { at, rows, width, stride: out.width(), lifetime: PhantomData }
    }
}

// SAFETY: it is a unique borrow of f32, and each part is written by one share.
unsafe impl Send for OutRows<'_> {}
// SAFETY: as above. Only a product's shares read or write through it.
unsafe impl Sync for OutRows<'_> {}

/// A product that the shares of a job compute together.
#[derive(Debug)]
pub struct Product<'a> {
    isa: Isa,
    x: &'a PackedRows,
    w: &'a PackedMatrix,
    bias: Option<&'a [f32]>,
    out: OutRows<'a>,
    epilogue: Epilogue,
    /// How many row tiles or row blocks one item covers. Their activations fit in [`ROWS_AT_HAND`].
    blocks: usize,
    chunks: Chunks,
}

impl<'a> Product<'a> {
    /// The product `out (+)= x W^T (+ bias)`, which `shares` shares of a job are going to compute.
    ///
    /// # Panics
    ///
    /// Panics if shapes disagree, or if `x` is not packed for `isa` and the weights' type.
    #[must_use]
    pub fn new(
        shares: usize,
        isa: Isa,
        x: &'a PackedRows,
        w: &'a PackedMatrix,
        bias: Option<&'a [f32]>,
        out: OutRows<'a>,
        epilogue: Epilogue,
    ) -> Product<'a> {
        assert_eq!(x.k(), w.k(), "inputs");
        assert_eq!((x.m(), w.n()), (out.rows, out.width), "outputs");
        assert_eq!(x.inputs(), w.inputs(), "types");
        assert!(bias.is_none_or(|b| b.len() == w.n()), "bias");
        assert!(isa.available(), "this machine lacks the instruction set {isa}");
        let tiled = isa == Isa::Amx && matches!(w.weights(), Weights::Bf16(_));
        assert_eq!(x.form() == Form::Tiles, tiled, "rows packed for another instruction set");
        let all = x.m().div_ceil(x.block_rows());
        let value = match x.form() {
            Form::Tiles => 2,
            Form::Blocks { .. } => 4,
            Form::Int8 { .. } => 1,
        };
        let bytes = x.block_rows() * w.tiles() * TILE * value;
        // The number is even, because AMX computes two row tiles at a time. All passes over the weights get
        // about as many.
        let most = (ROWS_AT_HAND / bytes.max(1)).max(2) & !1;
        let passes = all.div_ceil(most).max(1);
        let blocks = all.div_ceil(passes).next_multiple_of(2);
        let items = all.div_ceil(blocks.max(1)) * w.groups();
        let chunks = Chunks::new(items, shares, 1);
        Product { isa, x, w, bias, out, epilogue, blocks, chunks }
    }

    /// Does one share of the product. The result is complete when all shares have returned.
    pub fn work(&self) {
        match self.x.form() {
            #[cfg(target_arch = "x86_64")]
            Form::Tiles => self.isa.run(amx::Share { product: self }),
            #[cfg(not(target_arch = "x86_64"))]
            Form::Tiles => {}
            Form::Blocks { .. } => widening::work(self),
            Form::Int8 { .. } => {
                if let Weights::Int8 { weights, .. } = self.w.weights() {
                    int8::work(self, weights);
                }
            }
        }
    }

    /// The activations.
    pub(super) fn rows(&self) -> &PackedRows {
        self.x
    }

    /// How many row tiles or row blocks an item covers at most.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Draws items for a share to do.
    pub(super) fn draw(&self) -> Option<std::ops::Range<usize>> {
        self.chunks.draw()
    }

    /// The group and the row blocks that an item covers.
    #[inline(always)]
    pub(super) fn item(&self, item: usize) -> (usize, std::ops::Range<usize>) {
        let groups = self.w.groups();
        let first = item / groups * self.blocks;
        let all = self.x.m().div_ceil(self.x.block_rows());
        (item % groups, first..(first + self.blocks).min(all))
    }

    /// Writes `rows` rows of sums to the output, starting at row `row` and at the first column of `group`.
    ///
    /// # Safety
    ///
    /// `sums` holds `rows` rows of 32. Nobody else writes these outputs, and the caller has enabled the
    /// features of `L`.
    #[inline(always)]
    pub(super) unsafe fn finish<L: Lanes>(&self, sums: *const f32, row: usize, rows: usize, group: usize) {
        let column = group * GROUP;
        let width = GROUP.min(self.w.n() - column);
        debug_assert!(row + rows <= self.out.rows);
        for r in 0..rows {
            // SAFETY: the row is inside `out`, and so are `width` of its columns from `column` on. The
            // padded copies have 32 values.
            unsafe {
                let sums = sums.add(r * GROUP);
                let out = self.out.at.add((row + r) * self.out.stride + column);
                if width == GROUP {
                    let bias = self.bias.map(|b| b.as_ptr().add(column));
                    finish_row::<L>(sums, bias, self.epilogue, out);
                    continue;
                }
                let (mut padded, mut bias) = ([0.0f32; GROUP], [0.0f32; GROUP]);
                std::ptr::copy_nonoverlapping(out, padded.as_mut_ptr(), width);
                if let Some(b) = self.bias {
                    bias[..width].copy_from_slice(&b[column..]);
                }
                let bias = self.bias.map(|_| bias.as_ptr());
                finish_row::<L>(sums, bias, self.epilogue, padded.as_mut_ptr());
                std::ptr::copy_nonoverlapping(padded.as_ptr(), out, width);
            }
        }
    }
}

#[inline(always)]
unsafe fn finish_row<L: Lanes>(
    sums: *const f32,
    bias: Option<*const f32>,
    epilogue: Epilogue,
    out: *mut f32,
) {
    for at in [0, 16] {
        // SAFETY: the caller passes pointers to 32 values each, and has enabled the features.
        unsafe {
            let mut v = L::load(sums.add(at));
            if let Some(bias) = bias {
                v = v.add(L::load(bias.add(at)));
            }
            if epilogue == Epilogue::Add {
                v = L::load(out.add(at)).add(v);
            }
            v.store(out.add(at));
        }
    }
}

/// Computes `out (+)= x W^T (+ bias)` with the whole team.
///
/// # Panics
///
/// Panics if shapes disagree, or if `x` is not packed for `isa` and the weights' type.
pub fn matmul(
    team: &Team,
    isa: Isa,
    x: &PackedRows,
    w: &PackedMatrix,
    bias: Option<&[f32]>,
    out: OutRows<'_>,
    epilogue: Epilogue,
) {
    let product = Product::new(team.members(), isa, x, w, bias, out, epilogue);
    // A product as small as this takes less time than waking a thread.
    if x.m().div_ceil(TILE_ROWS) * w.bytes() < 64 << 10 {
        product.work();
    } else {
        team.run(&|_, _| product.work());
    }
}

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
