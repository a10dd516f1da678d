//! A KV group with rows, tokens and a pool of its own: a draft model's.
//!
//! Its owner may drop a request's blocks at any time without a word, when it needs the room or has fallen behind. So a
//! block can pass from a request that has no row to one that has: what was in it is gone, and the first would be found
//! out should it still count on it.

use std::collections::{HashMap, HashSet};

use super::blocks::Blocks;
use super::lives::{Life, Lives};
use super::rows::query_len;
use super::slots::{Call, check_positions, check_slots, used_table};
use super::{Fault, Rule};
use crate::trace::{GroupRecord, RowKind, StepRecord};

/// What the trace so far says about such a group.
pub(super) struct OwnGroup {
    blocks: Blocks,
    num_blocks: Option<u64>,
    /// By request.
    held: HashMap<String, Held>,
}

#[derive(Default)]
struct Held {
    table: Vec<u32>,
    /// Positions before this one are known to hold the request's tokens.
    valid: u64,
}

/// A step in a group: its rows' plan rows and tables.
struct GroupCall<'a> {
    step: &'a StepRecord,
    group: &'a GroupRecord,
    /// Query tokens of the plan's rows, for the drafts among them.
    inputs: &'a [Vec<u32>],
    owners: Vec<usize>,
    tables: Vec<Vec<u32>>,
}

impl Lives {
    /// Every group of the step that has rows of its own; the number of slots that were re-derived. The outcome's tokens
    /// are known already, and nobody has ended by it.
    pub(super) fn check_own_groups(&mut self, step: &StepRecord, inputs: &[Vec<u32>]) -> Result<u64, Fault> {
        let mut slots = 0;
        for (name, group) in step.groups.iter().flatten() {
            let Some(plan_rows) = &group.plan_rows else { continue };
            let named = |fault: Fault| Fault { what: format!("group {name:?}: {}", fault.what), ..fault };
            let owners = check_rows(step, group, plan_rows).map_err(named)?;
            let tables = self.own_tables(step, name, group, &owners).map_err(named)?;
            let call = GroupCall { step, group, inputs, owners, tables };
            let block_size = self.block_size;
            let own = self.own_groups.entry(name.clone()).or_insert_with(|| OwnGroup {
                blocks: Blocks::new(block_size),
                num_blocks: None,
                held: HashMap::new(),
            });
            slots += own.check(&call, &self.live, block_size).map_err(named)?;
        }
        Ok(slots)
    }

    fn own_tables(
        &mut self,
        step: &StepRecord,
        name: &str,
        group: &GroupRecord,
        owners: &[usize],
    ) -> Result<Vec<Vec<u32>>, Fault> {
        let mut tables = Vec::with_capacity(owners.len());
        for (m, &owner) in owners.iter().enumerate() {
            let id = step.rows[owner].request_id.as_str();
            let bad = |what: String| Fault::of(Rule::BlockTable, id, what);
            let (length, size) = (group.seq_lens[m], self.block_size);
            let written = self.written_table(id, name, group.block_tables[m].as_deref());
            let table = used_table(written, length, size, group.num_blocks.unwrap_or(u64::from(u32::MAX)));
            let table = table.map_err(bad)?;
            let mut seen = HashSet::with_capacity(table.len());
            if let Some(block) = table.iter().find(|&block| !seen.insert(block)) {
                return Err(bad(format!("block {block} is twice in its table")));
            }
            tables.push(table);
        }
        Ok(tables)
    }
}

/// The plan row of each row, once the lists fit together.
fn check_rows(step: &StepRecord, group: &GroupRecord, plan_rows: &[u64]) -> Result<Vec<usize>, Fault> {
    let (rows, tokens) = (plan_rows.len(), group.input_tokens.len());
    let lengths = [
        ("input_positions", group.input_positions.len(), tokens),
        ("slot_mapping", group.slot_mapping.len(), tokens),
        ("seq_lens", group.seq_lens.len(), rows),
        ("context_lens", group.context_lens.len(), rows),
        ("block_tables", group.block_tables.len(), rows),
        ("query_start_loc", group.query_start_loc.len(), rows + 1),
    ];
    for (name, is, should) in lengths {
        if is != should {
            let what = format!("{name} has {is} entries, should have {should}");
            return Err(Fault::new(Rule::Lengths, what));
        }
    }
    let loc = &group.query_start_loc;
    let sums = loc[0] == 0
        && loc[rows] == tokens as u64
        && (0..rows).all(|m| {
            let query = loc[m + 1].checked_sub(loc[m]);
            query.is_some_and(|query| group.context_lens[m].checked_add(query) == Some(group.seq_lens[m]))
        });
    if !sums {
        let what = format!(
            "query_start_loc {loc:?}, context_lens {:?}, seq_lens {:?} and {tokens} input tokens don't add up",
            group.context_lens, group.seq_lens
        );
        return Err(Fault::new(Rule::Lengths, what));
    }
    let mut owners = Vec::with_capacity(rows);
    for &row in plan_rows {
        let owner = usize::try_from(row).ok().filter(|&row| row < step.rows.len());
        match owner {
            Some(owner) if !owners.contains(&owner) => owners.push(owner),
            _ => {
                let what = format!("plan_rows names row {row} twice, or there is none");
                return Err(Fault::new(Rule::MetadataRows, what));
            }
        }
    }
    Ok(owners)
}

