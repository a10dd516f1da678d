//! Matrices that are stored in [8 bits](crate::cpu::int8), as `pagedraft quantize` writes them.
//!
//! The configuration has `"quantization_config": {"quant_method": "pagedraft-int8", "group_size": 64}`. A matrix `NAME` of `[n, k]` is a
//! tensor of that name and shape in I8, and a tensor `NAME_int8_scale` of `[n, ceil(k / 64)]` in F16.

use std::collections::HashSet;

use half::f16;
use safetensors::Dtype as StoredDtype;

use super::fields::Fields;
use super::tensor::Tensor;
use super::{Checkpoint, ModelConfig, StoredWeights};
use crate::cpu::int8::{BLOCK, Format, QuantRow};
use crate::error::ModelError;

/// What `quant_method` says.
pub const INT8_METHOD: &str = "pagedraft-int8";
/// What the name of a matrix's scales has behind that of the matrix.
pub const INT8_SCALES: &str = "_int8_scale";

/// How the matrices of a configuration are stored.
///
/// # Errors
///
/// Those of [`is_in`].
pub(super) fn stored_weights(fields: Fields<'_>) -> Result<StoredWeights, ModelError> {
    Ok(if is_in(fields)? { StoredWeights::Int8 } else { StoredWeights::Plain })
}

/// Whether a configuration speaks of such matrices.
///
/// # Errors
///
/// Scales for groups of another size.
pub(super) fn is_in(fields: Fields<'_>) -> Result<bool, ModelError> {
    let name = "quantization_config";
    // Other quantised checkpoints are refused elsewhere, whatever this field then is.
    if !fields.get(name).is_some_and(serde_json::Value::is_object) {
        return Ok(false);
    }
    let Some(nested) = fields.nested(name, "quantization_config.")? else { return Ok(false) };
    if nested.get("quant_method").and_then(serde_json::Value::as_str) != Some(INT8_METHOD) {
        return Ok(false);
    }
    if let Some(bits) = nested.get("bits").filter(|bits| bits.as_u64() != Some(8)) {
        return Err(nested.bad("bits", bits, "8, for which this version has kernels"));
    }
    match nested.get("group_size") {
        Some(size) if size.as_u64() == Some(BLOCK as u64) => Ok(true),
        Some(other) => Err(nested.bad("group_size", other, "64, for which this version has kernels")),
        None => Err(nested.missing("group_size", "how many weights share a scale: 64")),
    }
}

/// A matrix in 8 bits.
#[derive(Clone)]
pub(super) struct Int8Matrix<'a> {
    /// `[rows, columns]`, an i8 each.
    quants: &'a [u8],
    /// `[rows, ceil(columns / 64)]`, an f16 each.
    scales: &'a [u8],
}

impl Int8Matrix<'_> {
    /// Makes `to` the row `row` of `columns` weights.
    pub fn take_row(&self, row: usize, columns: usize, to: &mut QuantRow) {
        let scales = QuantRow::num_scales(columns);
        let quants = self.quants.get(row * columns..(row + 1) * columns).unwrap_or(&[]);
        let scales = self.scales.get(row * scales * 2..(row + 1) * scales * 2).unwrap_or(&[]);
        to.clear(Format::Int8);
        for (quants, scale) in quants.chunks(BLOCK).zip(scales.as_chunks::<2>().0) {
            to.add(quants.iter().map(|&byte| byte as i8), f16::from_le_bytes(*scale), f16::ZERO);
        }
    }

    /// Row `row` of `out.len()` columns, widened.
    pub fn read_row(&self, row: usize, out: &mut [f32]) {
        let mut taken = QuantRow::default();
        self.take_row(row, out.len(), &mut taken);
        taken.write(out);
    }
}

impl Checkpoint {
    /// A matrix that is stored in 8 bits.
    pub(super) fn int8_tensor<'a>(
        &'a self,
        name: &str,
        shape: &[usize],
        quants: &'a [u8],
    ) -> Result<Tensor<'a>, ModelError> {
        let &[rows, columns] = shape else {
            return Err(ModelError::UnsupportedDtype {
                path: self.name().to_owned(),
                tensor: name.to_owned(),
                found: "I8, and is no matrix".to_owned(),
            });
        };
        let scales = format!("{name}{INT8_SCALES}");
        let Some((path, stored)) = self.stored(&scales) else {
            return Err(ModelError::MissingTensor {
                path: self.name().to_owned(),
                tensor: scales,
                hint: format!("{name} is in 8 bits, and these are its scales"),
            });
        };
        let expected = [rows, QuantRow::num_scales(columns)];
        if stored.shape != expected {
            return Err(ModelError::WrongShape {
                path: path.to_owned(),
                tensor: scales,
                expected: expected.to_vec(),
                found: stored.shape.to_vec(),
            });
        }
        if stored.dtype != StoredDtype::F16 {
            return Err(ModelError::Unsupported {
                path: path.to_owned(),
                feature: format!("tensor {scales}, which is stored as {:?},", stored.dtype),
                hint: "scales of weights in 8 bits are F16: quantise the model again".to_owned(),
            });
        }
        Ok(Tensor::int8(name, shape, Int8Matrix { quants, scales: stored.bytes }))
    }
}

/// The tensors of a model that are quantised: the matrices of its layers that are multiplied with as they are stored, and an output head that
/// is not the embedding.
#[must_use]
pub fn quantised_tensors(config: &ModelConfig) -> HashSet<String> {
    // What a device keeps in full, and what is cut into matrices of the heads when it is loaded.
    const OTHERS: [&str; 3] = ["mlp.gate.weight", "indexer.weights_proj.weight", "kv_b_proj.weight"];
    let layers = (0..config.num_layers).flat_map(|layer| config.layer_tensors(layer));
    let matrices = layers.filter(|(name, shape)| {
        shape.len() == 2 && !OTHERS.iter().any(|other| name.ends_with(&format!(".{other}")))
    });
    let head = (!config.tie_word_embeddings).then(|| config.architecture.lm_head().to_owned());
    matrices.map(|(name, _)| name).chain(head).collect()
}
