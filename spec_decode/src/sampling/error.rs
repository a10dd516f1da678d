//! What sampling can refuse.

/// A sampling parameter, or a row of logits, that no token can be drawn with.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// NaN, negative or infinite.
    #[error("temperature is {found}; it must be 0 (greedy) or a finite number above 0")]
    Temperature {
        /// The value given.
        found: f32,
    },
    /// Outside (0, 1], or NaN.
    #[error("top_p is {found}; it must be above 0 and at most 1 (1 = off)")]
    TopP {
        /// The value given.
        found: f32,
    },
    /// Outside [0, 1], or NaN.
    #[error("min_p is {found}; it must be from 0 to 1 (0 = off)")]
    MinP {
        /// The value given.
        found: f32,
    },
    /// Below -1, or more than fits.
    #[error("top_k is {found}; it must be at least 1, or -1 or 0 for off")]
    TopK {
        /// The value given.
        found: i64,
    },
    /// A logit is NaN or plus infinity: the model, or a kernel, is broken.
    #[error("the logit of token {token} is {value}; the model computed no usable distribution")]
    BadLogit {
        /// The first such token.
        token: u32,
        /// Its logit.
        value: f32,
    },
    /// There are no logits, or all of them are minus infinity.
    #[error("no token can be chosen: all {vocab} logits are -inf")]
    NoToken {
        /// Number of logits.
        vocab: usize,
    },
    /// A token whose log probability is asked for is not in the vocabulary.
    #[error("token {token} is outside the vocabulary of {vocab}")]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// Number of logits.
        vocab: usize,
    },
    /// A row to verify whose parts do not fit each other.
    #[error("a row with {drafts} drafts comes with {found} {what}, not with {expected}")]
    VerifyRow {
        /// How many drafts it has.
        drafts: usize,
        /// What does not fit: logits, probabilities, or drafts themselves.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: &'static str,
    },
    /// A probability that a proposer states for a draft is no probability.
    #[error("the proposer states probability {value} for token {token}; it must be from 0 to 1")]
    BadProbability {
        /// The token.
        token: u32,
        /// What was stated.
        value: f64,
    },
    /// The numbers of typical acceptance are outside their ranges.
    #[error(
        "typical acceptance with threshold {threshold} and alpha {alpha}: the threshold must be from 0 to 1, \
         alpha finite and at least 0"
    )]
    Typical {
        /// The threshold given.
        threshold: f32,
        /// The factor given.
        alpha: f32,
    },
    /// No rule of acceptance has this name.
    #[error(
        "acceptance rule `{found}` is unknown; it must be coupled, rejection, typical, or \
         typical:THRESHOLD,ALPHA (typical alone is typical:0.09,0.3)"
    )]
    Acceptance {
        /// What was written.
        found: String,
    },
}
