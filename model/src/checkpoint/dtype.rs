//! The number types that weights are stored in and computed with.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// A floating-point type of weights, activations or cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE 754 single precision, 4 bytes.
    #[serde(rename = "float32")]
    F32,
    /// IEEE 754 half precision, 2 bytes: 5 exponent bits, 10 fraction bits.
    #[serde(rename = "float16")]
    F16,
    /// The upper half of an F32, 2 bytes: 8 exponent bits, 7 fraction bits.
    #[serde(rename = "bfloat16")]
    Bf16,
}

impl Dtype {
    /// Bytes an element takes.
    pub const fn size(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
        }
    }

    /// The name that torch and `config.json` use: `float32`, `float16` or `bfloat16`.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "float32",
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
        }
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Dtype {
    type Err = ModelError;

    /// Reads the long and the short names, in any case. `auto` is the caller's business.
    fn from_str(name: &str) -> Result<Self, ModelError> {
        match name.to_ascii_lowercase().as_str() {
            "float32" | "f32" | "float" => Ok(Dtype::F32),
            "float16" | "f16" | "half" => Ok(Dtype::F16),
            "bfloat16" | "bf16" => Ok(Dtype::Bf16),
            _ => Err(ModelError::UnknownDtype { found: name.to_owned() }),
        }
    }
}
