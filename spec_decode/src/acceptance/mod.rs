//! Decides which drafts are accepted, and which token comes after them.
//!
//! A row with k drafts has k + 1 rows of logits. It emits the accepted drafts and then one token more: the target's
//! correction in place of the first rejected draft, or a bonus token after all of them. A row therefore emits 1 to k +
//! 1 tokens a step.
//!
//! # What this promises
//!
//! - **Coupled** (the default) gives the tokens of the run without drafts, draw by draw, for any proposer.
//! - **Rejection** keeps the target's distribution over whole sequences, after temperature and filters. It does not
//!   keep the draws, which depend on the drafts.
//! - **Typical** keeps neither. It is there to be studied.
//! - Under every rule, a draft at temperature 0 is accepted exactly when it is the argmax; a row without drafts gets
//!   the plain choice; the bonus is the plain choice; and nothing behind the first rejected draft changes what is
//!   emitted.
//! - What a row emits is a function of the row alone: a [`Verifier`] holds only buffers.
//!
//! # What it costs
//!
//! The coupled rule takes one [`Sampler::choose`](crate::sampling::Sampler::choose) for each emitted token. Rejection
//! and typical acceptance take a distribution over the vocabulary for each draft up to the first rejected one (one
//! exponential for each kept token), and two more passes of additions after it; with a stated q they read the whole of
//! it. The times for 150,000 logits on one core of a 2-core Xeon are, in ms for each judged draft (`tests/cost.rs`):
//! coupled 0.9, rejection 0.8 (1.1 if the draft is rejected), typical 1.8. With top-k 50 and top-p 0.95 they are 0.14,
//! 0.23 (0.43) and 0.34. At temperature 0 all rules take 0.05. For 32,000 logits they take a fifth. Nothing is
//! allocated once the buffers have the size of the vocabulary.
//!
//! ```
//! # use pagedraft_spec_decode::acceptance::{Acceptance, Verifier, VerifyRow};
//! # use pagedraft_spec_decode::sampling::SamplingParams;
//! let params = SamplingParams::greedy();
//! let logits = [0.0, 9.0, 0.0, /* behind draft 1 */ 5.0, 0.0, 1.0];
//! let row = VerifyRow { params: &params, position: 7, drafts: &[1], probabilities: None, logits: &logits };
//! let mut emitted = Vec::new();
//! let verdict = Verifier::new(Acceptance::Coupled).verify(row, &mut emitted)?;
//! assert_eq!((verdict.accepted, emitted), (1, vec![1, 0]));
//! # Ok::<(), pagedraft_spec_decode::sampling::SamplingError>(())
//! ```

mod coupled;
mod draft;
mod finding;
mod judge;
mod rejection;
mod rule;
#[cfg(test)]
mod tests;
mod typical;

use crate::sampling::{SamplingError, SamplingParams};
use draft::Draft;
use finding::Finding;
use judge::Judge;
pub use rule::Acceptance;

/// A row to verify.
#[derive(Clone, Copy, Debug)]
pub struct VerifyRow<'a> {
    /// How the request draws its tokens.
    pub params: &'a SamplingParams,
    /// The position of the first draft: the index, counted from the start of the prompt, of the token that is chosen
    /// from the first row of logits.
    pub position: u32,
    /// The drafts. A row without drafts is a plain decode.
    pub drafts: &'a [u32],
    /// The distributions that the drafts were drawn from, `[drafts, vocab]`, if the proposer has any. Otherwise each
    /// draft counts as having had probability 1. Only rejection reads them. If the drafts were in truth drawn from
    /// others, the output does not have the target's distribution.
    pub probabilities: Option<&'a [f64]>,
    /// The target's logits after the last known token and after each draft, `[drafts + 1, vocab]`.
    pub logits: &'a [f32],
}

impl VerifyRow<'_> {
    /// The size of the vocabulary. Checks that all parts of the row fit each other.
    fn vocab(&self) -> Result<usize, SamplingError> {
        let drafts = self.drafts.len();
        let misfit = |what, found, expected| Err(SamplingError::VerifyRow { drafts, what, found, expected });
        if drafts > usize::from(u16::MAX) {
            return misfit("drafts", drafts, "at most 65535");
        }
        let found = self.logits.len();
        let vocab = found / (drafts + 1);
        if found == 0 || !found.is_multiple_of(drafts + 1) {
            return misfit("logits", found, "a row of the vocabulary for each draft and one more");
        }
        if let Some(&token) = self.drafts.iter().find(|&&d| d as usize >= vocab) {
            return Err(SamplingError::TokenOutOfRange { token, vocab });
        }
        match self.probabilities.map(<[f64]>::len) {
            Some(found) if found != drafts * vocab => {
                misfit("probabilities", found, "a row of the vocabulary for each draft")
            }
            _ => Ok(vocab),
        }
    }
}

