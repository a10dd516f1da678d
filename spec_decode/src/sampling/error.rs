//! Why no token can be drawn.

/// A sampling parameter, a row of logits or a row to verify from which no token can be drawn.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SamplingError {
    /// The temperature is NaN, negative or infinite.
    #[error("temperature is {found}; it must be 0 (greedy) or a finite number above 0")]
    Temperature {
        /// The value given.
        found: f32,
    },
    /// `top_p` is outside (0, 1] or NaN.
    #[error("top_p is {found}; it must be above 0 and at most 1 (1 = off)")]
    TopP {
        /// The value given.
        found: f32,
    },
    /// `min_p` is outside [0, 1] or NaN.
    #[error("min_p is {found}; it must be from 0 to 1 (0 = off)")]
    MinP {
        /// The value given.
        found: f32,
    },
    /// `top_k` is below -1 or does not fit 32 bits.
    #[error("top_k is {found}; it must be at least 1, or -1 or 0 for off")]
    TopK {
        /// The value given.
        found: i64,
    },
    /// A penalty is outside its range.
    #[error("{name} is {found}; it must be {range}")]
    Penalty {
        /// The name of the parameter.
        name: &'static str,
        /// The value given.
        found: f32,
        /// Its range.
        range: &'static str,
    },
    /// The bias of a token is outside [-100, 100] or NaN.
    #[error("the logit_bias of token {token} is {found}; it must be from -100 to 100")]
    Bias {
        /// The token.
        token: u32,
        /// The value given.
        found: f32,
    },
    /// A logit is NaN or plus infinity, so the model or a kernel is broken.
    #[error("the logit of token {token} is {value}; the model computed no usable distribution")]
    BadLogit {
        /// The first token with such a logit.
        token: u32,
        /// The logit of that token.
        value: f32,
    },
    /// There are no logits, or all of them are minus infinity.
    #[error("no token can be chosen: all {vocab} logits are -inf")]
    NoToken {
        /// The number of logits.
        vocab: usize,
    },
    /// The vocabulary does not have the token whose log probability is asked for.
    #[error("token {token} is outside the vocabulary of {vocab}")]
    TokenOutOfRange {
        /// The token.
        token: u32,
        /// The number of logits.
        vocab: usize,
    },
    /// The parts of a row to verify do not fit each other.
    #[error("a row with {drafts} drafts comes with {found} {what}, not with {expected}")]
    VerifyRow {
        /// The number of drafts in the row.
        drafts: usize,
        /// What does not fit: logits, probabilities or the drafts themselves.
        what: &'static str,
        /// The number that the row has.
        found: usize,
        /// The number that it should have.
        expected: &'static str,
    },
    /// A proposer stated a number for a draft that is no probability.
    #[error("the proposer states probability {value} for token {token}; it must be from 0 to 1")]
    BadProbability {
        /// The token.
        token: u32,
        /// The number that was stated.
        value: f64,
    },
    /// The numbers of typical acceptance are outside their ranges.
    #[error(
        "typical acceptance with threshold {threshold} and alpha {alpha}: the threshold must be from 0 to 1, \
         alpha finite and at least 0"
    )]
    Typical {
        /// The threshold that was given.
        threshold: f32,
        /// The factor that was given.
        alpha: f32,
    },
    /// No rule of acceptance has this name.
    #[error(
        "acceptance rule `{found}` is unknown; it must be coupled, rejection, typical, or \
         typical:THRESHOLD,ALPHA (typical alone is typical:0.09,0.3)"
    )]
    Acceptance {
        /// The text that was given.
        found: String,
    },
}
