//! What speculation brought: counts that add up, and rates each with its definition.
//!
//! Engines mean different things by the same words, so every rate here says whose it is. A *verify row* is one request in
//! one step with at least one draft; rows without drafts count nowhere, here as in vLLM. Tokens are counted as verified,
//! before a stop condition trims them. A step that failed counts nowhere.
//!
//! ```
//! # use pagedraft_spec_decode::{acceptance::Verdict, metrics::SpeculationMetrics};
//! let mut metrics = SpeculationMetrics::default();
//! // Of two drafts the first fell, the second was right by itself: one token came out.
//! metrics.record_row(2, Verdict { accepted: 0, accepted_noncausal: 1 });
//! assert_eq!(metrics.draft_acceptance_rate(), Some(0.0));
//! assert_eq!(metrics.draft_acceptance_rate_noncausal(), Some(0.5));
//! assert_eq!(metrics.system_efficiency(), Some(1.0 / 3.0));
//! assert_eq!(metrics.mean_acceptance_length(), Some(1.0));
//! ```

mod request;
#[cfg(test)]
mod tests;

use serde::Serialize;

use crate::acceptance::Verdict;
pub use request::RequestSpeculation;

/// Cumulative counts of speculation. Two of them merge; [`since`](Self::since) takes a snapshot away. Recording allocates
/// nothing once a row had the longest drafts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SpeculationMetrics {
    /// Steps in which at least one row had drafts.
    pub num_steps: u64,
    /// Rows with at least one draft: vLLM V1's `num_drafts`.
    pub num_verify_rows: u64,
    /// Drafts verified.
    pub num_draft_tokens: u64,
    /// Drafts accepted before the first miss of their row: what speculation gained, and vLLM V1's `num_accepted_tokens`.
    pub num_accepted_tokens: u64,
    /// Drafts that pass the rule by themselves, behind a miss too: vLLM V0's `accepted_tokens`. The same as
    /// `num_accepted_tokens` where the verifier was not asked to
    /// [count them](crate::acceptance::Verifier::count_noncausal).
    pub num_accepted_tokens_noncausal: u64,
    /// Tokens that verify rows emitted: their accepted drafts and one more each (vLLM V0's `emitted_tokens`).
    pub num_emitted_tokens: u64,
    /// Tokens they would have emitted with every draft accepted: the sum of k_i + 1.
    pub max_emitted_tokens: u64,
    /// For each place among the drafts, from 0: rows that had a draft there.
    pub drafted_by_position: Vec<u64>,
    /// Rows that had a draft there and accepted all before it. As long as `drafted_by_position`.
    pub reached_by_position: Vec<u64>,
    /// Rows that accepted their draft there (and so all before it). As long as `drafted_by_position`.
    pub accepted_by_position: Vec<u64>,
    /// Rounds of proposing: the longest drafts of each step, summed (a draft model runs once a round for all rows).
    pub proposal_rounds: u64,
    /// Microseconds spent proposing in those steps.
    pub propose_us: f64,
    /// Microseconds spent proposing in steps where a proposer was asked and had nothing: in none of the means below.
    pub propose_idle_us: f64,
    /// Microseconds of the target's forward passes of those steps, the logits of prompt positions left out.
    pub scoring_us: f64,
    /// Microseconds of acceptance and sampling in those steps.
    pub verification_us: f64,
}

/// The stages of a step, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SpeculationTimes {
    /// Proposing.
    pub propose_us: f64,
    /// The target's forward pass.
    pub scoring_us: f64,
    /// Acceptance and sampling.
    pub verification_us: f64,
}

impl SpeculationMetrics {
    /// Counts a row with so many drafts; nothing if it had none.
    pub fn record_row(&mut self, drafts: usize, verdict: Verdict) {
        if drafts == 0 {
            return;
        }
        let accepted = usize::from(verdict.accepted).min(drafts);
        if self.drafted_by_position.len() < drafts {
            self.resize(drafts);
        }
        let add = |counts: &mut [u64], n: usize| counts.iter_mut().take(n).for_each(|c| *c += 1);
        add(&mut self.drafted_by_position, drafts);
        add(&mut self.reached_by_position, drafts.min(accepted + 1));
        add(&mut self.accepted_by_position, accepted);
        self.num_verify_rows += 1;
        self.num_draft_tokens += drafts as u64;
        self.num_accepted_tokens += accepted as u64;
        self.num_accepted_tokens_noncausal += u64::from(verdict.accepted_noncausal);
        self.num_emitted_tokens += accepted as u64 + 1;
        self.max_emitted_tokens += drafts as u64 + 1;
    }

