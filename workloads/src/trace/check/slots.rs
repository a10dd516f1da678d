//! Positions and slots of one attention call, re-derived.

use std::collections::HashMap;

use super::{Fault, Rule};
use crate::trace::{GroupRecord, MetadataRecord, StepRecord};

/// What slots are derived from, in the first KV group or a further one.
pub(super) struct Call<'a> {
    slots: &'a [i64],
    query_start_loc: &'a [u64],
    context_lens: &'a [u64],
    kv_index: Option<&'a [i64]>,
    /// Whether tokens may have no slot at all.
    may_skip: bool,
}

impl<'a> Call<'a> {
    pub(super) fn of_metadata(meta: &'a MetadataRecord) -> Self {
        Self {
            slots: &meta.slot_mapping,
            query_start_loc: &meta.query_start_loc,
            context_lens: &meta.context_lens,
            kv_index: None,
            may_skip: false,
        }
    }

    /// A group whose rows are those of `meta`.
    pub(super) fn of_group(group: &'a GroupRecord, meta: &'a MetadataRecord) -> Self {
        Self {
            slots: &group.slot_mapping,
            query_start_loc: &meta.query_start_loc,
            context_lens: &group.context_lens,
            kv_index: group.kv_index.as_deref(),
            may_skip: true,
        }
    }

    /// A group with rows of its own.
    pub(super) fn of_own(group: &'a GroupRecord) -> Self {
        Self {
            slots: &group.slot_mapping,
            query_start_loc: &group.query_start_loc,
            context_lens: &group.context_lens,
            kv_index: None,
            may_skip: false,
        }
    }
}

/// Positions go on from the context, row by row.
pub(super) fn check_positions(
    step: &StepRecord,
    call: &Call<'_>,
    positions: &[u32],
    owners: &[usize],
) -> Result<(), Fault> {
    for (m, &owner) in owners.iter().enumerate() {
        let (start, end) = (call.query_start_loc[m] as usize, call.query_start_loc[m + 1] as usize);
        for (j, t) in (start..end).enumerate() {
            let (is, should) = (u64::from(positions[t]), call.context_lens[m] + j as u64);
            if is != should {
                let what = format!("input token {t} is at position {is}, should be at {should}");
                return Err(Fault::of(Rule::Positions, &step.rows[owner].request_id, what));
            }
        }
    }
    Ok(())
}

/// Re-derives every slot of a call; `written` maps slots to the input token that wrote them.
pub(super) fn check_slots(
    step: &StepRecord,
    call: &Call<'_>,
    owners: &[usize],
    tables: &[Vec<u32>],
    block_size: u32,
    written: &mut HashMap<u64, usize>,
) -> Result<u64, Fault> {
    written.clear();
    let loc = call.query_start_loc;
    for (m, (&owner, table)) in owners.iter().zip(tables).enumerate() {
        let id = &step.rows[owner].request_id;
        for (j, t) in (loc[m] as usize..loc[m + 1] as usize).enumerate() {
            let index = match call.kv_index {
                Some(indices) => indices.get(t).copied().unwrap_or(-1),
                None => i64::try_from(call.context_lens[m] + j as u64).unwrap_or(-1),
            };
            let is = call.slots[t];
            if call.may_skip && index < 0 && is == -1 {
                continue;
            }
            let should = u64::try_from(index).ok().and_then(|i| slot(table, i, block_size));
            if should.is_none() || u64::try_from(is).ok() != should {
                let should = should.map_or_else(|| "none".to_owned(), |s| s.to_string());
                let what =
                    format!("input token {t}, index {index}: slot {is}, the block table gives {should}");
                return Err(Fault::of(Rule::Slot, id, what));
            }
            if let Some(slot) = should
                && let Some(other) = written.insert(slot, t)
            {
                let what = format!("slot {slot} is written by input tokens {other} and {t}");
                return Err(Fault::of(Rule::SlotTwice, id, what));
            }
        }
    }
    Ok(written.len() as u64)
}

fn slot(table: &[u32], index: u64, block_size: u32) -> Option<u64> {
    let block = *table.get(usize::try_from(index / u64::from(block_size)).ok()?)?;
    Some(u64::from(block) * u64::from(block_size) + index % u64::from(block_size))
}

/// The part of a row's written table that its tokens lie in; what is behind is padding or reserve.
pub(super) fn used_table(
    written: &[i64],
    length: u64,
    block_size: u32,
    num_blocks: u64,
) -> Result<Vec<u32>, String> {
    let blocks = usize::try_from(length.div_ceil(u64::from(block_size))).unwrap_or(usize::MAX);
    let Some(used) = written.get(..blocks) else {
        return Err(format!("{length} tokens need {blocks} blocks, the table has {}", written.len()));
    };
    let mut table = Vec::with_capacity(blocks);
    for &block in used {
        match u32::try_from(block) {
            Ok(id) if u64::from(id) < num_blocks => table.push(id),
            _ => return Err(format!("block {block} in the table of a pool of {num_blocks}")),
        }
    }
    Ok(table)
}
