//! Weights in fp8 (e4m3) with a scale for each block of a matrix.

use std::sync::LazyLock;

use super::fields::Fields;
use super::int8;
use super::quantisation;
use super::tensor::Tensor;
use crate::error::ModelError;

/// What the name of a weight's scales has behind that of the weight. They are factors, despite the name.
pub(super) const SCALES: &str = "_scale_inv";

/// The block of a configuration whose weights are fp8 with a scale for each block; `None` of one without quantised weights.
///
/// Activations are not quantised here, whatever `activation_scheme` says: weights are widened when they are loaded.
///
/// # Errors
///
/// Other kinds of quantised weights.
pub(super) fn block_of(fields: Fields<'_>) -> Result<Option<[usize; 2]>, ModelError> {
    let name = "quantization_config";
    if int8::is_in(fields)? {
        return Ok(None);
    }
    let Some(nested) = fields.nested(name, "quantization_config.")? else {
        quantisation::refuse(fields)?;
        return Ok(None);
    };
    if nested.text("quant_method")? != Some("fp8") {
        quantisation::refuse(fields)?;
    }
    if let Some(format) = nested.text("fmt")?.filter(|&format| format != "e4m3") {
        return Err(nested.unsupported(format!("fp8 weights of format {format}"), "e4m3 is read"));
    }
    let expected = "two whole numbers of at least 1: rows and columns of a block, such as [128, 128]";
    let side = |value: &serde_json::Value| value.as_u64().filter(|side| (1..1 << 24).contains(side));
    let Some(block) = nested.get("weight_block_size") else {
        return Err(nested.missing("weight_block_size", "rows and columns of a block, such as [128, 128]"));
    };
    match block.as_array().map(|sides| sides.iter().map(side).collect::<Vec<_>>()).as_deref() {
        Some(&[Some(rows), Some(columns)]) => Ok(Some([rows as usize, columns as usize])),
        _ => Err(nested.bad("weight_block_size", block, expected)),
    }
}

/// Whether the scales of this configuration are powers of two (`scale_fmt` "ue8m0").
///
/// # Errors
///
/// Another format of scales.
pub(super) fn power_of_two_scales(fields: Fields<'_>) -> Result<bool, ModelError> {
    let Some(nested) = fields.nested("quantization_config", "quantization_config.")? else {
        return Ok(false);
    };
    match nested.text("scale_fmt")? {
        None | Some("float") => Ok(false),
        Some("ue8m0") => Ok(true),
        Some(other) => {
            Err(nested.unsupported(format!("scales of format {other}"), "ue8m0 and plain numbers are read"))
        }
    }
}

/// A power of two in 8 bits (E8M0: the exponent plus 127; 255 is NaN).
pub(super) fn power_of_two(bits: u8) -> f32 {
    match bits {
        0 => 2f32.powi(-127),
        255 => f32::NAN,
        bits => f32::from_bits(u32::from(bits) << 23),
    }
}

/// The 256 values of e4m3 (no infinities; 0x7f and 0xff are NaN).
static VALUES: LazyLock<[f32; 256]> = LazyLock::new(|| std::array::from_fn(|bits| value(bits as u8)));

fn value(bits: u8) -> f32 {
    let (exponent, fraction) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
    let size = match (exponent, bits & 7) {
        (15, 7) => f32::NAN,
        (0, _) => fraction * 2f32.powi(-9),
        _ => (1.0 + fraction / 8.0) * 2f32.powi(exponent - 7),
    };
    if bits >> 7 == 1 { -size } else { size }
}

/// A matrix in fp8: its elements, and a scale for each block.
#[derive(Clone)]
pub(super) struct Blocks<'a> {
    /// `[rows, columns]`.
    pub bytes: &'a [u8],
    /// `[ceil(rows / block rows), ceil(columns / block columns)]`.
    pub scales: Box<Tensor<'a>>,
    pub block: [usize; 2],
}

impl Blocks<'_> {
    /// Row `row` of `out.len()` columns: each element times the scale of its block, in f32.
    pub fn read_row(&self, row: usize, out: &mut [f32]) -> Result<(), ModelError> {
        let mut scales = vec![0.0; self.scales.row_len()];
        self.scales.read_row(row / self.block[0], &mut scales)?;
        let start = row * out.len();
        let bytes = self.bytes.get(start..start + out.len()).unwrap_or(&[]);
        let columns = self.block[1];
        for ((out, bytes), scale) in out.chunks_mut(columns).zip(bytes.chunks(columns)).zip(scales) {
            for (out, &byte) in out.iter_mut().zip(bytes) {
                *out = VALUES[usize::from(byte)] * scale;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_values_of_e4m3_are_those_of_its_definition() {
        for (bits, expected) in [
            (0x00, 0.0),
            (0x01, 0.001_953_125),
            (0x07, 0.013_671_875),
            (0x08, 0.015_625),
            (0x38, 1.0),
            (0x3c, 1.5),
            (0x7e, 448.0),
            (0xb8, -1.0),
            (0xfe, -448.0),
        ] {
            assert_eq!(VALUES[bits], expected, "{bits:#x}");
        }
        assert!(VALUES[0x7f].is_nan() && VALUES[0xff].is_nan());
        assert!(VALUES[0x80] == 0.0 && VALUES[0x80].is_sign_negative());
        // Positive values ascend with their bits.
        assert!(VALUES[..0x7f].windows(2).all(|pair| pair[0] < pair[1]));
    }
}
