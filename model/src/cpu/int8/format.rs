//! How weights of few bits lie in memory.

use super::{BIAS, BLOCK, STEP, STEPS};
use crate::cpu::panel::GROUP;

/// A kind of weights that are multiplied with activations in 8 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// 8 bits, -127..=127, and a scale for 64 inputs. It is what [quantising](super::QuantRow::quantise) gives.
    #[default]
    Int8,
    /// 8 bits, -128..=127, and a scale for 32 inputs: GGUF's Q8_0.
    Int8Halves,
    /// 4 bits, -8..=7, and a scale for 32 inputs: GGUF's Q4_0.
    Int4,
    /// 4 bits, 0..=15, and a scale and a least value for 32 inputs: GGUF's Q4_1 and Q4_K.
    Int4Minima,
}

impl Format {
    /// How many inputs share a scale.
    #[must_use]
    pub fn inputs_a_scale(self) -> usize {
        match self {
            Format::Int8 => BLOCK,
            Format::Int8Halves | Format::Int4 | Format::Int4Minima => BLOCK / 2,
        }
    }

    /// Whether there is a least value beside each scale.
    #[must_use]
    pub fn has_minima(self) -> bool {
        self == Format::Int4Minima
    }

    /// How its blocks are laid out.
    pub(super) const fn layout(self) -> Layout {
        match self {
            Format::Int8 => Layout { bits: 8, bias: BIAS, scales: 1, minima: false },
            Format::Int8Halves => Layout { bits: 8, bias: BIAS, scales: 2, minima: false },
            Format::Int4 => Layout { bits: 4, bias: 8, scales: 2, minima: false },
            Format::Int4Minima => Layout { bits: 4, bias: 0, scales: 2, minima: true },
        }
    }
}

/// The block of a group: 32 outputs x 64 inputs. First come the integers, then the f16 scales of all outputs for the first (and the second)
/// part of the inputs, then their least values. All of them begin at cache lines.
///
/// Integers have a bias added that makes them unsigned. Those of 8 bits lie by step of 4 inputs, then by output, then by input. Of 4 bits, the
/// low halves of the bytes are the first four steps of a part and the high halves its last four.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub bits: usize,
    /// What is added to an integer so that it is stored unsigned.
    pub bias: i32,
    /// How many parts of the inputs have scales of their own.
    pub scales: usize,
    pub minima: bool,
}

/// Bytes of the scales of a group's outputs for one part of the inputs.
pub(super) const SCALES: usize = GROUP * 2;

impl Layout {
    /// Bytes of the integers.
    pub const fn quants(self) -> usize {
        GROUP * BLOCK * self.bits / 8
    }

    /// Bytes of a block.
    pub const fn bytes(self) -> usize {
        self.quants() + self.scales * SCALES * if self.minima { 2 } else { 1 }
    }

    /// Steps of a part.
    pub const fn steps(self) -> usize {
        STEPS / self.scales
    }

    /// Where the scales of a part begin.
    pub const fn scale(self, part: usize) -> usize {
        self.quants() + part * SCALES
    }

    /// Where the least values of a part begin.
    pub const fn minimum(self, part: usize) -> usize {
        self.quants() + (self.scales + part) * SCALES
    }

    /// The byte of input `i` of output `o`, and how far it is shifted there.
    pub fn place(self, i: usize, o: usize) -> (usize, u32) {
        let (step, of_step) = (i / STEP, o * STEP + i % STEP);
        if self.bits == 8 {
            return (step * GROUP * STEP + of_step, 0);
        }
        let (part, step) = (step / self.steps(), step % self.steps());
        let row = part * (self.steps() / 2) + step % (self.steps() / 2);
        (row * GROUP * STEP + of_step, if step < self.steps() / 2 { 0 } else { 4 })
    }
}
