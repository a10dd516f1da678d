//! Acceptance: which drafts stand, and which token comes behind them.
//!
//! A row with k drafts has k + 1 rows of logits; out come the accepted drafts, then one token more: the target's
//! correction at the first draft that falls, or its bonus behind them all. So 1 to k + 1 tokens a row and step.
//!
//! # What this promises
//!
//! - **Coupled** (the default): the tokens of the run without drafts, draw by draw, whatever proposes.
//! - **Rejection**: the target's distribution, after temperature and filters, over whole sequences; not its draws, which
//!   then depend on the drafts.
//! - **Typical**: neither; it is there to be studied.
//! - Under every rule: at temperature 0 a draft stands exactly when it is the argmax; without drafts the token is the plain
//!   choice; the bonus is the plain choice; and nothing behind the first draft that falls changes what is emitted.
//! - What a row becomes is a function of the row: [`Verifier`] holds buffers only.
//!
//! # What it costs
//!
//! Coupled: [`Sampler::choose`](crate::sampling::Sampler::choose) once a token emitted. Rejection and typical acceptance:
//! a distribution over the vocabulary for each draft up to the first that falls, that is an exponential a kept token, and
//! behind it two more passes of additions; with a stated q the whole of it is read. Of 150,000 logits on one core of a 2-core
//! Xeon (`tests/cost.rs`), in ms a judged draft: coupled 0.9, rejection 0.8 (1.1 where it falls), typical 1.8; with top-k 50
//! and top-p 0.95 coupled 0.14, rejection 0.23 (0.43), typical 0.34; at temperature 0 all of them 0.05; of 32,000 logits a
//! fifth. Nothing is allocated once the buffers have the size of the vocabulary.
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
    /// How its tokens are drawn.
    pub params: &'a SamplingParams,
    /// Position of the first draft: the index, from the start of the prompt, of the token chosen from the first row of
    /// logits.
    pub position: u32,
    /// The drafts; none is a plain decode.
    pub drafts: &'a [u32],
    /// The distributions they were drawn from, `[drafts, vocab]`, where the proposer has any (else each counts as certain).
    /// Only rejection looks at them. They have to be what the drafts were really drawn from, else the output is not
    /// distributed as the target's.
    pub probabilities: Option<&'a [f64]>,
    /// The target's logits behind the last known token and behind each draft, `[drafts + 1, vocab]`.
    pub logits: &'a [f32],
}

impl VerifyRow<'_> {
    /// The size of the vocabulary, once everything is known to fit.
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

/// What became of a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Drafts accepted before the first miss.
    pub accepted: u16,
    /// Drafts that pass the rule taken by themselves, each given the row of logits that it has, behind a miss too: vLLM
    /// V0's count. Equal to `accepted` where it was not asked for.
    pub accepted_noncausal: u16,
}

/// Applies a rule to rows; holds buffers only.
#[derive(Default)]
pub struct Verifier {
    rule: Acceptance,
    count_noncausal: bool,
    judge: Judge,
}

impl Verifier {
    /// A verifier by `rule`.
    #[must_use]
    pub fn new(rule: Acceptance) -> Self {
        Self { rule, ..Self::default() }
    }

    /// The rule.
    #[must_use]
    pub fn rule(&self) -> Acceptance {
        self.rule
    }

    /// Whether drafts behind a miss are judged too, for [`Verdict::accepted_noncausal`] (they never count otherwise). Costs
    /// a judgement for each of them; one whose logits cannot be judged does not pass, and is no error.
    pub fn count_noncausal(&mut self, yes: bool) {
        self.count_noncausal = yes;
    }

    /// Appends to `emitted` the accepted drafts of the row and the token behind them: the target's correction, or its bonus
    /// when all were accepted. Without drafts that is a plain choice, the same under every rule.
    ///
    /// # Errors
    ///
    /// [`SamplingError::VerifyRow`] for logits or probabilities of a length that does not fit the drafts,
    /// [`SamplingError::TokenOutOfRange`] for a draft outside the vocabulary, [`SamplingError::BadProbability`] for a stated
    /// probability that was used and is none, [`SamplingError::Typical`] for numbers of the rule out of their ranges, and
    /// those of [`Sampler::choose`](crate::sampling::Sampler::choose). Nothing is emitted then.
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

    /// The same, from the target's own choices behind the last known token and behind each draft: `drafts + 1` of them. For the
    /// coupled rule, and where a row is greedy or has no drafts, when a draft stands exactly if it is the choice at its place.
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

    /// Whether [`settle`](Self::settle) says what [`verify`](Self::verify) does, for this many drafts of such a request.
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
                // The bonus, or the plain decode of a row without drafts.
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