    /// Counts a step whose longest drafts were `longest`. Without any, all but the time spent looking for some is left out.
    pub fn record_step(&mut self, longest: usize, times: SpeculationTimes) {
        if longest == 0 {
            self.propose_idle_us += times.propose_us;
            return;
        }
        self.num_steps += 1;
        self.proposal_rounds += longest as u64;
        self.propose_us += times.propose_us;
        self.scoring_us += times.scoring_us;
        self.verification_us += times.verification_us;
    }

    /// Adds what another counted.
    pub fn merge(&mut self, other: &Self) {
        self.combine(other, |a, b| a + b, |a, b| a + b);
    }

    /// What was counted since `snapshot`, an earlier clone of this.
    #[must_use]
    pub fn since(&self, snapshot: &Self) -> Self {
        let mut rest = self.clone();
        rest.combine(snapshot, u64::saturating_sub, |a, b| a - b);
        rest
    }

    fn resize(&mut self, positions: usize) {
        for counts in
            [&mut self.drafted_by_position, &mut self.reached_by_position, &mut self.accepted_by_position]
        {
            counts.resize(positions, 0);
        }
    }

    fn combine(&mut self, other: &Self, count: fn(u64, u64) -> u64, time: fn(f64, f64) -> f64) {
        // Whoever adds a field is told here.
        let Self {
            num_steps,
            num_verify_rows,
            num_draft_tokens,
            num_accepted_tokens,
            num_accepted_tokens_noncausal,
            num_emitted_tokens,
            max_emitted_tokens,
            drafted_by_position,
            reached_by_position,
            accepted_by_position,
            proposal_rounds,
            propose_us,
            propose_idle_us,
            scoring_us,
            verification_us,
        } = other;
        self.resize(self.drafted_by_position.len().max(drafted_by_position.len()));
        for (mine, theirs) in [
            (&mut self.num_steps, num_steps),
            (&mut self.num_verify_rows, num_verify_rows),
            (&mut self.num_draft_tokens, num_draft_tokens),
            (&mut self.num_accepted_tokens, num_accepted_tokens),
            (&mut self.num_accepted_tokens_noncausal, num_accepted_tokens_noncausal),
            (&mut self.num_emitted_tokens, num_emitted_tokens),
            (&mut self.max_emitted_tokens, max_emitted_tokens),
            (&mut self.proposal_rounds, proposal_rounds),
        ] {
            *mine = count(*mine, *theirs);
        }
        for (mine, theirs) in [
            (&mut self.drafted_by_position, drafted_by_position),
            (&mut self.reached_by_position, reached_by_position),
            (&mut self.accepted_by_position, accepted_by_position),
        ] {
            for (mine, theirs) in mine.iter_mut().zip(theirs) {
                *mine = count(*mine, *theirs);
            }
        }
        for (mine, theirs) in [
            (&mut self.propose_us, propose_us),
            (&mut self.propose_idle_us, propose_idle_us),
            (&mut self.scoring_us, scoring_us),
            (&mut self.verification_us, verification_us),
        ] {
            *mine = time(*mine, *theirs);
        }
    }
}

/// `None` where nothing was counted to divide by.
fn ratio(part: f64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part / whole as f64)
}

fn ratios(parts: &[u64], wholes: &[u64]) -> Vec<Option<f64>> {
    parts.iter().zip(wholes).map(|(&part, &whole)| ratio(part as f64, whole)).collect()
}

/// Rates and means; `None` where nothing was counted.
impl SpeculationMetrics {
    /// Accepted before the first miss / drafted: vLLM V1's "Avg Draft acceptance rate", as a fraction.
    #[must_use]
    pub fn draft_acceptance_rate(&self) -> Option<f64> {
        ratio(self.num_accepted_tokens as f64, self.num_draft_tokens)
    }

    /// Right by themselves / drafted: vLLM V0's "Draft acceptance rate". Estimates the probability alpha that one draft
    /// passes, where that is the same everywhere.
    #[must_use]
    pub fn draft_acceptance_rate_noncausal(&self) -> Option<f64> {
        ratio(self.num_accepted_tokens_noncausal as f64, self.num_draft_tokens)
    }

    /// Emitted / (sum of k_i + 1): vLLM V0's "System efficiency", carried over to rows of different lengths. With drafts
    /// that pass independently with probability a, (1 - a^(k+1)) / (1 - a) / (k + 1).
    #[must_use]
    pub fn system_efficiency(&self) -> Option<f64> {
        ratio(self.num_emitted_tokens as f64, self.max_emitted_tokens)
    }

