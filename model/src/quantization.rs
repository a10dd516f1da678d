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

/// How the matrices of a model's layers and its output head are kept and multiplied. The embedding, norms, biases and the matrices that a
/// device [keeps in full](crate::Device::full_matrix) are never quantised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Quantization {
    /// In the model's dtype.
    #[default]
    None,
    /// In [8-bit integers](crate::cpu::int8).
    Int8(ActivationType),
    /// As a GGUF file stores each of them: in [8 or 4 bits](crate::cpu::int8), or in the model's dtype where its type has no product.
    Gguf(ActivationType),
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Quantization::None => "none",
            Quantization::Int8(ActivationType::Int8) => "int8",
            Quantization::Int8(ActivationType::F32) => "int8, activations in f32",
            Quantization::Gguf(ActivationType::Int8) => "gguf",
            Quantization::Gguf(ActivationType::F32) => "gguf, activations in f32",
        })
    }
}
