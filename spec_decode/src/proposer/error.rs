//! Why a proposer could not be made.

use pagedraft_attention::AttentionError;

/// Options that no proposer can work with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProposerError {
    /// Lengths of n-grams that are none.
    #[error(
        "n-grams of {min} to {max} tokens cannot be looked up; the least must be 1 or more, and not above the greatest"
    )]
    Ngram {
        /// The least length.
        min: usize,
        /// The greatest.
        max: usize,
    },
    /// A rate outside [0, 1], or NaN.
    #[error("a synthetic acceptance rate of {found} is no probability; it must be from 0 to 1")]
    Rate {
        /// The value given.
        found: f64,
    },
    /// A vocabulary in which no token is wrong.
    #[error("a vocabulary of {found} has no wrong token to propose; it must have 2 at least")]
    SmallVocab {
        /// The value given.
        found: u32,
    },
    /// A target without tokens.
    #[error("a target vocabulary of 0 tokens leaves the draft model nothing to propose; give it 1 at least")]
    NoVocab,
    /// No token of KV may be caught up with.
    #[error("a catch-up budget of 0 tokens a step never lets the draft model begin; give it 1 at least")]
    CatchUp,
    /// Blocks that cannot be.
    #[error("the draft model's KV: {0}")]
    Kv(#[from] pagedraft_block_manager::Error),
    /// A block size without kernels.
    #[error("the draft model's metadata: {0}")]
    Metadata(#[from] AttentionError),
}
