use std::ops::Range;

use pagedraft_block_manager::GroupId;
use serde::Serialize;

use crate::request::Request;
use crate::scheduler::FlightRow;
use crate::{Error, FinishReason, Phase, RequestKey, RowOutcome, Scheduler, StepOutcome};

/// What a step changed for one request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Applied {
    /// Whose.
    pub request: RequestKey,
    /// The tokens that are kept, as a range of [`StepOutcome::tokens`]: those behind a stop are not.
    pub tokens: Range<u32>,
    /// Why it ended, if it did.
    pub finish: Option<FinishReason>,
    /// Drafts scored.
    pub num_drafts: u16,
    /// Drafts accepted.
    pub num_accepted: u16,
    /// Blocks of the first group that this published to the prefix cache, by their places in the request's table, each of
    /// them below the blocks that the row's tokens and accepted drafts take. Empty without prefix caching. A request that
    /// ended has its table no more: what the step was executed from has the block ids.
    pub published: Range<u32>,
}

impl Scheduler {
    /// Takes the outcome of the step in flight: appends tokens, commits and publishes KV, ends requests. `applied`
    /// is overwritten, an entry a plan row whose request was not aborted, in the plan's order.
    ///
    /// A token of the stop list ends its request with [`FinishReason::Stop`], then the greatest length with
    /// [`FinishReason::Length`]; tokens behind are dropped. A row marked [`RowOutcome::stop`] ends with `Stop` after
    /// its last token.
    ///
    /// # Errors
    ///
    /// An outcome that does not answer the plan in flight. Nothing has changed then.
    pub fn apply<R>(&mut self, outcome: &StepOutcome<R>, applied: &mut Vec<Applied>) -> Result<(), Error> {
        applied.clear();
        self.check_outcome(outcome)?;
        if let Some(control) = &mut self.control {
            control.begin_step();
            for (row, result) in self.flight.rows.iter().zip(&outcome.rows) {
                control.learn(row, result);
            }
        }
        let mut rows = std::mem::take(&mut self.flight.rows);
        self.flight.step = None;
        let mut fault = Ok(());
        let mut any_ended = false;
        for (row, result) in rows.drain(..).zip(&outcome.rows) {
            match self.apply_row(row, result, &outcome.tokens) {
                Ok(None) => {}
                Ok(Some(one)) => {
                    any_ended |= one.finish.is_some();
                    applied.push(one);
                }
                Err(error) => fault = Err(error),
            }
        }
        self.flight.rows = rows;
        if any_ended {
            let requests = &self.requests;
            self.running
                .retain(|key| requests.get(key.0).is_some_and(|request| request.phase == Phase::Running));
        }
        fault
    }

    fn apply_row(
        &mut self,
        row: FlightRow,
        result: &RowOutcome,
        tokens: &[u32],
    ) -> Result<Option<Applied>, Error> {
        let Some(request) = self.requests.get_mut(row.request.0) else {
            return Ok(None);
        };
        if matches!(request.phase, Phase::Ended(_)) {
            self.blocks.free(request.sequence)?;
            return Ok(None);
        }
        let emitted = &tokens[result.tokens.start as usize..result.tokens.end as usize];
        let mut finish = None;
        let mut kept = 0;
        for &token in emitted {
            request.tokens.push(token);
            kept += 1;
            finish = ended_by(request, token);
            if finish.is_some() {
                break;
            }
        }
        if result.stop {
            finish = Some(FinishReason::Stop);
        }
        // Accepted drafts have their KV; the token behind the last of them has not.
        request.computed = (row.end + u32::from(result.num_accepted)).min(request.len());
        let mut published = 0..0;
        for group in 0..self.blocks.groups().len() {
            let sealed = self.blocks.commit(
                request.sequence,
                GroupId(group as u8),
                &request.tokens,
                request.computed,
            )?;
            if group == 0 && self.config.enable_prefix_caching {
                published = sealed;
            }
        }
        if let Some(reason) = finish {
            request.phase = Phase::Ended(reason);
            self.ended.push(row.request);
            self.blocks.free(request.sequence)?;
        }
        Ok(Some(Applied {
            request: row.request,
            tokens: result.tokens.start..result.tokens.start + kept,
            finish,
            num_drafts: result.num_drafts,
            num_accepted: result.num_accepted,
            published,
        }))
    }

    fn check_outcome<R>(&self, outcome: &StepOutcome<R>) -> Result<(), Error> {
        let Some(step) = self.flight.step.filter(|&step| step == outcome.id) else {
            return Err(Error::WrongStep { given: outcome.id, in_flight: self.flight.step });
        };
        if outcome.rows.len() != self.flight.rows.len() {
            return Err(Error::RowCount { step, rows: self.flight.rows.len(), given: outcome.rows.len() });
        }
        for (index, (row, result)) in self.flight.rows.iter().zip(&outcome.rows).enumerate() {
            if let Some(what) = wrong_with(row, result, outcome.tokens.len()) {
                return Err(Error::Row { step, row: index, what });
            }
        }
        Ok(())
    }
}

fn ended_by(request: &Request, token: u32) -> Option<FinishReason> {
    if request.stop_token_ids.contains(&token) {
        Some(FinishReason::Stop)
    } else if request.len() >= request.max_len {
        Some(FinishReason::Length)
    } else {
        None
    }
}

fn wrong_with(row: &FlightRow, result: &RowOutcome, num_tokens: usize) -> Option<&'static str> {
    let Range { start, end } = result.tokens;
    let emitted = end.checked_sub(start);
    let whole = u32::from(result.num_accepted) + 1;
    if result.request != row.request {
        Some("is of another request than its plan row")
    } else if emitted.is_none() || end as usize > num_tokens {
        Some("names tokens that are not there")
    } else if result.num_drafts > row.drafts_max {
        Some("scored more drafts than were planned")
    } else if result.num_accepted > result.num_drafts {
        Some("accepted more drafts than it scored")
    } else if !row.samples && emitted != Some(0) {
        Some("has tokens although it ends short of the sequence")
    } else if row.samples && emitted > Some(whole) {
        Some("has more tokens than accepted drafts and one")
    } else if row.samples && emitted < Some(whole) && !result.stop {
        Some("has fewer tokens than accepted drafts and one, and no stop")
    } else {
        None
    }
}
