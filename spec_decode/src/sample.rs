//! Turns the logits of a step into tokens: choices, verification and log probabilities.

use std::time::Instant;

use pagedraft_model::{Device, NO_CHOICE};
use pagedraft_scheduler::{Kind, KvView, StepOutcome, StepPlan};

use crate::error::ExecuteError;
use crate::executor::ModelExecutor;
use crate::record::{ExecutionRecord, PromptLogprobs};
use crate::requests::Registered;
use crate::sampled::{Parts, Sampled};
use crate::sampling::logprobs;
use crate::segment_rows::SegmentRows;

impl<D: Device> ModelExecutor<D> {
    /// Chooses tokens and verifies drafts for every plan row that reaches the end of its sequence. The rows and tokens
    /// of the outcome are in the plan's order. Returns the microseconds spent on logits and on choices.
    pub(crate) fn sample(
        &mut self,
        plan: &StepPlan,
        kv: &dyn KvView,
        outcome: &mut StepOutcome<ExecutionRecord>,
    ) -> Result<(f64, f64), ExecuteError> {
        let mut sampled = std::mem::take(&mut self.sampled);
        let times = self.sample_all(plan, kv, outcome, &mut sampled);
        self.sampled = sampled;
        times
    }

    fn sample_all(
        &mut self,
        plan: &StepPlan,
        kv: &dyn KvView,
        outcome: &mut StepOutcome<ExecutionRecord>,
        sampled: &mut Sampled,
    ) -> Result<(f64, f64), ExecuteError> {
        sampled.begin();
        self.verdicts.clear();
        for (i, row) in plan.rows.iter().enumerate() {
            let of_a_canvas = matches!(row.kind, Kind::Denoise { .. });
            if row.samples && !of_a_canvas && self.faults[i].is_none() {
                let rows = self.last_rows();
                let first = (rows.starts[i] + rows.known[i]).saturating_sub(1);
                sampled.push(i as u32, first..first + 1 + self.drafts_of(i).len() as u32);
            }
        }
        let (mut head_us, mut sample_us) = (0.0, 0.0);
        let limit = self.runner.limits().logit_rows;
        let mut from = 0;
        while from < sampled.rows.len() {
            let to = sampled.chunk(from, limit);
            let first = sampled.starts[from];
            let start = Instant::now();
            let chosen = self.choose(plan, sampled, from..to)?;
            let selection = &sampled.selection[first..sampled.starts[to]];
            let logits = if chosen { None } else { Some(self.runner.logits(selection)?) };
            let done = Instant::now();
            head_us += (done - start).as_secs_f64() * 1e6;
            for r in from..to {
                let i = sampled.rows[r] as usize;
                let rows = sampled.starts[r] - first..sampled.starts[r + 1] - first;
                if let (Some(tracer), Some(logits), true) = (&mut self.tensors, &logits, self.traces) {
                    let end = self.rows.last().map_or(0, |rows| rows.ends[i]);
                    let positions = (end.saturating_sub(1)..).take(rows.len()).collect();
                    let of_rows = rows.clone().map(|at| logits.row(at));
                    tracer.logits((i, &plan.rows[i]), None, positions, of_rows);
                }
                let parts = Parts {
                    requests: &self.requests,
                    verifier: &mut self.verifier,
                    drafts: self.draft_row[i].map_or(&[][..], |d| self.drafts.row(d as usize)),
                    probabilities: self.draft_row[i].and_then(|d| self.drafts.probabilities(d as usize)),
                    keep_logits: self.keep_logits,
                    known: kv.tokens(plan.rows[i].request),
                    changer: &mut self.changer,
                    position: self.rows.last().map_or(0, |rows| rows.ends[i]),
                };
                let drafts = parts.drafts.len();
                let verdict = match &logits {
                    Some(logits) => match parts.decide(&plan.rows[i], i, logits, rows, outcome) {
                        // No token can be chosen for this request. It ends, and the others go on.
                        Err(ExecuteError::Sampling { source, .. }) => {
                            let position = self.rows.last().map_or(0, |rows| rows.ends[i]);
                            self.faults[i] =
                                Some(format!("the token at position {position} cannot be chosen: {source}"));
                            continue;
                        }
                        verdict => verdict?,
                    },
                    None => parts.settle(i, &sampled.chosen[rows], outcome),
                };
                if drafts > 0 {
                    self.verdicts.push((drafts, verdict));
                }
            }
            if self.keep_hidden {
                let hidden = self.runner.final_hidden(selection)?;
                for r in from..to {
                    let row = &outcome.rows[sampled.rows[r] as usize];
                    for j in 0..row.tokens.len() {
                        let state = hidden.row(sampled.starts[r] - first + j).to_vec();
                        outcome.record.hidden.push((row.request, state));
                    }
                }
            }
            sample_us += done.elapsed().as_secs_f64() * 1e6;
            from = to;
        }
        Ok((head_us, sample_us))
    }

