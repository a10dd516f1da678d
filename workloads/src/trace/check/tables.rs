//! Checks the tables of a step's rows in every KV group of the target.

use std::collections::HashMap;

use super::fault::Fault;
use super::lives::Lives;
use super::row_group::{RowCall, RowGroup};
use super::rule::Rule;
use super::slots::{Call, check_slots, used_table};
use crate::trace::record::CopyRecord;
use crate::trace::{GroupRecord, StepRecord};

impl Lives {
    /// Checks tables, slots, and who else holds the blocks that are written. Returns the number of slots
    /// that were re-derived.
    pub(super) fn check_tables(&mut self, step: &StepRecord, owners: &[usize]) -> Result<u64, Fault> {
        let mut groups = std::mem::take(&mut self.row_groups);
        let mut written = std::mem::take(&mut self.written);
        let slots = self.check_groups(step, owners, &mut groups, &mut written);
        (self.row_groups, self.written) = (groups, written);
        slots
    }

    fn check_groups(
        &mut self,
        step: &StepRecord,
        owners: &[usize],
        groups: &mut Vec<RowGroup>,
        written: &mut HashMap<u64, usize>,
    ) -> Result<u64, Fault> {
        let others: Vec<(&String, &GroupRecord)> =
            step.groups.iter().flatten().filter(|(_, group)| group.plan_rows.is_none()).collect();
        for (name, group) in &others {
            check_lengths(step, owners, name, group)?;
        }
        self.several |= !others.is_empty();
        if groups.is_empty() {
            let named = self.kv_groups.first();
            let (name, window) = named.map_or(("", step.metadata.window), |g| (g.name.as_str(), g.window));
            groups.push(RowGroup::new(name, window, self.block_size));
        }
        let call = Call::of_metadata(&step.metadata);
        let mut slots =
            self.check_group(step, owners, &mut groups[0], (call, step.metadata.window), written)?;
        for (name, record) in others {
            if groups[0].name == *name {
                check_mirror(step, name, record)?;
                continue;
            }
            let at = groups.iter().position(|group| group.name == *name).unwrap_or_else(|| {
                groups.push(RowGroup::new(name, self.window_of(name, record.window), self.block_size));
                groups.len() - 1
            });
            let call = Call::of_group(record, &step.metadata);
            let named = |fault: Fault| Fault { what: format!("group {name:?}: {}", fault.what), ..fault };
            let checked = self.check_group(step, owners, &mut groups[at], (call, record.window), written);
            slots += checked.map_err(named)?;
        }
        Ok(slots)
    }

    fn window_of(&self, name: &str, stated: Option<u32>) -> Option<u32> {
        let known = self.kv_groups.iter().find(|group| group.name == name);
        known.map_or(stated, |group| group.window)
    }