impl OwnGroup {
    /// A request ended or was preempted, and had `tokens`.
    pub(super) fn give_back(&mut self, id: &str, tokens: &[u32]) {
        if let Some(held) = self.held.remove(id) {
            // What it had accepted may be told as published in the line after.
            self.blocks.leave(&held.table, tokens);
            held.table.iter().for_each(|&block| self.blocks.release(block));
        }
    }

    fn check(&mut self, call: &GroupCall<'_>, live: &HashMap<String, Life>, size: u32) -> Result<u64, Fault> {
        let (step, group) = (call.step, call.group);
        let mut early = Vec::new();
        check_positions(step, &Call::of_own(group), &group.input_positions, &call.owners)?;
        // What was published before the step may be handed out in it.
        for (i, &block) in group.published.iter().enumerate() {
            if group.published[..i].contains(&block) {
                let what = format!("publishes block {block} twice");
                return Err(Fault::new(Rule::Published, what));
            }
            if !self.blocks.is_published(block) && self.has_accepted_tokens(block, live, size) {
                self.blocks.publish(block);
                early.push(block);
            }
        }
        self.let_go(call, size);
        for m in 0..call.owners.len() {
            self.hold(call, m, size)?;
        }
        for m in 0..call.owners.len() {
            self.check_context(call, m, live)?;
            check_tokens(call, m, live)?;
        }
        let mut written = HashMap::new();
        let slots = check_slots(step, &Call::of_own(group), &call.owners, &call.tables, size, &mut written)?;
        for (&slot, &token) in &written {
            let block = u32::try_from(slot / u64::from(size)).unwrap_or(u32::MAX);
            let holders = self.blocks.holders(block);
            if holders > 1 {
                let what = format!("input token {token} writes block {block}, which {holders} tables hold");
                return Err(Fault::new(Rule::SharedWrite, what));
            }
            if !self.blocks.write(slot, group.input_tokens[token]) {
                let what = format!("input token {token} writes block {block}, which is published");
                return Err(Fault::new(Rule::Published, what));
            }
        }
        for &block in &group.published {
            match early.iter().position(|&one| one == block) {
                Some(at) => drop(early.swap_remove(at)),
                None => self.check_published(block, live, size)?,
            }
        }
        self.check_pool(call)?;
        Ok(slots)
    }

    /// Entries that rows have no more, before any row gets new ones.
    fn let_go(&mut self, call: &GroupCall<'_>, size: u32) {
        for (&owner, table) in call.owners.iter().zip(&call.tables) {
            let held = self.held.entry(call.step.rows[owner].request_id.clone()).or_default();
            let same = held.table.iter().zip(table).take_while(|(was, is)| was == is).count();
            held.valid = held.valid.min(same as u64 * u64::from(size));
            for block in held.table.drain(same..) {
                self.blocks.release(block);
            }
        }
    }

    /// A row's new entries: whole ones of its context are hit, others are the row's alone.
    fn hold(&mut self, call: &GroupCall<'_>, m: usize, size: u32) -> Result<(), Fault> {
        let id = call.step.rows[call.owners[m]].request_id.as_str();
        let from = self.held.get(id).map_or(0, |held| held.table.len());
        for (i, &block) in call.tables[m].iter().enumerate().skip(from) {
            let whole = (i as u64 + 1) * u64::from(size) <= call.group.context_lens[m];
            if whole && !self.blocks.is_published(block) && !call.group.published.contains(&block) {
                let what = format!("block {block} of its context was neither its own nor published");
                return Err(Fault::of(Rule::Context, id, what));
            }
            if !whole {
                if self.blocks.holders(block) > 0 {
                    self.take_from_idle(call, block);
                }
                if self.blocks.holders(block) > 0 {
                    let what = format!("block {block} is to be written, and another row's table has it");
                    return Err(Fault::of(Rule::SharedWrite, id, what));
                }
                self.blocks.hand_out(block);
            }
            self.blocks.hold(block, i).map_err(|what| Fault::of(Rule::Alias, id, what))?;
            self.held.entry(id.to_owned()).or_default().table.push(block);
        }
        Ok(())
    }

    /// Requests without a row that have `block` must have been dropped.
    fn take_from_idle(&mut self, call: &GroupCall<'_>, block: u32) {
        let rows: HashSet<&str> =
            call.owners.iter().map(|&owner| call.step.rows[owner].request_id.as_str()).collect();
        let blocks = &mut self.blocks;
        self.held.retain(|id, held| {
            let dropped = !rows.contains(id.as_str()) && held.table.contains(&block);
            if dropped {
                held.table.iter().for_each(|&block| blocks.release(block));
            }
            !dropped
        });
    }

