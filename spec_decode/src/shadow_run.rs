//! Runs a replayed step again, operation by operation, for the canary.

use pagedraft_model::Device;
use pagedraft_scheduler::{KvView, StepOutcome, StepPlan};

use crate::canary::ShadowRow;
use crate::error::ExecuteError;
use crate::executor::ModelExecutor;
use crate::record::ExecutionRecord;
use crate::sampled::{Parts, Sampled};
use crate::shadow::Shadow;

impl<D: Device> ModelExecutor<D> {
    /// Checks a replayed step if the canary asks for it: computes the step again eagerly and compares the bits of every
    /// logit that was sampled from, the tokens, and the number of accepted drafts. The outcome of the graph is kept.
    /// The KV of the step's tokens is written a second time, with the same bits if the engine is healthy. Must be
    /// called after `sample`.
    pub(crate) fn shadow(
        &mut self,
        plan: &StepPlan,
        kv: &dyn KvView,
        outcome: &StepOutcome<ExecutionRecord>,
    ) -> Result<(), ExecuteError> {
        let Some(mut shadow) = self.shadow.take() else { return Ok(()) };
        let step = shadow.replayed;
        let seen = if outcome.record.is_replayed() {
            shadow.replayed += 1;
            if shadow.canary.due(step) {
                self.compare(&mut shadow, step, plan, kv, outcome)
            } else {
                Ok(false)
            }
        } else {
            Ok(false)
        };
        let alarm = shadow.canary.alarm().filter(|_| shadow.raise).cloned();
        self.shadow = Some(shadow);
        match (seen?, alarm) {
            (true, Some(alarm)) => Err(ExecuteError::Canary(alarm)),
            _ => Ok(()),
        }
    }

    fn compare(
        &mut self,
        shadow: &mut Shadow,
        step: u64,
        plan: &StepPlan,
        kv: &dyn KvView,
        outcome: &StepOutcome<ExecutionRecord>,
    ) -> Result<bool, ExecuteError> {
        let sampled = std::mem::take(&mut self.sampled);
        let compared = self.run_again(shadow, &sampled, plan, kv, outcome);
        self.sampled = sampled;
        compared?;
        Ok(shadow.canary.observe(step, &shadow.rows))
    }

    fn run_again(
        &mut self,
        shadow: &mut Shadow,
        sampled: &Sampled,
        plan: &StepPlan,
        kv: &dyn KvView,
        outcome: &StepOutcome<ExecutionRecord>,
    ) -> Result<(), ExecuteError> {
        // The replayed step has already computed the logits of all its rows.
        let replayed = self.runner.logits(sampled.selection())?;
        shadow.logits.clear();
        for i in 0..sampled.selection().len() {
            shadow.logits.extend_from_slice(replayed.row(i));
        }
        let vocab = self.runner.config().vocab_size;
        self.runner.forward_eager(&outcome.record.inputs)?;
        let logits = self.runner.logits(sampled.selection())?;
        shadow.rows.clear();
        let again = &mut shadow.outcome;
        again.rows.clone_from(&outcome.rows);
        again.tokens.clear();
        again.record.clear();
        for (plan_row, rows) in sampled.rows() {
            let parts = Parts {
                requests: &self.requests,
                verifier: &mut self.verifier,
                drafts: self.draft_row[plan_row].map_or(&[][..], |d| self.drafts.row(d as usize)),
                probabilities: self.draft_row[plan_row].and_then(|d| self.drafts.probabilities(d as usize)),
                keep_logits: false,
                known: kv.tokens(plan.rows[plan_row].request),
                changer: &mut self.changer,
                position: self.rows.last().map_or(0, |rows| rows.ends[plan_row]),
            };
            if self.faults[plan_row].is_some() {
                continue;
            }
            let verdict = parts.decide(&plan.rows[plan_row], plan_row, &logits, rows.clone(), again)?;
            let (was, is) = (&outcome.rows[plan_row], &again.rows[plan_row]);
            let tokens = |outcome: &StepOutcome<ExecutionRecord>, range: &std::ops::Range<u32>| {
                outcome.tokens[range.start as usize..range.end as usize].to_vec()
            };
            let replayed = &shadow.logits[rows.start * vocab..rows.end * vocab];
            let same = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
            shadow.rows.push(ShadowRow {
                request: was.request,
                plan_row: plan_row as u32,
                drafts: was.num_drafts,
                accepted_graph: was.num_accepted,
                accepted_eager: verdict.accepted,
                tokens_equal: tokens(outcome, &was.tokens) == tokens(again, &is.tokens),
                logits_equal: replayed.iter().zip(logits.block(rows)).all(same),
            });
        }
        Ok(())
    }
}
