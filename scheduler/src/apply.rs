use std::ops::Range;

use pagedraft_block_manager::{BlockManager, Error as BlockError, GroupId, MAX_GROUPS};
use serde::Serialize;

use crate::error::of;
use crate::piece::Piece;
use crate::request::Request;
use crate::role::Role;
use crate::scheduler::FlightRow;
use crate::segments::Segments;
use crate::{
    Error, FinishReason, Phase, Progress, RequestKey, RowOutcome, Scheduler, SlotCounts, StepOutcome,
};

/// Requests that are looked for in a list rather than asked themselves, which costs a cache miss for each that runs.
const FEW: usize = 8;

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
}

/// A row of the outcome with what belongs to it.
struct Given<'a> {
    row: usize,
    result: &'a RowOutcome,
    /// Tokens that it emitted.
    emitted: &'a [u32],
}

impl Scheduler {
    /// Takes the outcome of the step in flight: appends tokens, commits and publishes KV, ends requests. `applied`
    /// is overwritten, an entry a plan row whose request was not aborted, in the plan's order.
    ///
    /// A token of the stop list ends its request with [`FinishReason::Stop`], then the greatest length with
    /// [`FinishReason::Length`]; tokens behind are dropped. A row marked [`RowOutcome::stop`] ends with `Stop` after
    /// its last token, a row of [`Progress::Failed`] with [`FinishReason::Failed`].
    ///
    /// # Errors
    ///
    /// An outcome that does not answer the plan in flight: nothing has changed then. A fault of the book-keeping of a
    /// request's blocks, which names the request: all other rows were applied.
    pub fn apply<R>(&mut self, outcome: &StepOutcome<R>, applied: &mut Vec<Applied>) -> Result<(), Error> {
        applied.clear();
        self.check_outcome(outcome)?;
        if let Some(control) = &mut self.control {
            control.begin_step();
            let (requests, shares) = (&self.requests, self.segments.shares());
            for (row, result) in self.flight.rows.iter().zip(&outcome.rows) {
                let piece = Piece { tokens: row.start..row.end, segments: row.segments.0..row.segments.1 };
                let known = shares.rows(|segment| match requests.get(row.request.0) {
                    Some(request) if piece.segments.contains(&segment) => piece.rows(request, segment),
                    _ => 0,
                });
                control.learn(row, shares.context(row.end), known, result);
            }
        }
        let mut rows = std::mem::take(&mut self.flight.rows);
        self.flight.step = None;
        let mut fault = Ok(());
        let ended_before = self.ended.len();
        for (at, (row, result)) in rows.iter().zip(&outcome.rows).enumerate() {
            let emitted = &outcome.tokens[result.tokens.start as usize..result.tokens.end as usize];
            let given = Given { row: at, result, emitted };
            if let Err(error) = self.apply_row(row, &given, outcome, applied) {
                fault = fault.and(Err(error));
            }
        }
        rows.clear();
        self.flight.rows = rows;
        let ended = &self.ended[ended_before..];
        if ended.len() > FEW {
            let requests = &self.requests;
            self.running
                .retain(|key| requests.get(key.0).is_some_and(|request| request.phase == Phase::Running));
        } else if !ended.is_empty() {
            self.running.retain(|key| !ended.contains(key));
        }
        fault
    }

