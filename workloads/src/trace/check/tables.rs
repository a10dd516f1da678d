//! Tables of the rows of a step: what they hold, write and read.

use std::collections::{HashMap, HashSet};

use super::lives::Lives;
use super::rows::query_len;
use super::slots::{Call, check_slots, used_table};
use super::{Fault, Rule};
use crate::trace::{GroupRecord, RowKind, RowRecord, StepRecord};

impl Lives {
    /// Tables, slots, and who else holds the blocks that are written; the number of slots that were re-derived.
    pub(super) fn check_tables(&mut self, step: &StepRecord, owners: &[usize]) -> Result<u64, Fault> {
        let mut written = std::mem::take(&mut self.written);
        let slots = self.check_written(step, owners, &mut written);
        self.written = written;
        slots
    }

    fn check_written(
        &mut self,
        step: &StepRecord,
        owners: &[usize],
        written: &mut HashMap<u64, usize>,
    ) -> Result<u64, Fault> {
        let meta = &step.metadata;
        let (block_size, num_blocks) = (self.block_size, step.pool.num_blocks);
        let mut tables: Vec<Vec<u32>> = Vec::with_capacity(owners.len());
        for (m, &owner) in owners.iter().enumerate() {
            let id = step.rows[owner].request_id.as_str();
            let written = self.written_table(id, "", meta.block_tables[m].as_deref());
            let table = used_table(written, meta.seq_lens[m], block_size, num_blocks);
            tables.push(table.map_err(|what| Fault::of(Rule::BlockTable, id, what))?);
        }
        self.blocks.copy(step)?;
        let copied: HashSet<(i64, i64)> = step.copies.iter().map(|c| (c.from, c.to)).collect();
        let targets: HashSet<i64> = step.copies.iter().map(|c| c.to).collect();
        for (table, &owner) in tables.iter().zip(owners) {
            self.hold(&step.rows[owner], table, &copied, &targets)?;
        }
        self.blocks.check_copied(step)?;
        let call = Call::of_metadata(meta);
        let mut slots = check_slots(step, &call, owners, &tables, block_size, written)?;
        for (&slot, &token) in written.iter() {
            let block = u32::try_from(slot / u64::from(block_size)).unwrap_or(u32::MAX);
            let holders = self.blocks.holders(block);
            if holders > 1 {
                return Err(self.shared_write(step, owners, token, block, holders));
            }
        }
        self.check_read(step)?;
        self.check_context(step)?;
        for (&slot, &token) in written.iter() {
            if !self.blocks.write(slot, step.input_tokens[token]) {
                let what = format!("input token {token} writes slot {slot}, of a block that is published");
                return Err(Fault::new(Rule::Published, what));
            }
        }
        for (name, group) in step.groups.iter().flatten().filter(|(_, group)| group.plan_rows.is_none()) {
            self.groups = true;
            slots += self.check_group(step, owners, name, group, written)?;
        }
        Ok(slots)
    }

    /// Every context slot was written, or copied from one that was, in an earlier step.
    fn check_read(&self, step: &StepRecord) -> Result<(), Fault> {
        for row in &step.rows {
            let id = row.request_id.as_str();
            let Some(life) = self.live.get(id) else { continue };
            let computed = u64::from(row.num_computed);
            if let Some(position) = self.blocks.first_unwritten(&life.table, life.valid, computed) {
                let what = format!(
                    "reads {computed} tokens, and that at position {position} was never written (block {:?})",
                    life.table.get((position / u64::from(self.block_size)) as usize)
                );
                return Err(Fault::of(Rule::Unwritten, id, what));
            }
        }
        Ok(())
    }

    fn shared_write(
        &self,
        step: &StepRecord,
        owners: &[usize],
        token: usize,
        block: u32,
        holders: u32,
    ) -> Fault {
        let row = step.metadata.query_start_loc.partition_point(|&start| start <= token as u64) - 1;
        let id = step.rows[owners[row]].request_id.as_str();
        let mut others: Vec<&String> = self
            .live
            .iter()
            .filter(|(other, life)| *other != id && life.table.contains(&block))
            .map(|(other, _)| other)
            .collect();
        others.sort();
        Fault::of(
            Rule::SharedWrite,
            id,
            format!(
                "input token {token} writes block {block}, which {holders} tables hold, also of {others:?}"
            ),
        )
    }

