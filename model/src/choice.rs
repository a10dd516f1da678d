//! How a device chooses tokens.

/// How the token of a row is chosen from its logits, by a device that [can](crate::Device::chooses): at temperature 0 it is
/// the argmax; otherwise it is the argmax of filtered logits over temperature plus the noise of (seed, sample, position).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// What logits are divided by.
    pub temperature: f32,
    /// How many tokens are kept at most; 0 keeps all.
    pub top_k: u32,
    /// Share of the probability that is kept; 1 keeps all.
    pub top_p: f32,
    /// Least share of the greatest probability that is kept; 0 keeps all.
    pub min_p: f32,
    /// Key of the noise.
    pub seed: u64,
    /// Which of the request's samples it is.
    pub sample: u32,
    /// Position of the token that is chosen.
    pub position: u32,
}

/// What [`Device::choose`](crate::Device::choose) gives for a row that nothing can be chosen from: its logits hold a NaN or
/// plus infinity, or nothing finite.
pub const NO_CHOICE: u32 = u32::MAX;