    /// Lets the device choose the tokens of some rows, so that their logits need not leave it. Returns `false` if it
    /// can't: the device does not choose, the logits are wanted or changed, the acceptance rule needs more than the target's
    /// choices, or a row has no choice (its logits then tell why).
    fn choose(
        &mut self,
        plan: &StepPlan,
        sampled: &mut Sampled,
        rows: std::ops::Range<usize>,
    ) -> Result<bool, ExecuteError> {
        if self.keep_logits || !self.runner.chooses() {
            return Ok(false);
        }
        sampled.choices.clear();
        for r in rows.clone() {
            let i = sampled.rows[r] as usize;
            let row = &plan.rows[i];
            let params = &self.requests.get(row.request)?.sampling;
            let tokens = (sampled.starts[r + 1] - sampled.starts[r]) as u32;
            if params.logprobs.is_some()
                || params.changes.is_some()
                || !self.verifier.settles(params, tokens as usize - 1)
            {
                return Ok(false);
            }
            let end = self.last_rows().ends[i];
            sampled.choices.extend((0..tokens).map(|j| params.choice(end + j)));
        }
        let selection = &sampled.selection[sampled.starts[rows.start]..sampled.starts[rows.end]];
        let chosen = self.runner.choose(selection, &sampled.choices)?;
        sampled.chosen.clear();
        sampled.chosen.extend_from_slice(chosen);
        Ok(!sampled.chosen.contains(&NO_CHOICE))
    }

    /// The rows of the last segment. Logits are computed from its residual stream.
    fn last_rows(&self) -> &SegmentRows {
        // A model has at least one segment.
        &self.rows[self.rows.len() - 1]
    }

    /// Writes the log probabilities of the prompt positions that the step computed, for the requests that
    /// asked for them. Returns the microseconds spent on logits.
    pub(crate) fn prompt_logprobs(
        &mut self,
        plan: &StepPlan,
        kv: &dyn KvView,
        record: &mut ExecutionRecord,
    ) -> Result<f64, ExecuteError> {
        let mut head_us = 0.0;
        let step = self.runner.limits().logit_rows as u32;
        for (i, row) in plan.rows.iter().enumerate() {
            let Registered { sampling, prompt_len, .. } = self.requests.get(row.request)?;
            let Some(n) = sampling.prompt_logprobs else { continue };
            // The logits at position p are the distribution of the token at p + 1.
            let prompt = &kv.tokens(row.request)[..*prompt_len as usize];
            let end = row.tokens.end.min(prompt_len.saturating_sub(1));
            let mut from = row.tokens.start;
            while from < end {
                let to = end.min(from + step);
                let start = self.last_rows().starts[i];
                let token_row = |position: u32| start + (position - row.tokens.start);
                self.sampled.begin();
                self.sampled.push(i as u32, token_row(from)..token_row(to));
                let start = Instant::now();
                let logits = self.runner.logits(&self.sampled.selection)?;
                head_us += start.elapsed().as_secs_f64() * 1e6;
                for (p, at) in (from..to).zip(0..) {
                    let logprobs = match logprobs(logits.row(at), n, prompt[p as usize + 1]) {
                        Ok(logprobs) => logprobs,
                        Err(source) => {
                            let what = "log probability of the prompt token at position";
                            self.faults[i] =
                                Some(format!("the {what} {} cannot be computed: {source}", p + 1));
                            break;
                        }
                    };
                    record.prompt_logprobs.push(PromptLogprobs {
                        request: row.request,
                        position: p + 1,
                        logprobs,
                    });
                }
                from = to;
            }
        }
        Ok(head_us)
    }
}