    fn apply_row<R>(
        &mut self,
        row: &FlightRow,
        given: &Given<'_>,
        outcome: &StepOutcome<R>,
        applied: &mut Vec<Applied>,
    ) -> Result<(), Error> {
        let key = row.request;
        let Self { requests, blocks, segments, ended, lost, .. } = self;
        let Some(request) = requests.get_mut(key.0) else {
            return Ok(());
        };
        if matches!(request.phase, Phase::Ended(_)) {
            return blocks.free(request.sequence).map_err(of(key));
        }
        let result = given.result;
        let thinning = request.is_thinning();
        let known = request.len();
        let mut finish = None;
        let mut kept = 0;
        for &token in given.emitted {
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
        match result.progress {
            Progress::Failed => finish = Some(FinishReason::Failed),
            Progress::Lost => lost.push(key),
            // The canvas is rewritten until it ends: no block of it is ever sealed or shared.
            Progress::Canvas { refresh } => request.refresh = refresh || kept > 0,
            Progress::Append if thinning => {
                commit_thinned(request, blocks, segments, row, given, outcome, known)?;
            }
            Progress::Append => {
                // Accepted drafts have their KV; the token behind the last of them has not.
                request.computed = (row.end + u32::from(result.num_accepted)).min(request.len());
                commit(request, blocks, segments, &outcome.took, given.row).map_err(of(key))?;
            }
        }
        if let Some(reason) = finish {
            request.phase = Phase::Ended(reason);
            ended.push(key);
            blocks.free(request.sequence).map_err(of(key))?;
        }
        applied.push(Applied {
            request: key,
            tokens: result.tokens.start..result.tokens.start + kept,
            finish,
            num_drafts: result.num_drafts,
            num_accepted: result.num_accepted,
        });
        Ok(())
    }

    fn check_outcome<R>(&self, outcome: &StepOutcome<R>) -> Result<(), Error> {
        let Some(step) = self.flight.step.filter(|&step| step == outcome.id) else {
            return Err(Error::WrongStep { given: outcome.id, in_flight: self.flight.step });
        };
        if outcome.rows.len() != self.flight.rows.len() {
            return Err(Error::RowCount { step, rows: self.flight.rows.len(), given: outcome.rows.len() });
        }
        // With one segment no row has tokens to keep.
        let slots_as_planned = self.segments.count() == 1 && outcome.took.is_empty();
        for (index, (row, result)) in self.flight.rows.iter().zip(&outcome.rows).enumerate() {
            let wrong_slots = || {
                if slots_as_planned { None } else { self.wrong_slots(index, row, result, outcome) }
            };
            if let Some(what) = wrong_with(row, result, outcome.tokens.len()).or_else(wrong_slots) {
                return Err(Error::Row { step, row: index, what });
            }
        }
        Ok(())
    }

    /// What is wrong with the slots that a row says it took.
    #[inline(never)]
    fn wrong_slots<R>(
        &self,
        index: usize,
        row: &FlightRow,
        result: &RowOutcome,
        outcome: &StepOutcome<R>,
    ) -> Option<&'static str> {
        let (need, took) = (self.flight.needs.row(index), outcome.took.row(index));
        let rejected = u32::from(row.drafts_max - result.num_accepted);
        if self.segments.count() == 1 {
            let mut groups = self.segments.roles().iter().zip(need.iter().zip(took));
            let right = groups.all(|(role, (&need, &took))| match role {
                Role::Kv(_) => took + rejected == need,
                Role::Lagging => took <= need,
                Role::Hold(_) => true,
            });
            if right {
                return None;
            }
        }
        let request = self.requests.get(row.request.0)?;
        if result.progress != Progress::Append || matches!(request.phase, Phase::Ended(_)) {
            return None;
        }
        let mut lists = [false; MAX_GROUPS];
        if request.is_thinning() {
            for kept in outcome.kept.iter().filter(|kept| kept.row as usize == index) {
                let (from, to) = (kept.positions.start as usize, kept.positions.end as usize);
                let positions = outcome.kept_positions.get(from..to);
                let Some((positions, need)) = positions.zip(need.get(usize::from(kept.group.0))) else {
                    return Some("keeps tokens in a group, or at positions, that are not there");
                };
                if positions.len() != *need as usize || !positions.is_sorted_by(|a, b| a < b) {
                    return Some(
                        "keeps another number of tokens than was planned, or not in ascending order",
                    );
                }
                lists[usize::from(kept.group.0)] = true;
            }
        }
        for (group, role) in self.segments.roles().iter().enumerate() {
            let (need, took) = (need.get(group).copied().unwrap_or(0), took.get(group).copied());
            match *role {
                Role::Kv(segment) if request.is_thinning() => {
                    let decided = segment == 0 || need == 0 || lists[group];
                    if !decided {
                        return Some("does not say which tokens it keeps in a group in which not all stay");
                    }
                }
                Role::Kv(_) if request.is_thinning() => {}
                Role::Kv(_) if took.is_some_and(|took| took + rejected != need) => {
                    return Some("took another number of slots than it computed and accepted");
                }
                Role::Lagging if took.is_some_and(|took| took > need) => {
                    return Some("took more slots for drafts than were planned");
                }
                _ => {}
            }
        }
        None
    }
}

