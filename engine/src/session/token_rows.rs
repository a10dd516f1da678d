//! The token rows of a step, and whose they are.

use pagedraft_scheduler::{Kind, PlanRow, StepOutcome, StepPlan};
use pagedraft_spec_decode::ExecutionRecord;

/// A token that a step computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TokenRow {
    /// Its index among the tokens that the model was given.
    pub token: usize,
    /// The row of the metadata that it belongs to.
    pub metadata_row: usize,
    /// The plan row.
    pub plan_row: usize,
    /// Its position in the sequence.
    pub position: u32,
    /// Whether it belongs to the sequence: a known token, or a draft that was accepted.
    pub kept: bool,
    /// Whether it was computed beside drafts, or is one.
    pub verified: bool,
}

/// The tokens that the first segment of a step computed, in the order in which the model was given them.
pub(super) fn token_rows<'a>(
    plan: &'a StepPlan,
    outcome: &'a StepOutcome<ExecutionRecord>,
) -> impl Iterator<Item = TokenRow> + 'a {
    segment_rows(plan, outcome, 0, |_, position| position)
}

/// The tokens that segment `segment` of a step computed, in the order in which the model was given them. `position` tells of a plan row and
/// the position that the model was given the position in the sequence.
pub(super) fn segment_rows<'a>(
    plan: &'a StepPlan,
    outcome: &'a StepOutcome<ExecutionRecord>,
    segment: usize,
    position: impl Fn(&PlanRow, u32) -> u32 + Copy + 'a,
) -> impl Iterator<Item = TokenRow> + 'a {
    let record = &outcome.record;
    let (inputs, plan_rows) = match segment.checked_sub(1).and_then(|more| record.more.get(more)) {
        Some(more) => (&more.inputs, &more.plan_rows),
        None => (&record.inputs, &record.plan_rows),
    };
    // The metadata of groups that the segment does not use is empty.
    let used = inputs.groups.iter().find(|metadata| metadata.num_rows() > 0);
    let starts = used.map_or(&[][..], |metadata| &metadata.query_start_loc);
    let rows = starts.windows(2).zip(plan_rows).enumerate();
    rows.flat_map(move |(metadata_row, (bounds, &plan_row))| {
        (bounds[0] as usize..bounds[1] as usize).filter_map(move |token| {
            let plan_row = plan_row as usize;
            let (row, result) = (plan.rows.get(plan_row)?, outcome.rows.get(plan_row)?);
            let position = position(row, *inputs.positions.get(token)?);
            // Tokens of a prefill have no drafts among them.
            let kept = row.kind == Kind::Prefill
                || position < row.tokens.end.saturating_add(u32::from(result.num_accepted));
            let verified = row.kind == Kind::Verify;
            Some(TokenRow { token, metadata_row, plan_row, position, kept, verified })
        })
    })
}
