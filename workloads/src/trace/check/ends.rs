//! Checks which requests ended and which were preempted.

use std::collections::HashSet;

use super::fault::Fault;
use super::lives::Lives;
use super::rule::Rule;
use crate::trace::StepRecord;

/// The reasons for which a request may have ended.
const REASONS: [&str; 3] = ["stop", "length", "abort"];

impl Lives {
    /// Preempted requests must have run. Each end must be told once, in its own step, and of a request that
    /// ran.
    pub(super) fn check_ends(&self, step: &StepRecord) -> Result<(), Fault> {
        let mut preempted = HashSet::new();
        for id in &step.preempted {
            let fault = |what| Err(Fault::of(Rule::Preempted, id, what));
            match self.live.get(id) {
                _ if !preempted.insert(id.as_str()) => return fault("is preempted twice"),
                None => return fault("is preempted, and does not run"),
                Some(life) if life.next.is_none() => return fault("is preempted, and has no blocks"),
                Some(_) => {}
            }
        }
        let mut ended: HashSet<&str> = HashSet::new();
        for outcome in &step.outcome {
            let Some(reason) = &outcome.finish_reason else { continue };
            if !REASONS.contains(&reason.as_str()) {
                let what = format!("finish_reason {reason:?} is none of {REASONS:?}");
                return Err(Fault::of(Rule::Finished, &outcome.request_id, what));
            }
            ended.insert(&outcome.request_id);
        }
        let rows: HashSet<&str> = step.rows.iter().map(|row| row.request_id.as_str()).collect();
        let mut told = HashSet::new();
        for id in &step.finished {
            let fault = |what| Err(Fault::of(Rule::Finished, id, what));
            if !told.insert(id.as_str()) {
                return fault("is named twice in finished");
            }
            if rows.contains(id.as_str()) && !ended.contains(id.as_str()) {
                return fault("is named in finished, and its outcome has no finish_reason");
            }
            if self.ended.contains(id) {
                return fault("is named in finished, and ended before");
            }
            if !rows.contains(id.as_str()) && !self.live.contains_key(id) {
                return fault("is named in finished, and never ran");
            }
        }
        match step.outcome.iter().find(|o| o.finish_reason.is_some() && !told.contains(o.request_id.as_str()))
        {
            None => Ok(()),
            Some(untold) => {
                let what = "ended with this step and is not named in finished";
                Err(Fault::of(Rule::Finished, &untold.request_id, what))
            }
        }
    }
}
