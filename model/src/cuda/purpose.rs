//! The purposes that memory of a GPU is allocated for.

use std::fmt;

/// What a piece of the GPU's memory is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Weights of matrices and norms, and the table of rotations.
    Weights,
    /// Keys and values of all KV blocks.
    KvCache,
    /// Inputs, activations, logits and partial sums of the largest step.
    Step,
}

impl Purpose {
    /// What a user can do when the GPU has too little memory for it.
    #[must_use]
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Weights => "use a smaller model, or free memory of the GPU",
            Self::KvCache => "lower --num-blocks or --kv-cache-memory",
            Self::Step => "lower --max-num-batched-tokens or --max-model-len",
        }
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Weights => "the weights",
            Self::KvCache => "the KV cache",
            Self::Step => "the buffers of a step",
        })
    }
}