/// Commits in every group what the row computed and accepted.
#[inline]
fn commit(
    request: &Request,
    blocks: &mut BlockManager,
    segments: &Segments,
    took: &SlotCounts,
    row: usize,
) -> Result<(), BlockError> {
    blocks.commit_all(request.sequence, &request.tokens, request.computed)?;
    // A proposer's KV goes as far as the proposer says, and never behind an accepted token.
    if let Some(group) = segments.lagging()
        && let Some(&took) = took.row(row).get(usize::from(group.0))
        && took > 0
    {
        let upto = took.min(request.len());
        blocks.commit(request.sequence, group, &request.tokens, upto)?;
    }
    Ok(())
}

/// Commits a row of a prompt of which not all tokens go on, of `known` tokens, and notes where it waits.
#[inline(never)]
fn commit_thinned<R>(
    request: &mut Request,
    blocks: &mut BlockManager,
    segments: &Segments,
    row: &FlightRow,
    given: &Given<'_>,
    outcome: &StepOutcome<R>,
    known: u32,
) -> Result<(), Error> {
    let fault = of(row.request);
    let (first, last) = row.segments;
    let reach: [u32; crate::role::MAX_SEGMENTS] = std::array::from_fn(|segment| {
        let prompt = segment.checked_sub(1).and_then(|cut| request.kept.get(cut));
        prompt.map_or(known, |prompt| prompt + (known - request.prompt_len))
    });
    // The segment that the row ends in, and how many of its tokens have passed it.
    let passed = if last - first == 1 { row.end } else { reach[usize::from(last) - 1] };
    let through = passed == reach[usize::from(last) - 1];
    for (group, role) in segments.roles().iter().enumerate() {
        let id = GroupId(group as u8);
        match *role {
            // All of the prompt reaches the segment, so that its KV is that of a request which drops nothing.
            Role::Kv(segment) if (first..last).contains(&segment) && reach[usize::from(segment)] == known => {
                let before = blocks.lengths(request.sequence, id).map_err(&fault)?.physical;
                let whole = segment + 1 < last || through;
                let upto = if whole { known } else { passed };
                blocks.commit(request.sequence, id, &request.tokens, upto.max(before)).map_err(&fault)?;
            }
            Role::Kv(segment) if segment > 0 && (first..last).contains(&segment) => {
                let kept =
                    outcome.kept.iter().find(|kept| kept.row as usize == given.row && kept.group == id);
                let positions = kept.and_then(|kept| {
                    outcome.kept_positions.get(kept.positions.start as usize..kept.positions.end as usize)
                });
                // `check_outcome` has seen that the list is there.
                let positions = positions.unwrap_or_default();
                let whole = segment + 1 < last || through;
                let stands_for = if whole { known } else { positions.last().map_or(0, |p| p + 1) };
                blocks.commit_kept(request.sequence, id, positions, stands_for).map_err(&fault)?;
            }
            // All that waited behind the segment has run through the next one.
            Role::Hold(segment) if segment + 2 < last || (segment + 2 == last && through) => {
                blocks.clear_group(request.sequence, id).map_err(&fault)?;
            }
            _ => {}
        }
    }
    if through && last == segments.count() {
        request.computed = known;
    } else {
        (request.segment, request.passed) = if through { (last, 0) } else { (last - 1, passed) };
    }
    Ok(())
}

#[inline]
fn ended_by(request: &Request, token: u32) -> Option<FinishReason> {
    if request.stop_token_ids.contains(&token) {
        Some(FinishReason::Stop)
    } else if request.len() >= request.max_len {
        Some(FinishReason::Length)
    } else {
        None
    }
}

#[inline]
fn wrong_with(row: &FlightRow, result: &RowOutcome, num_tokens: usize) -> Option<&'static str> {
    let Range { start, end } = result.tokens;
    let emitted = end.checked_sub(start);
    let whole = u32::from(result.num_accepted) + 1;
    if result.request != row.request {
        Some("is of another request than its plan row")
    } else if emitted.is_none() || end as usize > num_tokens {
        Some("names tokens that are not there")
    } else if matches!(result.progress, Progress::Failed | Progress::Lost) {
        (emitted != Some(0)).then_some("failed and emitted tokens")
    } else if matches!(result.progress, Progress::Canvas { .. }) != row.canvas.is_some() {
        Some("appends to a canvas, or rewrites a sequence that is appended to")
    } else if let Some(block) = row.canvas {
        (emitted != Some(0) && emitted != Some(block.get())).then_some("makes part of a block final")
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