    fn check_group(
        &mut self,
        step: &StepRecord,
        owners: &[usize],
        name: &str,
        group: &GroupRecord,
        written: &mut HashMap<u64, usize>,
    ) -> Result<u64, Fault> {
        let rows = owners.len();
        let tokens = step.input_tokens.len();
        let fits = group.slot_mapping.len() == tokens
            && [group.seq_lens.len(), group.context_lens.len(), group.block_tables.len()]
                .iter()
                .all(|&n| n == rows)
            && group.kv_index.as_ref().is_none_or(|k| k.len() == tokens);
        if !fits {
            return Err(Fault::new(
                Rule::Lengths,
                format!("group {name:?} has not {tokens} tokens in {rows} rows"),
            ));
        }
        let block_size = self.block_size;
        let mut tables = Vec::with_capacity(rows);
        for (m, &owner) in owners.iter().enumerate() {
            let id = step.rows[owner].request_id.as_str();
            let written = self.written_table(id, name, group.block_tables[m].as_deref());
            let table = used_table(written, group.seq_lens[m], block_size, u64::from(u32::MAX));
            let bad = |what| Fault::of(Rule::BlockTable, id, format!("group {name:?}: {what}"));
            tables.push(table.map_err(bad)?);
        }
        check_slots(step, &Call::of_group(group, &step.metadata), owners, &tables, self.block_size, written)
    }

    /// What a row wrote as its table, or, where it left that out in a trace of changes, what was written before.
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

    /// Takes note of a row's table: it may only grow, or change by a copy of this step.
    fn hold(
        &mut self,
        row: &RowRecord,
        table: &[u32],
        copied: &HashSet<(i64, i64)>,
        targets: &HashSet<i64>,
    ) -> Result<(), Fault> {
        let id = row.request_id.as_str();
        let life = self.live.entry(id.to_owned()).or_default();
        for (i, (was, is)) in life.table.iter_mut().zip(table).enumerate() {
            if was == is {
                continue;
            }
            if !copied.contains(&(i64::from(*was), i64::from(*is))) {
                return Err(Fault::of(
                    Rule::TableChange,
                    id,
                    format!("entry {i} of its table was block {was}, is {is}"),
                ));
            }
            self.blocks.release(*was);
            self.blocks.hold(*is, i).map_err(|what| Fault::of(Rule::Alias, id, what))?;
            *was = *is;
        }
        let size = u64::from(self.block_size);
        for (i, &block) in table.iter().enumerate().skip(life.table.len()) {
            // A block that this row begins to write comes fresh from the pool, unless somebody shares it or it is a copy.
            let whole = (i as u64 + 1) * size <= u64::from(row.num_computed);
            if !whole && self.blocks.holders(block) == 0 && !targets.contains(&i64::from(block)) {
                self.blocks.hand_out(block);
            }
            self.blocks.hold(block, i).map_err(|what| {
                let twice = life.table.contains(&block);
                let rule = if twice { Rule::BlockTable } else { Rule::Alias };
                Fault::of(rule, id, if twice { format!("block {block} is twice in its table") } else { what })
            })?;
            life.table.push(block);
        }
        Ok(())
    }

    /// Slots of rejected drafts hold nothing, and their blocks are the engine's to keep or return.
    pub(super) fn settle(&mut self, step: &StepRecord, r: usize, next: u64) {
        let (row, size) = (&step.rows[r], u64::from(self.block_size));
        let Some(life) = self.live.get_mut(&row.request_id) else { return };
        let reserved = u64::from(row.num_new)
            .saturating_add(u64::from(row.drafts_max.unwrap_or(0).saturating_sub(row.num_drafts)))
            .saturating_add(u64::from(row.num_computed))
            .div_ceil(size);
        life.reserved = life.reserved.max(reserved);
        if row.kind == RowKind::Denoise {
            return;
        }
        for position in next..u64::from(row.num_computed) + query_len(step, r) {
            if let Some(&block) = life.table.get((position / size) as usize) {
                self.blocks.forget(u64::from(block) * size + position % size);
            }
        }
        let kept = usize::try_from(next.div_ceil(size)).unwrap_or(usize::MAX);
        for block in life.table.drain(kept.min(life.table.len())..) {
            self.blocks.release(block);
        }
        life.valid = next;
    }
}
