//! Rows of a GGUF file as weights of few bits that products take as they are.

use half::f16;

use super::dequantise::scale_and_minimum;
use super::ggml_type::GgmlType;
use crate::cpu::int8::{Format, QuantRow};

impl GgmlType {
    /// The format in which products compute with weights of this type; `None` where they have to be widened first.
    #[must_use]
    pub const fn format(self) -> Option<Format> {
        match self {
            GgmlType::Q8_0 => Some(Format::Int8Halves),
            GgmlType::Q4_0 => Some(Format::Int4),
            GgmlType::Q4_1 | GgmlType::Q4K => Some(Format::Int4Minima),
            GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 | GgmlType::Q6K => None,
        }
    }

    /// Makes `to` the row of these blocks, in the type's [format](Self::format). Returns whether it has one.
    ///
    /// Integers are taken as they are. Scales and least values of Q8_0, Q4_0 and Q4_1 are exact; those of Q4_K are products of an f16 and
    /// 6 bits, and are rounded to f16.
    pub fn take(self, blocks: &[u8], to: &mut QuantRow) -> bool {
        let Some(format) = self.format() else { return false };
        to.clear(format);
        let half = |two: &[u8]| f16::from_le_bytes([two[0], two[1]]);
        for block in blocks.chunks_exact(self.block_bytes()) {
            match self {
                GgmlType::Q8_0 => {
                    to.add(block[2..].iter().map(|&byte| byte as i8), half(block), f16::ZERO);
                }
                GgmlType::Q4_0 => {
                    to.add(nibbles(&block[2..]).map(|q| q - 8), half(block), f16::ZERO);
                }
                GgmlType::Q4_1 => to.add(nibbles(&block[4..]), half(block), half(&block[2..])),
                GgmlType::Q4K => {
                    let (d, m) = (half(block).to_f32(), half(&block[2..]).to_f32());
                    for (pair, quants) in block[16..].chunks_exact(32).enumerate() {
                        for high in [0, 1] {
                            let (scale, minimum) = scale_and_minimum(&block[4..16], 2 * pair + high);
                            let quants = quants.iter().map(|&byte| (byte >> (4 * high) & 15) as i8);
                            to.add(quants, f16::from_f32(d * scale), f16::from_f32(-(m * minimum)));
                        }
                    }
                }
                GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 | GgmlType::Q6K => return false,
            }
        }
        true
    }
}

/// The low halves of 16 bytes, then their high halves.
fn nibbles(bytes: &[u8]) -> impl Iterator<Item = i8> {
    let low = bytes.iter().map(|&byte| (byte & 15) as i8);
    low.chain(bytes.iter().map(|&byte| (byte >> 4) as i8))
}
