//! Checks a KV group of the target. Its rows are those of the metadata.

use std::collections::HashMap;

use super::blocks::Blocks;
use super::fault::Fault;
use super::life::Life;
use super::rows::query_len;
use super::rule::Rule;
use super::slots::{Call, check_slots};
use super::window::{FREED, UNKNOWN, first_block, first_position};
use crate::trace::record::CopyRecord;
use crate::trace::{RowKind, RowRecord, StepRecord};

/// What the trace has shown of such a group.
pub(super) struct RowGroup {
    /// The name. It is empty if the trace does not name the group, as for an engine with one group.
    pub(super) name: String,
    pub(super) window: Option<u32>,
    pub(super) blocks: Blocks,
    /// For each request, what it holds.
    pub(super) held: HashMap<String, Held>,
    /// Whether tokens were left out of the group, so that indices are not positions. Only the slots of such
    /// a group are checked.
    pub(super) pruned: bool,
}

#[derive(Default)]
pub(super) struct Held {
    /// Its blocks. [`FREED`] stands for those that were given back behind the window.
    pub(super) table: Vec<u32>,
    /// Positions before this one are known to be written.
    valid: u64,
    /// The number of blocks that its longest row had room for, drafts included.
    pub(super) reserved: u64,
    /// Whether it has hit more than its rows have reached. The tables do not show those blocks yet.
    pub(super) hit_beyond: bool,
}

impl Held {
    /// The number of leading blocks whose contents were checked. While a group has hit more than its rows
    /// have reached, the last block of the table was only seen in part.
    fn known_blocks(&self, block_size: u32) -> usize {
        let whole = usize::try_from(self.valid / u64::from(block_size)).unwrap_or(usize::MAX);
        if self.hit_beyond { whole.min(self.table.len()) } else { self.table.len() }
    }
}

/// A step in such a group.
pub(super) struct RowCall<'a> {
    pub(super) step: &'a StepRecord,
    pub(super) owners: &'a [usize],
    pub(super) call: Call<'a>,
    /// The table of each metadata row.
    pub(super) tables: Vec<Vec<u32>>,
    /// For each plan row: tokens before this one have KV in the group before the step. It is more than
    /// `num_computed` if the group hit more than the others.
    pub(super) stored: Vec<u64>,
    pub(super) num_blocks: u64,
    /// The copies of the step in this group.
    pub(super) copies: Vec<CopyRecord>,
}

impl<'a> RowCall<'a> {
    /// For each plan row, the number of tokens that have KV before the step. If `several` groups may hit
    /// differently, leading tokens without a slot count as such.
    pub(super) fn stored(step: &StepRecord, owners: &[usize], call: &Call<'_>, several: bool) -> Vec<u64> {
        let mut stored: Vec<u64> = step.rows.iter().map(|row| u64::from(row.num_computed)).collect();
        if !several {
            return stored;
        }
        let mut seen = vec![false; step.rows.len()];
        for (m, &owner) in owners.iter().enumerate() {
            let slots = &call.slots[call.query_start_loc[m] as usize..call.query_start_loc[m + 1] as usize];
            let first = !std::mem::replace(&mut seen[owner], true);
            if first && step.rows[owner].kind != RowKind::Denoise {
                stored[owner] += slots.iter().take_while(|&&slot| slot == -1).count() as u64;
            }
        }
        stored
    }

    /// Whether a plan row writes nothing in the group, because the group has hit all of it and perhaps
    /// more. The last block of its table is then a cached one, which is full even if the row ends within
    /// it.
    fn is_all_hit(&self, row: usize) -> bool {
        let computed = u64::from(self.step.rows[row].num_computed);
        self.stored[row] > computed && self.stored[row] >= computed + query_len(self.step, row)
    }

    fn id(&self, m: usize) -> &'a str {
        self.step.rows[self.owners[m]].request_id.as_str()
    }
}

impl RowGroup {
    pub(super) fn new(name: &str, window: Option<u32>, block_size: u32) -> Self {
        let (blocks, held) = (Blocks::new(block_size), HashMap::new());
        Self { name: name.to_owned(), window, blocks, held, pruned: false }
    }