    /// 1 + accepted / verify rows: tokens a verify row emits, the correction or bonus included, as vLLM V1 has it.
    #[must_use]
    pub fn mean_acceptance_length(&self) -> Option<f64> {
        ratio(self.num_accepted_tokens as f64, self.num_verify_rows).map(|accepted| 1.0 + accepted)
    }

    /// For each place: rows that accepted their draft there / rows that had one there. vLLM V1 divides by all verify rows,
    /// which is the same where all have k drafts.
    #[must_use]
    pub fn rate_by_position(&self) -> Vec<Option<f64>> {
        ratios(&self.accepted_by_position, &self.drafted_by_position)
    }

    /// For each place: rows that accepted their draft there / rows that had one there and accepted all before it.
    #[must_use]
    pub fn conditional_rate_by_position(&self) -> Vec<Option<f64>> {
        ratios(&self.accepted_by_position, &self.reached_by_position)
    }

    /// Milliseconds of proposing a round: one token for every row that still has room. In vLLM V0, where all rows have k
    /// drafts, proposal time / k.
    #[must_use]
    pub fn average_time_per_proposal_tok_ms(&self) -> Option<f64> {
        ratio(self.propose_us / 1e3, self.proposal_rounds)
    }

    /// Milliseconds of the target's forward pass, mean of the steps with drafts.
    #[must_use]
    pub fn scoring_time_ms(&self) -> Option<f64> {
        ratio(self.scoring_us / 1e3, self.num_steps)
    }

    /// Milliseconds of acceptance and sampling, mean of the steps with drafts.
    #[must_use]
    pub fn verification_time_ms(&self) -> Option<f64> {
        ratio(self.verification_us / 1e3, self.num_steps)
    }

    /// The two lines of vLLM V0, for drafts of at most `k`; a number that there is none for is `nan`.
    ///
    /// Acceptance rate and accepted tokens are V0's own, the non-causal ones: an engine that counts drafts up to the first
    /// miss only says less for the same tokens. V0's times are those of the last step; here they are means.
    #[must_use]
    pub fn log_lines(&self, k: usize) -> [String; 2] {
        let or_nan = |number: Option<f64>, places: usize| match number {
            Some(number) => format!("{number:.places$}"),
            None => "nan".to_owned(),
        };
        let speculation = format!(
            "Speculative metrics: Draft acceptance rate: {}, System efficiency: {}, Number of speculative tokens: {k}, \
             Number of accepted tokens: {}, Number of draft tokens: {}, Number of emitted tokens: {}.",
            or_nan(self.draft_acceptance_rate_noncausal(), 3),
            or_nan(self.system_efficiency(), 3),
            self.num_accepted_tokens_noncausal,
            self.num_draft_tokens,
            self.num_emitted_tokens,
        );
        let stages = format!(
            "SpecDecodeWorker stage times: average_time_per_proposal_tok_ms={} scoring_time_ms={} \
             verification_time_ms={}",
            or_nan(self.average_time_per_proposal_tok_ms(), 2),
            or_nan(self.scoring_time_ms(), 2),
            or_nan(self.verification_time_ms(), 2),
        );
        [speculation, stages]
    }

    /// The rates under the names that reports have for them.
    #[must_use]
    pub fn summary(&self) -> SpeculationSummary {
        SpeculationSummary {
            draft_acceptance_rate: self.draft_acceptance_rate(),
            draft_acceptance_rate_noncausal: self.draft_acceptance_rate_noncausal(),
            system_efficiency: self.system_efficiency(),
            mean_acceptance_length: self.mean_acceptance_length(),
            num_draft_tokens: self.num_draft_tokens,
            num_accepted_tokens: self.num_accepted_tokens,
            num_emitted_tokens: self.num_emitted_tokens,
            rate_by_position: self.rate_by_position(),
            average_time_per_proposal_tok_ms: self.average_time_per_proposal_tok_ms(),
            scoring_time_ms: self.scoring_time_ms(),
            verification_time_ms: self.verification_time_ms(),
        }
    }
}

/// The methods of [`SpeculationMetrics`] by the same names, as reports write them; null where nothing was counted.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct SpeculationSummary {
    pub draft_acceptance_rate: Option<f64>,
    pub draft_acceptance_rate_noncausal: Option<f64>,
    pub system_efficiency: Option<f64>,
    pub mean_acceptance_length: Option<f64>,
    pub num_draft_tokens: u64,
    pub num_accepted_tokens: u64,
    pub num_emitted_tokens: u64,
    pub rate_by_position: Vec<Option<f64>>,
    pub average_time_per_proposal_tok_ms: Option<f64>,
    pub scoring_time_ms: Option<f64>,
    pub verification_time_ms: Option<f64>,
}
