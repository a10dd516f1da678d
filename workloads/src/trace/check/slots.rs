//! Re-derives the positions and slots of one attention call.

use std::collections::HashMap;

use super::fault::Fault;
use super::rule::Rule;
use super::window::{FREED, check_entry, first_block};
use crate::trace::{GroupRecord, MetadataRecord, StepRecord};

/// What slots are derived from, in any KV group.
pub(super) struct Call<'a> {
    pub(super) slots: &'a [i64],
    pub(super) query_start_loc: &'a [u64],
    pub(super) context_lens: &'a [u64],
    pub(super) seq_lens: &'a [u64],
    pub(super) block_tables: &'a [Option<Vec<i64>>],
    pub(super) kv_index: Option<&'a [i64]>,
    /// The mask of each row; empty if all are causal.
    masks: &'a [String],
}

impl<'a> Call<'a> {
    pub(super) fn of_metadata(meta: &'a MetadataRecord) -> Self {
        Self {
            slots: &meta.slot_mapping,
            query_start_loc: &meta.query_start_loc,
            context_lens: &meta.context_lens,
            seq_lens: &meta.seq_lens,
            block_tables: &meta.block_tables,
            kv_index: Some(&meta.kv_index[..]).filter(|index| !index.is_empty()),
            masks: &meta.mask_kinds,
        }
    }

    /// The call in a group whose rows are those of `meta`.
    pub(super) fn of_group(group: &'a GroupRecord, meta: &'a MetadataRecord) -> Self {
        Self {
            slots: &group.slot_mapping,
            query_start_loc: &meta.query_start_loc,
            context_lens: &group.context_lens,
            seq_lens: &group.seq_lens,
            block_tables: &group.block_tables,
            kv_index: group.kv_index.as_deref(),
            masks: &meta.mask_kinds,
        }
    }

    /// The call in a group with rows of its own.
    pub(super) fn of_own(group: &'a GroupRecord) -> Self {
        Self {
            slots: &group.slot_mapping,
            query_start_loc: &group.query_start_loc,
            context_lens: &group.context_lens,
            seq_lens: &group.seq_lens,
            block_tables: &group.block_tables,
            kv_index: group.kv_index.as_deref(),
            masks: &group.mask_kinds,
        }
    }

    /// Whether the queries of a row also see the keys behind them.
    fn is_bidirectional(&self, row: usize) -> bool {
        self.masks.get(row).is_some_and(|mask| mask == "bidirectional")
    }

    /// The index of a token among the keys of its row; `None` if the group does not keep it.
    fn index(&self, row: usize, place: u64, token: usize) -> Option<u64> {
        match self.kv_index {
            Some(indices) => indices.get(token).and_then(|&index| u64::try_from(index).ok()),
            None => self.context_lens[row].checked_add(place),
        }
    }
}

/// Checks that positions follow the context in each of these rows. `owners` has the plan row of every row.
pub(super) fn check_positions(
    step: &StepRecord,
    call: &Call<'_>,
    positions: &[u32],
    (owners, rows): (&[usize], &[usize]),
) -> Result<(), Fault> {
    for &m in rows {
        let owner = owners[m];
        let (start, end) = (call.query_start_loc[m] as usize, call.query_start_loc[m + 1] as usize);
        for (j, t) in (start..end).enumerate() {
            // Only the rows of a canvas may leave out tokens between two others.
            let index = if call.is_bidirectional(m) {
                call.index(m, j as u64, t)
            } else {
                Some(call.context_lens[m] + j as u64)
            };
            let (is, Some(should)) = (u64::from(positions[t]), index) else { continue };
            if is != should {
                let what = format!("input token {t} is at position {is}, should be at {should}");
                return Err(Fault::of(Rule::Positions, &step.rows[owner].request_id, what));
            }
        }
    }
    Ok(())
}

/// Re-derives every slot of a call. `written` maps slots to the input token that wrote them. A token has no
/// slot if its index is -1, or below `stored` (for its plan row), where its KV is stored already.
pub(super) fn check_slots(
    step: &StepRecord,
    call: &Call<'_>,
    owners: &[usize],
    tables: &[Vec<u32>],
    stored: &[u64],
    block_size: u32,
    written: &mut HashMap<u64, usize>,
) -> Result<u64, Fault> {
    written.clear();
    let loc = call.query_start_loc;
    for (m, (&owner, table)) in owners.iter().zip(tables).enumerate() {
        let id = &step.rows[owner].request_id;
        for (j, t) in (loc[m] as usize..loc[m + 1] as usize).enumerate() {
            let index = call.index(m, j as u64, t);
            let is = call.slots[t];
            let is_stored = |index| stored.get(owner).is_some_and(|&stored| index < stored);
            if is == -1 && index.is_none_or(is_stored) {
                continue;
            }
            let should = index.and_then(|i| slot(table, i, block_size));
            if should.is_none() || u64::try_from(is).ok() != should {
                let text = |number: Option<u64>| number.map_or_else(|| "none".to_owned(), |n| n.to_string());
                let (index, should) = (text(index), text(should));
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
    (block != FREED).then_some(u64::from(block) * u64::from(block_size) + index % u64::from(block_size))
}

/// The part of a row's written table that holds its tokens. What follows is padding or reserve. The row's
/// first query is at position `at`; blocks wholly behind its window were given back.
pub(super) fn used_table(
    written: &[i64],
    length: u64,
    block_size: u32,
    num_blocks: u64,
    (at, window): (u64, Option<u32>),
) -> Result<Vec<u32>, (Rule, String)> {
    let blocks = usize::try_from(length.div_ceil(u64::from(block_size))).unwrap_or(usize::MAX);
    let Some(used) = written.get(..blocks) else {
        let what = format!("{length} tokens need {blocks} blocks, the table has {}", written.len());
        return Err((Rule::BlockTable, what));
    };
    let first = first_block(at, window, block_size);
    let mut table = Vec::with_capacity(blocks);
    for (index, &block) in used.iter().enumerate() {
        check_entry(index, block, first, at)?;
        match u32::try_from(block) {
            _ if block == -1 => table.push(FREED),
            Ok(id) if u64::from(id) < num_blocks && id != FREED => table.push(id),
            _ => {
                let what = format!("block {block} in the table of a pool of {num_blocks}");
                return Err((Rule::BlockTable, what));
            }
        }
    }
    Ok(table)
}
