//! Judges one draft by its row of logits.

use super::draft::Draft;
use super::finding::Finding;
use super::rule::Acceptance;
use super::{coupled, rejection, typical};
use crate::sampling::{Noise, Sampler, SamplingError};

/// Judges each draft by itself. It holds buffers, and what is needed to correct the draft that was judged last.
#[derive(Default)]
pub(super) struct Judge {
    pub sampler: Sampler,
    /// The target's distribution at the last draft, `[vocab]`. Rejection and typical acceptance need it above
    /// temperature 0.
    p: Vec<f64>,
    /// The target's choice at the last draft. The coupled rule needs it, and so do all rules at temperature 0.
    choice: u32,
}

impl Judge {
    /// Decides whether the draft is accepted.
    pub fn judge(&mut self, rule: Acceptance, draft: Draft<'_>) -> Result<Finding, SamplingError> {
        match rule {
            // At temperature 0 the argmax has probability 1, so every rule decides the same.
            _ if draft.params.is_greedy() => self.coupled(draft),
            Acceptance::Coupled => self.coupled(draft),
            Acceptance::Rejection => {
                self.sampler.distribution_into(draft.logits, draft.params, &mut self.p)?;
                let noise = Noise::new(draft.params, draft.position);
                rejection::judge(&self.p, draft.q, draft.token, noise)
            }
            Acceptance::Typical { threshold, alpha } => {
                self.sampler.distribution_into(draft.logits, draft.params, &mut self.p)?;
                Ok(typical::judge(&self.p, draft.token, threshold, alpha))
            }
        }
    }

    /// The token that replaces the draft judged last, which was rejected.
    pub fn correct(&mut self, rule: Acceptance, draft: Draft<'_>) -> Result<u32, SamplingError> {
        match rule {
            _ if draft.params.is_greedy() => Ok(self.choice),
            Acceptance::Coupled => Ok(self.choice),
            Acceptance::Rejection => {
                let noise = Noise::new(draft.params, draft.position);
                rejection::correct(&self.p, draft.q, draft.token, noise)
            }
            Acceptance::Typical { .. } => Ok(typical::correct(&self.p)),
        }
    }

    fn coupled(&mut self, draft: Draft<'_>) -> Result<Finding, SamplingError> {
        self.choice = coupled::choose(&mut self.sampler, draft)?;
        Ok(Finding::stands_if(self.choice == draft.token))
    }
}