    /// Checks tables, slots, who else holds the blocks that are written, and what is read. Returns the
    /// number of slots.
    pub(super) fn check(
        &mut self,
        at: &RowCall<'_>,
        live: &mut HashMap<String, Life>,
        written: &mut HashMap<u64, usize>,
    ) -> Result<u64, Fault> {
        let block_size = self.blocks.block_size();
        self.blocks.copy(&at.copies, at.num_blocks)?;
        let mut had: Vec<Option<usize>> = vec![None; at.step.rows.len()];
        for (m, table) in at.tables.iter().enumerate() {
            let owner = at.owners[m];
            let before = self.held.get(at.id(m)).map_or(0, |held| held.known_blocks(block_size));
            had[owner].get_or_insert(before);
            self.hold(at, m, table)?;
        }
        self.blocks.check_copied(&at.copies)?;
        let slots = check_slots(at.step, &at.call, at.owners, &at.tables, &at.stored, block_size, written)?;
        for (&slot, &token) in written.iter() {
            let block = block_of(slot, block_size);
            let holders = self.blocks.holders(block);
            if holders > 1 {
                return Err(self.shared_write(at, token, block, holders));
            }
        }
        for (r, row) in at.step.rows.iter().enumerate() {
            if row.first_segment() == 0 {
                self.check_read(row, at.stored[r])?;
            }
        }
        for (r, row) in at.step.rows.iter().enumerate().filter(|(_, row)| row.first_segment() == 0) {
            let had = had[r].unwrap_or(0);
            let whole = match at.is_all_hit(r) {
                true => at.stored[r].div_ceil(u64::from(block_size)),
                false => at.stored[r] / u64::from(block_size),
            };
            self.check_context(at, row, (had, whole as usize, at.stored[r]), live)?;
        }
        for (&slot, &token) in written.iter() {
            if !self.blocks.write(slot, at.step.input_tokens[token]) {
                let what = format!("input token {token} writes slot {slot}, of a block that is published");
                return Err(Fault::new(Rule::Published, what));
            }
        }
        Ok(slots)
    }

    /// Takes in a row's table. It may only grow, or change by a copy of this step.
    fn hold(&mut self, at: &RowCall<'_>, m: usize, table: &[u32]) -> Result<(), Fault> {
        let (id, stored, size) = (at.id(m), at.stored[at.owners[m]], u64::from(self.blocks.block_size()));
        let all_hit = at.is_all_hit(at.owners[m]);
        let Self { blocks, held, .. } = self;
        let held = held.entry(id.to_owned()).or_default();
        for (i, (was, is)) in held.table.iter_mut().zip(table).enumerate() {
            if was == is {
                continue;
            }
            let copied = |copy: &CopyRecord| (copy.from, copy.to) == (i64::from(*was), i64::from(*is));
            if *was == FREED || *is == FREED || !at.copies.iter().any(copied) {
                let name = |block: u32| if block == FREED { -1 } else { i64::from(block) };
                let (was, is) = (name(*was), name(*is));
                let what = format!("entry {i} of its table was block {was}, is {is}");
                return Err(Fault::of(Rule::TableChange, id, what));
            }
            blocks.release(*was);
            blocks.hold(*is, i).map_err(|what| Fault::of(Rule::Alias, id, what))?;
            *was = *is;
        }
        for (i, &block) in table.iter().enumerate().skip(held.table.len()) {
            if block == FREED {
                held.table.push(block);
                continue;
            }
            // A block that this row begins to write comes fresh from the pool, unless somebody shares it or
            // it is the target of a copy.
            let whole = all_hit || (i as u64 + 1) * size <= stored;
            let target = || at.copies.iter().any(|copy| copy.to == i64::from(block));
            if !whole && blocks.holders(block) == 0 && !target() && !blocks.hand_out(block) {
                let what = format!(
                    "block {block} is handed out to it, and the prefix cache still has what was in it"
                );
                return Err(Fault::of(Rule::Published, id, what));
            }
            blocks.hold(block, i).map_err(|what| {
                let twice = held.table.contains(&block);
                let rule = if twice { Rule::BlockTable } else { Rule::Alias };
                Fault::of(rule, id, if twice { format!("block {block} is twice in its table") } else { what })
            })?;
            held.table.push(block);
        }
        Ok(())
    }

