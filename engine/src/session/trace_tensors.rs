//! Writes the tensors of a step beside the steps of a trace.

use std::collections::BTreeMap;

use pagedraft_scheduler::{StepOutcome, StepPlan};
use pagedraft_spec_decode::ExecutionRecord;
use pagedraft_spec_decode::tensors::{Fact, TensorEvent};
use pagedraft_workloads::trace::{
    StepNames, TensorData, TensorRecord, TensorValue, TraceWriter, position_ranges,
};

use crate::error::Result;

/// Writes the events of the last step.
///
/// # Errors
///
/// The disk has a fault.
pub(super) fn write(
    events: &[TensorEvent],
    (plan, outcome): (&StepPlan, &StepOutcome<ExecutionRecord>),
    names: &dyn StepNames,
    writer: &mut TraceWriter,
) -> Result<()> {
    let step = writer.first_step().saturating_add(plan.id.0);
    for event in events {
        // Drafts come last among the token rows of a plan row, the rejected ones behind the accepted ones.
        let rejected = outcome
            .rows
            .get(event.plan_row as usize)
            .map_or(0, |row| row.num_drafts.saturating_sub(row.num_accepted));
        let kept = event.positions.len().saturating_sub(rejected.into());
        let record = TensorRecord {
            event: event.event.to_owned(),
            step,
            layer: event.layer,
            block: event.pass.map(|(block, _)| block),
            pass: event.pass.map(|(_, pass)| pass),
            request_id: names.request_id(event.request).to_owned(),
            positions: position_ranges(&event.positions),
            kept: (kept < event.positions.len()).then_some(kept as u32),
            shapes: event.tensors.iter().map(|one| (one.name.to_owned(), one.shape.clone())).collect(),
            values: values(event),
        };
        let rows = event.positions.len();
        let with_values = event.tensors.iter().filter(|one| !one.values.is_empty());
        let tensors: Vec<TensorData<'_>> =
            with_values.map(|one| TensorData { name: one.name, rows, values: &one.values }).collect();
        writer.write_tensors(&record, &tensors)?;
    }
    Ok(())
}

/// What is known of the tensors of an event, and what else it says.
fn values(event: &TensorEvent) -> BTreeMap<String, TensorValue> {
    let finite = |value: f64| value.is_finite().then_some(value);
    let known = event.tensors.iter().filter_map(|one| {
        let stats = one.stats?;
        let value = TensorValue::Stats {
            dtype: stats.dtype.to_owned(),
            min: Some(stats.min).filter(|value| value.is_finite()),
            max: Some(stats.max).filter(|value| value.is_finite()),
            mean: finite(stats.mean),
            std: finite(stats.std),
        };
        Some((one.name.to_owned(), value))
    });
    let said = event.facts.iter().map(|(name, fact)| {
        let value = match fact {
            Fact::Count(count) => TensorValue::Count(*count),
            Fact::Counts(counts) => TensorValue::Counts(counts.clone()),
            Fact::Reals(reals) => TensorValue::Reals(reals.iter().copied().map(finite).collect()),
        };
        ((*name).to_owned(), value)
    });
    known.chain(said).collect()
}
