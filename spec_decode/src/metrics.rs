//! Measures what speculation gains: counts that add up, and rates that each come with a definition.
//!
//! Engines mean different things by the same words, so the documentation of every rate here says whose definition it
//! follows. A *verify row* is one request in one step with at least one draft. Rows without drafts are not counted, as
//! in vLLM. Tokens are counted as verified, before a stop condition trims them. A step that failed is not counted.
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

/// Cumulative counts of speculation. Two of them can be merged, and [`since`](Self::since) subtracts an earlier
/// snapshot. Recording allocates nothing once a row had the longest drafts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SpeculationMetrics {
    /// The number of steps in which at least one row had drafts.
    pub num_steps: u64,
    /// The number of rows with at least one draft: vLLM V1's `num_drafts`.
    pub num_verify_rows: u64,
    /// The number of drafts verified.
    pub num_draft_tokens: u64,
    /// The number of drafts accepted before the first rejection in their row. This is what speculation gains, and vLLM
    /// V1's `num_accepted_tokens`.
    pub num_accepted_tokens: u64,
    /// The number of drafts that pass the acceptance rule by themselves, even behind a rejected one: vLLM V0's
    /// `accepted_tokens`. It equals `num_accepted_tokens` unless the verifier was asked to [count
    /// them](crate::acceptance::Verifier::count_noncausal).
    pub num_accepted_tokens_noncausal: u64,
    /// The number of tokens that verify rows emitted: their accepted drafts and one more for each row (vLLM V0's
    /// `emitted_tokens`).
    pub num_emitted_tokens: u64,
    /// The number of tokens that they would have emitted with every draft accepted: the sum of k_i + 1.
    pub max_emitted_tokens: u64,
    /// For each position among the drafts, from 0, the number of rows that had a draft there.
    pub drafted_by_position: Vec<u64>,
    /// For each position, the number of rows that had a draft there and accepted all drafts before it. It is as long as
    /// `drafted_by_position`.
    pub reached_by_position: Vec<u64>,
    /// For each position, the number of rows that accepted their draft there, and so all drafts before it. It is as
    /// long as `drafted_by_position`.
    pub accepted_by_position: Vec<u64>,
    /// The number of rounds of proposing: the sum over steps of the longest drafts. A draft model runs once a round for
    /// all rows.
    pub proposal_rounds: u64,
    /// The microseconds spent proposing in steps with drafts.
    pub propose_us: f64,
    /// The microseconds spent proposing in steps in which a proposer was asked and gave nothing. None of the means
    /// below contains them.
    pub propose_idle_us: f64,
    /// The microseconds of the target's forward passes in steps with drafts, without the logits of prompt positions.
    pub scoring_us: f64,
    /// The microseconds of acceptance and sampling in steps with drafts.
    pub verification_us: f64,
}

/// The microseconds that a step spent in each stage.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SpeculationTimes {
    /// Microseconds of proposing.
    pub propose_us: f64,
    /// Microseconds of the target's forward pass.
    pub scoring_us: f64,
    /// Microseconds of acceptance and sampling.
    pub verification_us: f64,
}

impl SpeculationMetrics {
    /// Counts a row with this many drafts. A row without drafts is not counted.
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

    /// Counts a step whose longest drafts were `longest` tokens. If no row had drafts, only the time spent looking for
    /// some is counted.
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

    /// Adds the counts of another.
    pub fn merge(&mut self, other: &Self) {
        self.combine(other, |a, b| a + b, |a, b| a + b);
    }

    /// The counts since `snapshot`, which is an earlier clone of this.
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
        // Naming every field makes the compiler point here when one is added.
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

/// The share of `part` in `whole`. `None` if `whole` is 0.
fn ratio(part: f64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part / whole as f64)
}

fn ratios(parts: &[u64], wholes: &[u64]) -> Vec<Option<f64>> {
    parts.iter().zip(wholes).map(|(&part, &whole)| ratio(part as f64, whole)).collect()
}

/// Rates and means. They are `None` if nothing was counted.
impl SpeculationMetrics {
    /// Drafts accepted before the first rejection / drafts: vLLM V1's "Avg Draft acceptance rate", as a fraction.
    #[must_use]
    pub fn draft_acceptance_rate(&self) -> Option<f64> {
        ratio(self.num_accepted_tokens as f64, self.num_draft_tokens)
    }

    /// Drafts that pass by themselves / drafts: vLLM V0's "Draft acceptance rate". It estimates the probability alpha
    /// that one draft passes, if that is the same for all drafts.
    #[must_use]
    pub fn draft_acceptance_rate_noncausal(&self) -> Option<f64> {
        ratio(self.num_accepted_tokens_noncausal as f64, self.num_draft_tokens)
    }

    /// Emitted tokens / (sum of k_i + 1): vLLM V0's "System efficiency", extended to rows of different lengths. If
    /// drafts pass independently with probability a, it is (1 - a^(k+1)) / (1 - a) / (k + 1).
    #[must_use]
    pub fn system_efficiency(&self) -> Option<f64> {
        ratio(self.num_emitted_tokens as f64, self.max_emitted_tokens)
    }

    /// 1 + accepted drafts / verify rows: the tokens that a verify row emits, its correction or bonus included, as vLLM
    /// V1 defines it.
    #[must_use]
    pub fn mean_acceptance_length(&self) -> Option<f64> {
        ratio(self.num_accepted_tokens as f64, self.num_verify_rows).map(|accepted| 1.0 + accepted)
    }

    /// For each position: rows that accepted their draft there / rows that had a draft there. vLLM V1 divides by all
    /// verify rows, which is the same if all of them have k drafts.
    #[must_use]
    pub fn rate_by_position(&self) -> Vec<Option<f64>> {
        ratios(&self.accepted_by_position, &self.drafted_by_position)
    }

    /// For each position: rows that accepted their draft there / rows that had a draft there and accepted all drafts
    /// before it.
    #[must_use]
    pub fn conditional_rate_by_position(&self) -> Vec<Option<f64>> {
        ratios(&self.accepted_by_position, &self.reached_by_position)
    }

    /// The milliseconds of a round of proposing, which gives one token to every row that still has room. In vLLM V0,
    /// where all rows have k drafts, it is the proposal time / k.
    #[must_use]
    pub fn average_time_per_proposal_tok_ms(&self) -> Option<f64> {
        ratio(self.propose_us / 1e3, self.proposal_rounds)
    }

    /// The milliseconds of the target's forward pass, as a mean over the steps with drafts.
    #[must_use]
    pub fn scoring_time_ms(&self) -> Option<f64> {
        ratio(self.scoring_us / 1e3, self.num_steps)
    }

    /// The milliseconds of acceptance and sampling, as a mean over the steps with drafts.
    #[must_use]
    pub fn verification_time_ms(&self) -> Option<f64> {
        ratio(self.verification_us / 1e3, self.num_steps)
    }

    /// The two log lines of vLLM V0, for drafts of at most `k` tokens. A number that can't be computed is `nan`.
    ///
    /// The acceptance rate and the accepted tokens are V0's own, the non-causal ones. An engine that counts drafts only
    /// up to the first rejection reports less for the same tokens. V0 reports the times of the last step; here they are
    /// means.
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

    /// The rates under the names that reports use.
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

/// The results of the methods of [`SpeculationMetrics`] of the same names, as reports write them. A rate is null if
/// nothing was counted.
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