    fn shared_write(&self, at: &RowCall<'_>, token: usize, block: u32, holders: u32) -> Fault {
        let row = at.call.query_start_loc.partition_point(|&start| start <= token as u64) - 1;
        let id = at.id(row);
        let holds = |(other, held): &(&String, &Held)| *other != id && held.table.contains(&block);
        let mut others: Vec<&String> = self.held.iter().filter(holds).map(|(other, _)| other).collect();
        others.sort();
        let what = format!(
            "input token {token} writes block {block}, which {holders} tables hold, also of {others:?}"
        );
        Fault::of(Rule::SharedWrite, id, what)
    }

    /// Checks that every slot the row sees was written in an earlier step, or copied from one that was.
    fn check_read(&self, row: &RowRecord, stored: u64) -> Result<(), Fault> {
        let id = row.request_id.as_str();
        let Some(held) = self.held.get(id) else { return Ok(()) };
        let from = held.valid.max(first_position(u64::from(row.num_computed), self.window));
        if let Some(position) = self.blocks.first_unwritten(&held.table, from, stored) {
            let block = held.table.get((position / u64::from(self.blocks.block_size())) as usize);
            let what = format!(
                "reads {stored} tokens, and that at position {position} was never written (block {block:?})"
            );
            return Err(Fault::of(Rule::Unwritten, id, what));
        }
        Ok(())
    }

    /// Checks a request that starts with stored KV: it must have found it in blocks that it may have, with
    /// its own tokens. Tokens that the trace had not shown so far are known from here on. A request that
    /// goes on had `had` blocks, and can only find more behind them: `stored` tokens in all, in `whole`
    /// full blocks.
    fn check_context(
        &self,
        at: &RowCall<'_>,
        row: &RowRecord,
        (had, whole, stored): (usize, usize, u64),
        live: &mut HashMap<String, Life>,
    ) -> Result<(), Fault> {
        let (id, size) = (row.request_id.as_str(), u64::from(self.blocks.block_size()));
        let Some((held, life)) = self.held.get(id).zip(live.get(id)) else { return Ok(()) };
        let goes_on = life.next.is_some();
        if life.opaque || row.kind == RowKind::Denoise || (goes_on && had >= whole) {
            return Ok(());
        }
        let entries = || {
            let all = held.table.iter().copied().enumerate().take(whole).skip(had);
            all.filter(|&(_, block)| block != FREED)
        };
        for (i, block) in entries() {
            let copied = || at.copies.iter().any(|copy| copy.to == i64::from(block));
            if !self.blocks.is_published(block) && !copied() && !self.is_parents(id, block, i, live) {
                let what =
                    format!("starts with {stored} tokens, of them block {block}, which nobody published");
                return Err(Fault::of(Rule::Context, id, what));
            }
        }
        let from = had as u64 * size;
        if let Some((position, is, should)) = self.blocks.first_other(&held.table, &life.tokens, from, stored)
        {
            let what = format!(
                "starts with {stored} tokens, and finds token {is} at position {position}, where it has {should}"
            );
            return Err(Fault::of(Rule::Context, id, what));
        }
        let freed = |position: u64| held.table.get((position / size) as usize) == Some(&FREED);
        let token = |position: u64| {
            let found = self.blocks.token(&held.table, position);
            found.or_else(|| freed(position).then_some(UNKNOWN))
        };
        let found: Vec<u32> = (life.tokens.len() as u64..stored).map_while(token).collect();
        let links: Vec<_> =
            entries().filter_map(|(i, block)| Some((i, block, self.blocks.link(block)?))).collect();
        let Some(life) = live.get_mut(id) else { return Ok(()) };
        life.tokens.extend(found);
        for (i, block, link) in links {
            let found = life.find(i, link);
            found
                .map_err(|what| Fault::of(Rule::Context, id, format!("starts with block {block}, {what}")))?;
        }
        Ok(())
    }

    /// Whether a running request other than `id` has computed entry `index` of its table, so that a fork
    /// may share it unpublished.
    fn is_parents(&self, id: &str, block: u32, index: usize, live: &HashMap<String, Life>) -> bool {
        let end = (index as u64 + 1) * u64::from(self.blocks.block_size());
        self.held.iter().any(|(other, held)| {
            let computed = live.get(other).and_then(|life| life.next);
            other != id && held.table.get(index) == Some(&block) && computed.is_some_and(|next| next >= end)
        })
    }