    /// A row's context are tokens of its request, and none that is not known yet.
    fn check_context(
        &mut self,
        call: &GroupCall<'_>,
        m: usize,
        live: &HashMap<String, Life>,
    ) -> Result<(), Fault> {
        let owner = call.owners[m];
        let row = &call.step.rows[owner];
        let (id, context) = (row.request_id.as_str(), call.group.context_lens[m]);
        let (Some(held), Some(life)) = (self.held.get_mut(id), live.get(id)) else { return Ok(()) };
        let known = known_before(call, owner);
        if known.is_some_and(|known| context > known) {
            let what = format!("takes {context} tokens as context and has {}", known.unwrap_or(0));
            return Err(Fault::of(Rule::Context, id, what));
        }
        held.valid = held.valid.min(context);
        if let Some(position) = self.blocks.first_unwritten(&held.table, held.valid, context) {
            let what = format!("reads {context} tokens, and that at position {position} was never written");
            return Err(Fault::of(Rule::Unwritten, id, what));
        }
        if !life.opaque
            && let Some((position, is, should)) =
                self.blocks.first_other(&held.table, &life.tokens, held.valid, context)
        {
            let what = format!("takes token {is} at position {position} as context, where it has {should}");
            return Err(Fault::of(Rule::Context, id, what));
        }
        held.valid = context;
        Ok(())
    }

    /// Whether a block is full of tokens that its request has, or had.
    fn has_accepted_tokens(&self, block: u32, live: &HashMap<String, Life>, size: u32) -> bool {
        let full = |(id, held): (&String, &Held)| {
            let life = live.get(id)?;
            let index = held.table.iter().position(|&other| other == block)? as u64;
            let (from, to) = (index * u64::from(size), (index + 1) * u64::from(size));
            let complete = to <= life.tokens.len() as u64
                && self.blocks.first_unwritten(&held.table, from, to).is_none()
                && self.blocks.first_other(&held.table, &life.tokens, from, to).is_none();
            Some(life.opaque || complete)
        };
        self.blocks.was_left_full(block) || self.held.iter().filter_map(full).any(|full| full)
    }

    fn check_published(&mut self, block: u32, live: &HashMap<String, Life>, size: u32) -> Result<(), Fault> {
        if !self.has_accepted_tokens(block, live, size) {
            let what = format!("publishes block {block}, and nobody has all of its tokens");
            return Err(Fault::new(Rule::Published, what));
        }
        if !self.blocks.publish(block) {
            let what = format!("publishes block {block}, which is published already");
            return Err(Fault::new(Rule::Published, what));
        }
        Ok(())
    }

    fn check_pool(&mut self, call: &GroupCall<'_>) -> Result<(), Fault> {
        let (size, used) = (call.group.num_blocks, call.group.used);
        if let (Some(is), Some(was)) = (size, self.num_blocks)
            && is != was
        {
            return Err(Fault::new(Rule::Pool, format!("num_blocks was {was}, is {is}")));
        }
        self.num_blocks = size.or(self.num_blocks);
        let least = call.tables.iter().flatten().collect::<HashSet<_>>().len() as u64;
        if used.is_some_and(|used| used < least || self.num_blocks.is_some_and(|size| used > size)) {
            let what = format!("used is {used:?} of {size:?} blocks, its rows have {least}");
            return Err(Fault::new(Rule::Pool, what));
        }
        Ok(())
    }
}

/// Tokens that the request of a plan row had before the step's outcome; `None` where the trace does not show them all (in
/// the midst of a prompt).
fn known_before(call: &GroupCall<'_>, owner: usize) -> Option<u64> {
    let (row, outcome) = (&call.step.rows[owner], &call.step.outcome[owner]);
    let all = matches!(row.kind, RowKind::Decode | RowKind::Verify) || !outcome.token_ids.is_empty();
    all.then(|| u64::from(row.num_computed) + query_len(call.step, owner) - u64::from(outcome.num_drafts))
}

/// A row feeds the tokens its request has, then the drafts that were verified.
fn check_tokens(call: &GroupCall<'_>, m: usize, live: &HashMap<String, Life>) -> Result<(), Fault> {
    let (group, owner) = (call.group, call.owners[m]);
    let row = &call.step.rows[owner];
    let Some(life) = live.get(&row.request_id).filter(|life| !life.opaque) else { return Ok(()) };
    let known = known_before(call, owner);
    for t in group.query_start_loc[m] as usize..group.query_start_loc[m + 1] as usize {
        let position = u64::from(group.input_positions[t]);
        let should = if known.is_none_or(|known| position < known) {
            life.tokens.get(position as usize)
        } else {
            let at = position.checked_sub(u64::from(row.num_computed));
            at.and_then(|at| call.inputs[owner].get(at as usize))
        };
        if let Some(&should) = should
            && should != group.input_tokens[t]
        {
            let fed = group.input_tokens[t];
            let what = format!("feeds token {fed} at position {position}, where its request has {should}");
            return Err(Fault::of(Rule::Tokens, &row.request_id, what));
        }
    }
    Ok(())
}
