//! Coupled acceptance accepts a draft if it is the token that the target chooses itself.
//!
//! The target's token at a position is argmax(filtered logits / T + Gumbel noise of (seed, sample, position)), whether
//! or not it is compared with a draft. The output is therefore that of the run without drafts, for any proposer, and
//! the proposer's probabilities are not needed.
//!
//! A proposer with distribution q that chooses with the same noise proposes the target's token with probability sum
//! over x of 1 / (sum over y of max(p(y) / p(x), q(y) / q(x))), which is at least (1 - d) / (1 + d) if the total
//! variation distance is d (Daliri, Musco, Suresh 2024). Rejection sampling would accept with probability 1 - d.

use super::draft::Draft;
use crate::sampling::{Sampler, SamplingError};

/// The token that the target chooses at the draft's position.
pub(super) fn choose(sampler: &mut Sampler, draft: Draft<'_>) -> Result<u32, SamplingError> {
    sampler.choose(draft.logits, draft.params, draft.position)
}