    /// Takes in the end of a row's work. Slots of rejected drafts are void, and the engine may keep or
    /// return their blocks. Blocks behind the window of the query at position `next` are given back.
    pub(super) fn settle(&mut self, step: &StepRecord, r: usize, next: u64, stored: u64) {
        let (row, size) = (&step.rows[r], u64::from(self.blocks.block_size()));
        if row.first_segment() > 0 {
            return;
        }
        let Some(held) = self.held.get_mut(&row.request_id) else { return };
        let reserved = u64::from(row.num_new)
            .saturating_add(u64::from(row.drafts_max.unwrap_or(0).saturating_sub(row.num_drafts)))
            .saturating_add(u64::from(row.num_computed))
            .div_ceil(size);
        held.reserved = held.reserved.max(reserved);
        if row.kind == RowKind::Denoise {
            return;
        }
        let end = u64::from(row.num_computed) + query_len(step, r);
        held.hit_beyond = stored > u64::from(row.num_computed) && stored >= end;
        for position in next..end {
            let block = held.table.get((position / size) as usize);
            if let Some(&block) = block.filter(|&&block| block != FREED) {
                self.blocks.forget(u64::from(block) * size + position % size);
            }
        }
        let kept = usize::try_from(next.div_ceil(size)).unwrap_or(usize::MAX);
        for block in held.table.drain(kept.min(held.table.len())..).filter(|&block| block != FREED) {
            self.blocks.release(block);
        }
        let behind = first_block(next, self.window, self.blocks.block_size());
        for block in held.table.iter_mut().take(behind).filter(|block| **block != FREED) {
            self.blocks.release(*block);
            *block = FREED;
        }
        held.valid = next;
    }

    /// Releases the blocks of a request that lost them.
    pub(super) fn give_back(&mut self, id: &str) {
        let table = self.held.remove(id).map(|held| held.table).unwrap_or_default();
        table.into_iter().filter(|&block| block != FREED).for_each(|block| self.blocks.release(block));
    }

    /// The least and the most blocks that running requests hold. A sequence holds the blocks of its tokens
    /// and, once it had room for drafts, up to as many as that room took; without drafts the two bounds are
    /// equal. There is no upper bound for a group that has hit more than the others.
    pub(super) fn bounds(&self) -> (u64, u64) {
        let least = self.blocks.held();
        let reserve = |held: &Held| match held.hit_beyond {
            true => u64::MAX,
            false => held.reserved.saturating_sub(held.table.len() as u64),
        };
        (least, self.held.values().map(reserve).fold(least, u64::saturating_add))
    }

    /// The plan row that holds a block, and the block's entry in its table.
    pub(super) fn row_of(&self, block: u32, step: &StepRecord) -> Option<(usize, usize)> {
        let index = self.blocks.index(block)?;
        let holds = |row: &RowRecord| {
            self.held.get(&row.request_id).is_some_and(|held| held.table.get(index) == Some(&block))
        };
        Some((step.rows.iter().position(holds)?, index))
    }

    /// Checks that a block of a request is full of the request's own tokens.
    pub(super) fn check_contents(&self, life: &Life, id: &str, index: usize) -> Result<(), String> {
        let size = u64::from(self.blocks.block_size());
        let (from, to) = (index as u64 * size, (index as u64 + 1) * size);
        let Some(held) = self.held.get(id) else { return Ok(()) };
        if let Some(position) = self.blocks.first_unwritten(&held.table, from, to) {
            return Err(format!(", whose position {position} was never written"));
        }
        let other = self.blocks.first_other(&held.table, &life.tokens, from, to).filter(|_| !life.opaque);
        other.map_or(Ok(()), |(position, is, should)| {
            Err(format!(" with token {is} at position {position}, where it has {should}"))
        })
    }
}

/// The block that a slot lies in.
pub(super) fn block_of(slot: u64, block_size: u32) -> u32 {
    u32::try_from(slot / u64::from(block_size)).unwrap_or(u32::MAX)
}
