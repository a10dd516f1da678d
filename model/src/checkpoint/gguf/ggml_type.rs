//! The types that tensors of a GGUF file are stored in.

use std::fmt;

use crate::checkpoint::Dtype;

/// How the values of a tensor are stored in a GGUF file. A row is a list of blocks, each of which stands for the same number
/// of values ([`GgmlType::block_len`]) and takes the same number of bytes ([`GgmlType::block_bytes`]).
///
/// All numbers are little-endian. `d` and `m` below are f16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GgmlType {
    /// Single precision, a block a value.
    F32,
    /// Half precision, a block a value.
    F16,
    /// The upper half of an F32, a block a value.
    Bf16,
    /// 32 values of 4 bits: `d`, then 16 bytes. Value j is `d * (q - 8)`, q the low half of byte j for j < 16 and the high half of byte
    /// j - 16 above.
    Q4_0,
    /// 32 values of 4 bits: `d`, `m`, then 16 bytes as in Q4_0. A value is `d * q + m`.
    Q4_1,
    /// 32 values of 8 bits: `d`, then 32 signed bytes. A value is `d * q`.
    Q8_0,
    /// 256 values of 4 bits, in 8 groups of 32 with a 6-bit scale and a 6-bit minimum each: `d`, `m`, 12 bytes of scales and minima, then
    /// 128 bytes. A value is `d * scale * q - m * minimum`. The low halves of bytes 32 g to 32 g + 31 are group 2 g, the high ones group
    /// 2 g + 1.
    Q4K,
    /// 256 values of 6 bits, in 16 groups of 16 with a signed 8-bit scale each: 128 bytes with the lower 4 bits, 64 with the upper 2, 16
    /// scales, then `d`. A value is `d * scale * (q - 32)`.
    Q6K,
}

/// The number that a file has for each type, and its name in ggml. Those without a [`GgmlType`] are not read.
const NUMBERS: [(u32, &str, Option<GgmlType>); 34] = [
    (0, "F32", Some(GgmlType::F32)),
    (1, "F16", Some(GgmlType::F16)),
    (2, "Q4_0", Some(GgmlType::Q4_0)),
    (3, "Q4_1", Some(GgmlType::Q4_1)),
    (6, "Q5_0", None),
    (7, "Q5_1", None),
    (8, "Q8_0", Some(GgmlType::Q8_0)),
    (9, "Q8_1", None),
    (10, "Q2_K", None),
    (11, "Q3_K", None),
    (12, "Q4_K", Some(GgmlType::Q4K)),
    (13, "Q5_K", None),
    (14, "Q6_K", Some(GgmlType::Q6K)),
    (15, "Q8_K", None),
    (16, "IQ2_XXS", None),
    (17, "IQ2_XS", None),
    (18, "IQ3_XXS", None),
    (19, "IQ1_S", None),
    (20, "IQ4_NL", None),
    (21, "IQ3_S", None),
    (22, "IQ2_S", None),
    (23, "IQ4_XS", None),
    (24, "I8", None),
    (25, "I16", None),
    (26, "I32", None),
    (27, "I64", None),
    (28, "F64", None),
    (29, "IQ1_M", None),
    (30, "BF16", Some(GgmlType::Bf16)),
    (34, "TQ1_0", None),
    (35, "TQ2_0", None),
    (39, "MXFP4", None),
    (40, "NVFP4", None),
    (41, "Q1_0", None),
];

impl GgmlType {
    /// All of them.
    pub const ALL: [GgmlType; 8] = [
        GgmlType::F32,
        GgmlType::F16,
        GgmlType::Bf16,
        GgmlType::Q8_0,
        GgmlType::Q4_0,
        GgmlType::Q4_1,
        GgmlType::Q4K,
        GgmlType::Q6K,
    ];

    /// The type of a number in a file.
    ///
    /// # Errors
    ///
    /// What a type is called that is not read here.
    pub(super) fn of_number(number: u32) -> Result<GgmlType, String> {
        match NUMBERS.iter().find(|(own, ..)| *own == number) {
            Some((.., Some(kind))) => Ok(*kind),
            Some((_, name, None)) => Err((*name).to_owned()),
            None => Err(format!("type number {number}")),
        }
    }

    /// How many values a block stands for.
    pub const fn block_len(self) -> usize {
        match self {
            GgmlType::F32 | GgmlType::F16 | GgmlType::Bf16 => 1,
            GgmlType::Q4_0 | GgmlType::Q4_1 | GgmlType::Q8_0 => 32,
            GgmlType::Q4K | GgmlType::Q6K => 256,
        }
    }

    /// How many bytes a block takes.
    pub const fn block_bytes(self) -> usize {
        match self {
            GgmlType::F32 => 4,
            GgmlType::F16 | GgmlType::Bf16 => 2,
            GgmlType::Q4_0 => 18,
            GgmlType::Q4_1 => 20,
            GgmlType::Q8_0 => 34,
            GgmlType::Q4K => 144,
            GgmlType::Q6K => 210,
        }
    }

    /// How many bytes a row of `values` values takes; `None` where they are no whole number of blocks, or too many to count.
    pub fn row_bytes(self, values: usize) -> Option<usize> {
        let whole = values.is_multiple_of(self.block_len());
        whole.then(|| (values / self.block_len()).checked_mul(self.block_bytes()))?
    }

    /// The type of the values, where they are stored as plain numbers.
    pub const fn dtype(self) -> Option<Dtype> {
        match self {
            GgmlType::F32 => Some(Dtype::F32),
            GgmlType::F16 => Some(Dtype::F16),
            GgmlType::Bf16 => Some(Dtype::Bf16),
            _ => None,
        }
    }

    /// The name that ggml gives it, such as `Q4_K`.
    pub fn name(self) -> &'static str {
        NUMBERS.iter().find(|(.., kind)| *kind == Some(self)).map_or("", |(_, name, _)| name)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
