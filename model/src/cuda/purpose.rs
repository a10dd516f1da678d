//! The purposes for which memory of a GPU is allocated.

use std::fmt;

/// The purpose of a piece of the GPU's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The weights of matrices and norms, and the table of rotations.
    Weights,
    /// The keys and values of all KV blocks.
    KvCache,
    /// The inputs, activations, logits and partial sums of the largest step.
    Step,
}

impl Purpose {
    /// What a user can do if the GPU has too little memory for it.
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
