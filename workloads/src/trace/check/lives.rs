//! What a trace says about a request from step to step: its table, its length, its end.

use std::collections::{HashMap, HashSet};

use super::rows::query_len;
use super::slots::{Call, check_slots, used_table};
use super::{Fault, Rule};
use crate::trace::{RowKind, StepRecord};

/// Everything that is carried from one step to the next.
pub(super) struct Lives {
    block_size: u32,
    last_step: Option<u64>,
    num_blocks: Option<u64>,
    live: HashMap<String, Life>,
    /// Ended requests, so that none comes back.
    ended: HashSet<String>,
    /// How many live tables a block is in.
    holders: HashMap<u32, u32>,
    written: HashMap<u64, usize>,
    seen: u64,
}

#[derive(Default)]
struct Life {
    table: Vec<u32>,
    /// Where its next row starts; `None` after a preemption and before the first row.
    next: Option<u64>,
    /// The token its next decode row feeds.
    last_token: Option<u32>,
    /// The tables last written, by KV group, for rows that leave theirs out. The metadata's group is "".
    written: HashMap<String, Vec<i64>>,
}

impl Lives {
    pub(super) fn new(block_size: u32) -> Self {
        Self {
            block_size,
            last_step: None,
            num_blocks: None,
            live: HashMap::new(),
            ended: HashSet::new(),
            holders: HashMap::new(),
            written: HashMap::new(),
            seen: 0,
        }
    }

    pub(super) fn requests_seen(&self) -> u64 {
        self.seen
    }

    pub(super) fn check_number(&mut self, step: u64) -> Result<(), Fault> {
        if let Some(last) = self.last_step
            && step <= last
        {
            return Err(Fault::new(Rule::StepOrder, format!("step {step} after step {last}")));
        }
        self.last_step = Some(step);
        Ok(())
    }

    /// Every rule that needs to know what was before; the number of slots that were re-derived.
    pub(super) fn check_step(&mut self, step: &StepRecord, owners: &[usize]) -> Result<u64, Fault> {
        self.check_pool(step)?;
        let running: HashSet<&str> = step.rows.iter().map(|r| r.request_id.as_str()).collect();
        for id in &step.preempted {
            self.drop_table(id);
        }
        for id in step.finished.iter().filter(|id| !running.contains(id.as_str())) {
            self.end(id);
        }
        self.check_starts(step)?;
        let mut written = std::mem::take(&mut self.written);
        let slots = self.check_tables(step, owners, &mut written);
        self.written = written;
        let slots = slots?;
        self.apply_outcome(step, owners)?;
        for id in step.finished.iter().filter(|id| running.contains(id.as_str())) {
            self.end(id);
        }
        if self.holders.len() as u64 > step.pool.used {
            let what = format!(
                "{} blocks are in running requests' tables, used is {}",
                self.holders.len(),
                step.pool.used
            );
            return Err(Fault::new(Rule::Pool, what));
        }
        Ok(slots)
    }

    fn check_pool(&mut self, step: &StepRecord) -> Result<(), Fault> {
        let pool = &step.pool;
        if pool.used.checked_add(pool.free) != Some(pool.num_blocks) {
            let what =
                format!("used {} + free {} is not num_blocks {}", pool.used, pool.free, pool.num_blocks);
            return Err(Fault::new(Rule::Pool, what));
        }
        if pool.cached > pool.free {
            return Err(Fault::new(Rule::Pool, format!("cached {} of free {}", pool.cached, pool.free)));
        }
        let size = *self.num_blocks.get_or_insert(pool.num_blocks);
        if size != pool.num_blocks {
            return Err(Fault::new(Rule::Pool, format!("num_blocks was {size}, is {}", pool.num_blocks)));
        }
        Ok(())
    }

    /// Each row starts where the one before ended, with the token that was emitted there.
    fn check_starts(&mut self, step: &StepRecord) -> Result<(), Fault> {
        for row in &step.rows {
            let id = row.request_id.as_str();
            if self.ended.contains(id) {
                return Err(Fault::of(Rule::FinishedAgain, id, "has a row after it ended"));
            }
            let seen = &mut self.seen;
            let life = self.live.entry(id.to_owned()).or_insert_with(|| {
                *seen += 1;
                Life::default()
            });
            let start = u64::from(row.num_computed);
            if let Some(next) = life.next
                && row.kind != RowKind::Denoise
                && next != start
            {
                let what = format!("num_computed is {start}, the rows before come to {next}");
                return Err(Fault::of(Rule::Growth, id, what));
            }
        }
        Ok(())
    }