/// What was decided about the drafts of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The number of drafts accepted before the first rejected one.
    pub accepted: u16,
    /// The number of drafts that pass the rule by themselves, each judged by the row of logits at its position, even
    /// behind a rejected draft: vLLM V0's count. It equals `accepted` if it was not asked for.
    pub accepted_noncausal: u16,
}

/// Applies an acceptance rule to rows. It holds only buffers.
#[derive(Default)]
pub struct Verifier {
    rule: Acceptance,
    count_noncausal: bool,
    judge: Judge,
}

impl Verifier {
    /// A verifier that applies `rule`.
    #[must_use]
    pub fn new(rule: Acceptance) -> Self {
        Self { rule, ..Self::default() }
    }

    /// The rule.
    #[must_use]
    pub fn rule(&self) -> Acceptance {
        self.rule
    }

    /// Sets whether drafts behind a rejected one are judged too, for [`Verdict::accepted_noncausal`]. They are never
    /// emitted. This takes one judgement for each of them. A draft whose logits cannot be judged does not pass, and is
    /// no error.
    pub fn count_noncausal(&mut self, yes: bool) {
        self.count_noncausal = yes;
    }

    /// Appends to `emitted` the accepted drafts of the row and the token after them: the target's correction, or a
    /// bonus token if all were accepted. Without drafts this is a plain choice, the same under every rule.
    ///
    /// # Errors
    ///
    /// [`SamplingError::VerifyRow`] if the length of the logits or probabilities does not fit the drafts,
    /// [`SamplingError::TokenOutOfRange`] for a draft outside the vocabulary, [`SamplingError::BadProbability`] for a
    /// stated probability that was used and is none, [`SamplingError::Typical`] for numbers of the rule outside their
    /// ranges, and the errors of [`Sampler::choose`](crate::sampling::Sampler::choose). Nothing is emitted in these
    /// cases.
    pub fn verify(&mut self, row: VerifyRow<'_>, emitted: &mut Vec<u32>) -> Result<Verdict, SamplingError> {
        let vocab = row.vocab()?;
        self.rule.validate()?;
        let before = emitted.len();
        let verdict = self.emit(row, vocab, emitted);
        if verdict.is_err() {
            emitted.truncate(before);
        }
        verdict
    }

    /// Verifies a row as [`verify`](Self::verify) does, but from the target's own choices after the last known token
    /// and after each draft, of which there are `drafts + 1`. This is right for the coupled rule, and for rows that are
    /// greedy or have no drafts, because a draft is then accepted exactly if it is the choice at its position.
    pub fn settle(&self, drafts: &[u32], choices: &[u32], emitted: &mut Vec<u32>) -> Verdict {
        let same = |(draft, choice): &(&u32, &u32)| draft == choice;
        let accepted = drafts.iter().zip(choices).take_while(same).count();
        emitted.extend(choices.iter().take(accepted + 1));
        let alone = match self.count_noncausal {
            true => drafts.iter().zip(choices).filter(same).count(),
            false => accepted,
        };
        Verdict { accepted: accepted as u16, accepted_noncausal: alone as u16 }
    }

    /// Whether [`settle`](Self::settle) decides as [`verify`](Self::verify) does, for a row of such a request with this
    /// many drafts.
    #[must_use]
    pub fn settles(&self, params: &SamplingParams, drafts: usize) -> bool {
        drafts == 0 || params.is_greedy() || self.rule == Acceptance::Coupled
    }

    fn emit(
        &mut self,
        row: VerifyRow<'_>,
        vocab: usize,
        emitted: &mut Vec<u32>,
    ) -> Result<Verdict, SamplingError> {
        let mut verdict = Verdict::default();
        let mut missed = false;
        for (j, logits) in row.logits.chunks_exact(vocab).enumerate() {
            let position = row.position.wrapping_add(j as u32);
            let Some(&token) = row.drafts.get(j) else {
                // This is the bonus, or the plain choice of a row without drafts.
                if !missed {
                    emitted.push(self.judge.sampler.choose(logits, row.params, position)?);
                }
                break;
            };
            let q = row.probabilities.and_then(|q| q.get(j * vocab..(j + 1) * vocab));
            let draft = Draft { token, position, params: row.params, logits, q };
            if missed {
                let found = self.judge.judge(self.rule, draft);
                verdict.accepted_noncausal += u16::from(found == Ok(Finding::Stands));
                continue;
            }
            if self.judge.judge(self.rule, draft)? == Finding::Stands {
                emitted.push(token);
                verdict.accepted += 1;
                verdict.accepted_noncausal += 1;
                continue;
            }
            emitted.push(self.judge.correct(self.rule, draft)?);
            missed = true;
            if !self.count_noncausal {
                break;
            }
        }
        Ok(verdict)
    }
}
