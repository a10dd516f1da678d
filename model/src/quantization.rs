//! In how many bits a model's weights are computed with.

use std::fmt;

#[cfg(doc)]
use crate::Device;

/// What products with 8-bit weights round their activations to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ActivationType {
    /// To 8-bit integers.
    #[default]
    Int8,
    /// They stay in f32, and weights are widened to f32.
    F32,
}

/// How the matrices of a model's layers are kept and multiplied. The embedding, the output head, norms, biases and the matrices that a
/// device [keeps in full](crate::Device::full_matrix) are never quantised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantization {
    /// In the model's dtype.
    #[default]
    None,
    /// In [8-bit integers](crate::cpu::int8).
    Int8(ActivationType),
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Quantization::None => "none",
            Quantization::Int8(ActivationType::Int8) => "int8",
            Quantization::Int8(ActivationType::F32) => "int8, activations in f32",
        })
    }
}