    fn check_group(
        &mut self,
        step: &StepRecord,
        owners: &[usize],
        group: &mut RowGroup,
        (call, window): (Call<'_>, Option<u32>),
        written: &mut HashMap<u64, usize>,
    ) -> Result<u64, Fault> {
        if window != group.window {
            let text = |window: Option<u32>| window.map_or("none".to_owned(), |window| window.to_string());
            let what = format!("its window is {}, and was {}", text(window), text(group.window));
            return Err(Fault::new(Rule::Window, what));
        }
        let is_first = std::ptr::eq(call.context_lens, &step.metadata.context_lens[..]);
        group.pruned |=
            !is_first && (call.kv_index.is_some() || call.context_lens != step.metadata.context_lens);
        let num_blocks = blocks_of(step, &group.name).unwrap_or(match is_first {
            true => step.pool.num_blocks,
            false => u64::from(u32::MAX),
        });
        let key = if is_first { "" } else { group.name.as_str() };
        let block_size = self.block_size;
        let mut tables = Vec::with_capacity(owners.len());
        for (m, &owner) in owners.iter().enumerate() {
            let row = &step.rows[owner];
            let id = row.request_id.as_str();
            let written = self.written_table(id, key, call.block_tables[m].as_deref());
            let window = if group.pruned { None } else { group.window };
            let sees = (u64::from(row.num_computed), window);
            let table = used_table(written, call.seq_lens[m], block_size, num_blocks, sees);
            tables.push(table.map_err(|(rule, what)| Fault::of(rule, id, what))?);
        }
        if group.pruned {
            return check_slots(step, &call, owners, &tables, &[], self.block_size, written);
        }
        let stored = RowCall::stored(step, owners, &call, self.several);
        let copies = self.copies_of(step, &group.name);
        let at = RowCall { step, owners, call, tables, stored, num_blocks, copies };
        group.check(&at, &mut self.live, written)
    }

    /// The copies of a step in the group with this name.
    fn copies_of(&self, step: &StepRecord, name: &str) -> Vec<CopyRecord> {
        let of = |copy: &&CopyRecord| match self.kv_groups.get(usize::from(copy.group)) {
            Some(group) => group.name == name,
            None => self.kv_groups.is_empty() && name.is_empty(),
        };
        step.copies.iter().filter(of).copied().collect()
    }

    /// The table that a row wrote, or, if it left that out, the last one written.
    pub(super) fn written_table(&mut self, id: &str, group: &str, now: Option<&[i64]>) -> &[i64] {
        let delta = self.delta;
        let life = self.live.entry(id.to_owned()).or_default();
        let known = life.written.entry(group.to_owned()).or_default();
        let now = now.unwrap_or_default();
        if !(delta && now.is_empty()) {
            known.clear();
            known.extend_from_slice(now);
        }
        known
    }

    /// Takes in the end of the rows' work in every group, once `nexts` tokens of each are computed.
    pub(super) fn settle(&mut self, step: &StepRecord, owners: &[usize], nexts: &[u64]) {
        for (g, group) in self.row_groups.iter_mut().enumerate().filter(|(_, group)| !group.pruned) {
            let other = step.groups.iter().flatten().find(|(name, _)| **name == group.name);
            let call = match other {
                Some((_, record)) if g > 0 => Call::of_group(record, &step.metadata),
                _ if g > 0 => continue,
                _ => Call::of_metadata(&step.metadata),
            };
            let stored = RowCall::stored(step, owners, &call, self.several);
            for (r, &next) in nexts.iter().enumerate() {
                group.settle(step, r, next, stored[r]);
            }
        }
    }
}

/// The most blocks of the pool that a group could have, if the step says so.
pub(super) fn blocks_of(step: &StepRecord, name: &str) -> Option<u64> {
    let counts = step.pool.by_group.as_ref()?.get(name)?;
    step.pool.bytes_total?.checked_div(counts.block_bytes)
}

fn check_lengths(step: &StepRecord, owners: &[usize], name: &str, group: &GroupRecord) -> Result<(), Fault> {
    let (rows, tokens) = (owners.len(), step.input_tokens.len());
    let fits = group.slot_mapping.len() == tokens
        && [group.seq_lens.len(), group.context_lens.len(), group.block_tables.len()]
            .iter()
            .all(|&n| n == rows)
        && group.kv_index.as_ref().is_none_or(|k| k.len() == tokens);
    if fits {
        return Ok(());
    }
    Err(Fault::new(Rule::Lengths, format!("group {name:?} has not {tokens} tokens in {rows} rows")))
}

/// Checks that the group that `metadata` describes is the same in `groups`, where it is written again if
/// there are several.
fn check_mirror(step: &StepRecord, name: &str, group: &GroupRecord) -> Result<(), Fault> {
    let meta = &step.metadata;
    let same = group.slot_mapping == meta.slot_mapping
        && group.seq_lens == meta.seq_lens
        && group.context_lens == meta.context_lens
        && group.block_tables == meta.block_tables
        && group.window == meta.window
        && group.kv_index.as_deref().unwrap_or_default() == meta.kv_index;
    if same {
        return Ok(());
    }
    Err(Fault::new(Rule::Lengths, format!("group {name:?} is that of the metadata, and differs from it")))
}
