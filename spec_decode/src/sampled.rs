//! The token rows whose logits a step needs, and the verdict on one plan row.

use pagedraft_model::{Choice, Selected};
use pagedraft_scheduler::{PlanRow, StepOutcome};

use crate::acceptance::{Verdict, VerifyRow};
use crate::error::ExecuteError;
use crate::record::ExecutionRecord;
use crate::sampling::{Changer, logprobs};

/// The token rows whose logits a step needs. The buffers are kept from step to step.
#[derive(Debug, Default)]
pub(crate) struct Sampled {
    /// The plan rows that sample, in the plan's order.
    pub rows: Vec<u32>,
    /// For each of these plan rows, the index in `selection` where its token rows begin, and at the end the length of
    /// `selection`.
    pub starts: Vec<usize>,
    /// The token rows: for each plan row, its last known token and its drafts.
    pub selection: Vec<u32>,
    /// For each token row, the choice that a device is asked to make itself.
    pub choices: Vec<Choice>,
    pub chosen: Vec<u32>,
}

impl Sampled {
    pub fn begin(&mut self) {
        self.rows.clear();
        self.selection.clear();
        self.starts.clear();
        self.starts.push(0);
    }

    pub fn push(&mut self, plan_row: u32, token_rows: std::ops::Range<u32>) {
        self.rows.push(plan_row);
        self.selection.extend(token_rows);
        self.starts.push(self.selection.len());
    }

    /// The token rows, plan row by plan row.
    pub fn selection(&self) -> &[u32] {
        &self.selection
    }

    /// The plan rows that sample, each with the range of its token rows in the selection.
    pub fn rows(&self) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> + '_ {
        self.rows.iter().zip(self.starts.windows(2)).map(|(&row, span)| (row as usize, span[0]..span[1]))
    }

    /// The end of the longest run of plan rows from `from` on that has at most `limit` token rows. The run has one plan
    /// row at least.
    pub fn chunk(&self, from: usize, limit: usize) -> usize {
        let most = self.starts[from] + limit;
        let end = self.starts.partition_point(|&start| start <= most) - 1;
        end.clamp(from + 1, self.rows.len().max(from + 1))
    }
}

/// What the executor provides to decide one row.
pub(crate) struct Parts<'a> {
    pub requests: &'a crate::requests::Requests,
    pub verifier: &'a mut crate::acceptance::Verifier,
    pub drafts: &'a [u32],
    pub probabilities: Option<&'a [f64]>,
    pub keep_logits: bool,
    /// The tokens of the request that are known, and what changes logits by them.
    pub known: &'a [u32],
    pub changer: &'a mut Changer,
    /// The position of the first token that is chosen.
    pub position: u32,
}

impl Parts<'_> {
    /// Verifies one plan row and writes the result to the outcome. Its token rows are `rows` of `logits`.
    pub(crate) fn decide(
        self,
        row: &PlanRow,
        plan_row: usize,
        logits: &Selected<'_>,
        rows: std::ops::Range<usize>,
        outcome: &mut StepOutcome<ExecutionRecord>,
    ) -> Result<Verdict, ExecuteError> {
        let bad = |source| ExecuteError::Sampling { request: row.request, source };
        let registered = self.requests.get(row.request)?;
        let params = &registered.sampling;
        let start = outcome.tokens.len();
        let block = logits.block(rows.clone());
        let block = match &params.changes {
            Some(changes) => {
                let known = self.known.get(..self.position as usize).unwrap_or(self.known);
                self.changer.change(changes, (known, registered.prompt_len as usize), self.drafts, block)
            }
            None => block,
        };
        let verify = VerifyRow {
            params,
            position: self.position,
            drafts: self.drafts,
            probabilities: self.probabilities,
            logits: block,
        };
        let verified = self.verifier.verify(verify, &mut outcome.tokens).map_err(bad);
        let verdict = verified.inspect_err(|_| outcome.tokens.truncate(start))?;
        if let Some(recorded) = registered.recorded.as_deref().filter(|_| registered.follows)
            && let Some(&token) = recorded.get(self.position.saturating_sub(registered.prompt_len) as usize)
            && let [only] = &mut outcome.tokens[start..]
        {
            *only = token;
        }
        note(outcome, plan_row, start, self.drafts.len(), verdict);
        for (at, &token) in rows.clone().zip(&outcome.tokens[start..]) {
            if let Some(n) = params.logprobs {
                let row_logprobs = logprobs(logits.row(at), n, token).map_err(bad)?;
                outcome.record.logprobs.push((row.request, row_logprobs));
            }
            if self.keep_logits {
                outcome.record.logits.push((row.request, logits.row(at).to_vec()));
            }
        }
        Ok(verdict)
    }

    /// Verifies one plan row as [`decide`](Self::decide) does, but from the tokens that the target chooses at each of
    /// its token rows.
    pub(crate) fn settle(
        self,
        plan_row: usize,
        chosen: &[u32],
        outcome: &mut StepOutcome<ExecutionRecord>,
    ) -> Verdict {
        let start = outcome.tokens.len();
        let verdict = self.verifier.settle(self.drafts, chosen, &mut outcome.tokens);
        note(outcome, plan_row, start, self.drafts.len(), verdict);
        verdict
    }
}

/// Writes the result of a plan row to the outcome. Its tokens begin at `start`.
fn note(
    outcome: &mut StepOutcome<ExecutionRecord>,
    plan_row: usize,
    start: usize,
    drafts: usize,
    verdict: Verdict,
) {
    let end = outcome.tokens.len();
    let result = &mut outcome.rows[plan_row];
    result.tokens = start as u32..end as u32;
    result.num_drafts = drafts as u16;
    result.num_accepted = verdict.accepted;
}