    /// Tables, slots, and who else holds the blocks that are written.
    fn check_tables(
        &mut self,
        step: &StepRecord,
        owners: &[usize],
        written: &mut HashMap<u64, usize>,
    ) -> Result<u64, Fault> {
        let meta = &step.metadata;
        let (block_size, num_blocks) = (self.block_size, step.pool.num_blocks);
        let copied: HashSet<(i64, i64)> = step.copies.iter().map(|c| (c.from, c.to)).collect();
        let mut tables: Vec<Vec<u32>> = Vec::with_capacity(owners.len());
        for (m, &owner) in owners.iter().enumerate() {
            let id = step.rows[owner].request_id.as_str();
            let written = self.written_table(id, "", meta.block_tables[m].as_deref());
            let table = used_table(written, meta.seq_lens[m], block_size, num_blocks);
            tables.push(table.map_err(|what| Fault::of(Rule::BlockTable, id, what))?);
        }
        for (table, &owner) in tables.iter().zip(owners) {
            self.hold(&step.rows[owner].request_id, table, &copied)?;
        }
        let call = Call::of_metadata(meta);
        let mut slots = check_slots(step, &call, owners, &tables, self.block_size, written)?;
        for (&slot, &token) in written.iter() {
            let block = u32::try_from(slot / u64::from(self.block_size)).unwrap_or(u32::MAX);
            let holders = self.holders.get(&block).copied().unwrap_or(0);
            if holders > 1 {
                return Err(self.shared_write(step, owners, token, block, holders));
            }
        }
        for (name, group) in step.groups.iter().flatten() {
            slots += self.check_group(step, owners, name, group, written)?;
        }
        Ok(slots)
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
        group: &crate::trace::GroupRecord,
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
        check_slots(step, &Call::of_group(group), owners, &tables, self.block_size, written)
    }

    /// What a row wrote as its table, or, where it left that out, what was written before.
    fn written_table(&mut self, id: &str, group: &str, now: Option<&[i64]>) -> &[i64] {
        let life = self.live.entry(id.to_owned()).or_default();
        let known = life.written.entry(group.to_owned()).or_default();
        if let Some(now) = now
            && !now.is_empty()
        {
            known.clear();
            known.extend_from_slice(now);
        }
        known
    }

    /// Takes note of a row's table: it may only grow, or change by a copy of this step.
    fn hold(&mut self, id: &str, table: &[u32], copied: &HashSet<(i64, i64)>) -> Result<(), Fault> {
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
            release(&mut self.holders, *was);
            *self.holders.entry(*is).or_default() += 1;
            *was = *is;
        }
        for &block in table.iter().skip(life.table.len()) {
            if life.table.contains(&block) {
                return Err(Fault::of(Rule::BlockTable, id, format!("block {block} is twice in its table")));
            }
            *self.holders.entry(block).or_default() += 1;
            life.table.push(block);
        }
        Ok(())
    }

    /// What the step emitted: tokens, new lengths, ends.
    fn apply_outcome(&mut self, step: &StepRecord, owners: &[usize]) -> Result<(), Fault> {
        let mut first_token = vec![None; step.rows.len()];
        for (m, &owner) in owners.iter().enumerate() {
            let t = step.metadata.query_start_loc[m] as usize;
            first_token[owner].get_or_insert(step.input_tokens[t]);
        }
        for (r, (row, outcome)) in step.rows.iter().zip(&step.outcome).enumerate() {
            let id = row.request_id.as_str();
            let ended = outcome.finish_reason.is_some();
            let emitted = outcome.token_ids.len() as u64;
            let accepted = u64::from(outcome.num_accepted);
            let wrong = match row.kind {
                RowKind::Prefill => emitted > 1,
                RowKind::Decode | RowKind::Verify => {
                    emitted > accepted + 1 || (emitted < accepted + 1 && !ended)
                }
                RowKind::Denoise => false,
            };
            if wrong {
                let what =
                    format!("a {:?} row with {accepted} accepted drafts emitted {emitted} tokens", row.kind)
                        .to_lowercase();
                return Err(Fault::of(Rule::Tokens, id, what));
            }
            let known = query_len(step, r) - u64::from(outcome.num_drafts);
            let life = self.live.entry(id.to_owned()).or_default();
            if matches!(row.kind, RowKind::Decode | RowKind::Verify)
                && let (Some(last), Some(fed)) = (life.last_token, first_token[r])
                && last != fed
            {
                return Err(Fault::of(
                    Rule::Tokens,
                    id,
                    format!("feeds token {fed}, the last one emitted was {last}"),
                ));
            }
            let next = u64::from(row.num_computed) + known + accepted;
            if row.kind != RowKind::Denoise {
                life.next = Some(next);
                life.last_token = outcome.token_ids.last().copied().or(life.last_token);
                // Blocks of rejected drafts hold nothing; the engine may keep or return them.
                let kept = usize::try_from(next.div_ceil(u64::from(self.block_size))).unwrap_or(usize::MAX);
                for block in life.table.drain(kept.min(life.table.len())..) {
                    release(&mut self.holders, block);
                }
            }
            if ended {
                self.end(id);
            }
        }
        Ok(())
    }

    fn drop_table(&mut self, id: &str) {
        if let Some(life) = self.live.get_mut(id) {
            for block in life.table.drain(..) {
                release(&mut self.holders, block);
            }
            life.written.clear();
            life.next = None;
        }
    }

    fn end(&mut self, id: &str) {
        self.drop_table(id);
        self.live.remove(id);
        self.ended.insert(id.to_owned());
    }
}

fn release(holders: &mut HashMap<u32, u32>, block: u32) {
    if let Some(count) = holders.get_mut(&block) {
        *count -= 1;
        if *count == 0 {
            holders.remove(&block);
        }
    }
}
