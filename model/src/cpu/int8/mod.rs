//! Products of weights of few bits and activations in 8-bit integers.
//!
//! Along k, a matrix `[n, k]` is cut into *blocks* of [`BLOCK`] inputs; the last one may have fewer. Each output has a scale in each block, and
//! so has each row of activations:
//!
//! - A weight is `q * s`, with s the least f16 for which no weight of the block is greater than `127 s`, and q the weight divided by s, rounded to
//!   nearest (ties to even): in -127..=127. Where all weights are 0, so are s and all q. Where one is not finite, or no f16 is large enough, s
//!   is NaN and all q are 0; such a model is refused when it is loaded.
//! - An activation is `q * s` with the f32 `s = m / 127`, where m is the greatest magnitude in the block; q is the activation times
//!   `127 / m`, rounded to nearest (ties to even). Where m is below 2^-100, s and all q are 0. Where a value is not finite, s is NaN, so
//!   that the row's outputs are NaN, and no other row's.
//!
//! The integers of a block are multiplied and added exactly: a sum is at most 64 * 127 * 127, which an f32 holds. The sums of a row and an
//! output are joined in the order of the blocks, each by `acc = fma(f32(sum) * s_weight, s_activation, acc)`, from 0 on, where the product is
//! rounded to f32 before. The result is a function of the row and of the matrix alone: it has the same bits on every instruction set.
//!
//! Integers that a GGUF file stores in few bits are taken [as they are](Format), in parts of 32 inputs (the scales of Q4_K, which are products
//! of an f16 and 6 bits, are rounded to f16); activations keep their blocks of 64. For each part, in order, the sum of its integers is
//! joined as above with the part's own scale. Where there are least values, a weight is `q * s + m`, and right behind the part's join follows
//! `acc = fma(m, s_activation * f32(sum of the activations' integers over the part), acc)`, with the product rounded to f32.
//!
//! Why 64 inputs share a scale: with 32 the conversions of the sums cost a quarter of the multiplications (16 rows take 1.3 times as long),
//! and the scales a sixteenth of the memory; with 128 there is little left to win (5 % at 512 rows), and an outlier among the activations
//! spoils twice as many of its neighbours.

mod activations;
mod format;
mod portable;
mod product;
mod quant_row;
mod unit;
mod weights;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use activations::Int8Rows;
pub use format::Format;
pub(super) use product::work;
pub use quant_row::QuantRow;
pub(crate) use unit::IntegerUnit;
pub(crate) use weights::QuantWeights;

/// How many inputs share a scale.
pub const BLOCK: usize = 64;
/// How many inputs one step of the inner loop multiplies: as many as integer instructions add up in a lane of 32 bits.
const STEP: usize = 4;
/// How many steps a block has.
const STEPS: usize = BLOCK / STEP;
/// What is added to a weight's integer of 8 bits so that it is stored unsigned: the instructions multiply unsigned with signed bytes.
const BIAS: i32 = 128;

#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
