//! Why a proposer could not be made.

use pagedraft_attention::AttentionError;

/// The options fit no proposer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProposerError {
    /// The lengths are not those of n-grams.
    #[error(
        "n-grams of {min} to {max} tokens cannot be looked up; the least must be 1 or more, and not above the greatest"
    )]
    Ngram {
        /// The least length in tokens.
        min: usize,
        /// The greatest length in tokens.
        max: usize,
    },
    /// The rate is outside [0, 1] or NaN.
    #[error("a synthetic acceptance rate of {found} is no probability; it must be from 0 to 1")]
    Rate {
        /// The value given.
        found: f64,
    },
    /// The vocabulary is so small that no token in it is wrong.
    #[error("a vocabulary of {found} has no wrong token to propose; it must have 2 at least")]
    SmallVocab {
        /// The value given.
        found: u32,
    },
    /// The target has no tokens.
    #[error("a target vocabulary of 0 tokens leaves the draft model nothing to propose; give it 1 at least")]
    NoVocab,
    /// The catch-up budget is 0 tokens.
    #[error("a catch-up budget of 0 tokens a step never lets the draft model begin; give it 1 at least")]
    CatchUp,
    /// There are no kernels for the block size.
    #[error("the draft model's metadata: {0}")]
    Metadata(#[from] AttentionError),
}
