//! Coupled acceptance: the draft must be the target's own token.
//!
//! The target's token at a position is argmax(filtered logits / T + Gumbel noise of (seed, sample, position)) whether it
//! is compared with a draft or not, so the output is the one of the run without drafts: for any proposer, and with no need
//! of its probabilities.
//!
//! A proposer with distribution q that chooses with the same noise agrees with probability
//! sum over x of 1 / (sum over y of max(p(y) / p(x), q(y) / q(x))), which is at least (1 - d) / (1 + d) at a total
//! variation distance of d (Daliri, Musco, Suresh 2024); rejection would accept 1 - d.

use super::draft::Draft;
use crate::sampling::{Sampler, SamplingError};

/// The target's token at the draft's place.
pub(super) fn choose(sampler: &mut Sampler, draft: Draft<'_>) -> Result<u32, SamplingError> {
    sampler.choose(draft.logits, draft.params, draft.position)
}
