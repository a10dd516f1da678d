//! Compares the plan with its outcome, and with the metadata rows that it became.

use std::collections::HashSet;

use super::fault::Fault;
use super::rule::Rule;
use crate::trace::{RowKind, StepRecord};

/// Checks plan and outcome row by row.
pub(super) fn check(step: &StepRecord) -> Result<(), Fault> {
    if step.rows.len() != step.outcome.len() {
        let what = format!("{} plan rows, {} outcome rows", step.rows.len(), step.outcome.len());
        return Err(Fault::new(Rule::Outcome, what));
    }
    let mut seen = HashSet::with_capacity(step.rows.len());
    for (row, outcome) in step.rows.iter().zip(&step.outcome) {
        let id = row.request_id.as_str();
        if !seen.insert(id) {
            return Err(Fault::of(Rule::PlanRows, id, "has two rows"));
        }
        if row.num_new <= row.num_drafts {
            let what =
                format!("num_new {} with num_drafts {}: no token of its own", row.num_new, row.num_drafts);
            return Err(Fault::of(Rule::PlanRows, id, what));
        }
        if row.kind == RowKind::Decode && row.num_new != 1 {
            return Err(Fault::of(Rule::PlanRows, id, format!("a decode row with num_new {}", row.num_new)));
        }
        if outcome.request_id != row.request_id {
            return Err(Fault::of(Rule::Outcome, id, format!("its outcome is of {:?}", outcome.request_id)));
        }
        if outcome.num_accepted > outcome.num_drafts || outcome.num_drafts > row.num_drafts {
            let what = format!(
                "{} drafts accepted of {} scored of {} planned",
                outcome.num_accepted, outcome.num_drafts, row.num_drafts
            );
            return Err(Fault::of(Rule::Outcome, id, what));
        }
    }
    Ok(())
}

/// The number of query tokens that plan row `row` really had: its own and the drafts that were scored.
pub(super) fn query_len(step: &StepRecord, row: usize) -> u64 {
    let (plan, outcome) = (&step.rows[row], &step.outcome[row]);
    u64::from(plan.num_new) - u64::from(plan.num_drafts) + u64::from(outcome.num_drafts)
}

/// The number of query tokens that plan row `row` has in the first segment of the model: none if it goes on in a later one.
fn first_query_len(step: &StepRecord, row: usize) -> u64 {
    if step.rows[row].first_segment() == 0 { query_len(step, row) } else { 0 }
}

/// The query tokens of each plan row in the order of their positions: its own, then drafts.
pub(super) fn inputs(step: &StepRecord, owners: &[usize]) -> Vec<Vec<u32>> {
    let loc = &step.metadata.query_start_loc;
    let mut inputs = vec![Vec::new(); step.rows.len()];
    for (m, &owner) in owners.iter().enumerate() {
        inputs[owner].extend_from_slice(&step.input_tokens[loc[m] as usize..loc[m + 1] as usize]);
    }
    inputs
}

/// The plan row of each metadata row, as `plan_rows` says if it is there. Otherwise a plan row became one
/// metadata row with as many query tokens, or (batch expansion) as many metadata rows of one query token.
/// Metadata rows of several query tokens are in the plan's order, and so are those of one; any other order
/// that fits is accepted too.
pub(super) fn owners(step: &StepRecord) -> Result<Vec<usize>, Fault> {
    let meta = &step.metadata;
    let plan = step.rows.len();
    let mut taken = vec![0u64; plan];
    let mut owners = Vec::with_capacity(meta.context_lens.len());
    let mut cursor = 0;
    let mut was_single = false;
    if let Some(stated) = &step.plan_rows
        && stated.len() != meta.context_lens.len()
    {
        let what = format!(
            "plan_rows has {} entries, there are {} metadata rows",
            stated.len(),
            meta.context_lens.len()
        );
        return Err(Fault::new(Rule::MetadataRows, what));
    }
    for (m, &context) in meta.context_lens.iter().enumerate() {
        let query = meta.query_start_loc[m + 1] - meta.query_start_loc[m];
        if (query == 1) != was_single {
            (cursor, was_single) = (0, query == 1);
        }
        let fits = |p: usize| {
            let whole = first_query_len(step, p);
            let next = u64::from(step.rows[p].num_computed) + taken[p];
            next == context && if query == 1 { taken[p] < whole } else { taken[p] == 0 && query == whole }
        };
        let stated = step.plan_rows.as_ref().map(|rows| rows[m]);
        let found = match stated {
            Some(p) => usize::try_from(p).ok().filter(|&p| p < plan && fits(p)),
            // A row that is partly expanded goes on before another begins.
            None => (0..plan).map(|i| (cursor + i) % plan).find(|&p| fits(p)),
        };
        let Some(p) = found else {
            let whose = stated.map_or_else(|| "no plan row's".to_owned(), |p| format!("not plan row {p}'s"));
            let what = format!("metadata row {m} (context {context}, query {query}) is {whose}");
            return Err(Fault::new(Rule::MetadataRows, what));
        };
        taken[p] += query;
        cursor = if taken[p] == first_query_len(step, p) { (p + 1) % plan } else { p };
        owners.push(p);
    }
    for (p, row) in step.rows.iter().enumerate() {
        if taken[p] != first_query_len(step, p) {
            let what = format!(
                "{} of its {} query tokens from {} are in metadata rows",
                taken[p],
                first_query_len(step, p),
                row.num_computed
            );
            return Err(Fault::of(Rule::MetadataRows, &row.request_id, what));
        }
    }
    Ok(owners)
}
