//! Checks a KV group with rows and tokens of its own, which is a draft model's.
//!
//! A draft model may drop a request's blocks at any time without saying so, if it needs the room or has
//! fallen behind. A block can therefore pass from a request without a row to one that has a row. Its old
//! contents are then gone, and the first request is caught if it still relies on them.

use std::collections::{HashMap, HashSet};

use super::blocks::Blocks;
use super::fault::Fault;
use super::life::Life;
use super::link::Link;
use super::rows::query_len;
use super::rule::Rule;
use super::slots::{Call, check_positions, check_slots};
use super::thinned::Thinned;
use super::window::UNKNOWN;
use crate::trace::{GroupRecord, KvEventRecord, RowKind, StepRecord};

/// What the trace has shown of such a group.
pub(super) struct OwnGroup {
    pub(super) blocks: Blocks,
    /// For each request, what it holds.
    held: HashMap<String, Held>,
}

#[derive(Default)]
struct Held {
    table: Vec<u32>,
    /// Positions before this one are known to hold the request's tokens.
    valid: u64,
}

/// A step in such a group: the plan rows and tables of its rows.
pub(super) struct GroupCall<'a> {
    pub(super) step: &'a StepRecord,
    pub(super) group: &'a GroupRecord,
    /// The query tokens of the plan's rows. The drafts are among them.
    pub(super) inputs: &'a [Vec<u32>],
    pub(super) owners: Vec<usize>,
    pub(super) tables: Vec<Vec<u32>>,
    /// Whether full blocks are published.
    pub(super) caching: bool,
}

impl<'a> GroupCall<'a> {
    fn id(&self, m: usize) -> &'a str {
        self.step.rows[self.owners[m]].request_id.as_str()
    }

    /// For each plan row, how many of its tokens have KV in the group before the step. In a group of a later segment, leading tokens without
    /// a slot count as such: the prefix cache may have more of them in one group than in another.
    fn stored(&self) -> Vec<u64> {
        let mut stored = vec![0; self.step.rows.len()];
        for (m, &owner) in self.owners.iter().enumerate() {
            let query = self.group.query_start_loc[m] as usize..self.group.query_start_loc[m + 1] as usize;
            let leading = self.group.slot_mapping[query].iter().take_while(|&&slot| slot == -1).count();
            let several = u64::from(self.group.segment.is_some());
            stored[owner] = self.group.context_lens[m] + several * leading as u64;
        }
        stored
    }

    /// The way of a row's prompt through the model, if it drops tokens and the group belongs to a later segment.
    fn thinned<'l>(&self, m: usize, live: &'l HashMap<String, Life>) -> Option<(&'l Life, &'l Thinned, u16)> {
        let segment = self.group.segment?;
        let life = live.get(self.id(m))?;
        Some((life, life.thinned.as_ref()?, segment))
    }
}

impl OwnGroup {
    pub(super) fn new(block_size: u32) -> Self {
        Self { blocks: Blocks::new(block_size), held: HashMap::new() }
    }

    /// Releases the blocks of a request that ended or was preempted.
    pub(super) fn give_back(&mut self, id: &str) {
        if let Some(held) = self.held.remove(id) {
            held.table.iter().for_each(|&block| self.blocks.release(block));
        }
    }

    pub(super) fn check(
        &mut self,
        call: &GroupCall<'_>,
        live: &mut HashMap<String, Life>,
        size: u32,
    ) -> Result<u64, Fault> {
        let (step, group) = (call.step, call.group);
        let stored = call.stored();
        let (canvases, rows): (Vec<usize>, Vec<usize>) =
            (0..call.owners.len()).partition(|&m| step.rows[call.owners[m]].kind == RowKind::Denoise);
        let (thinned, whole): (Vec<usize>, Vec<usize>) =
            rows.into_iter().partition(|&m| call.thinned(m, live).is_some());
        for rows in [&whole, &canvases] {
            check_positions(step, &Call::of_own(group), &group.input_positions, (&call.owners, rows))?;
        }
        self.let_go(call, size);
        for m in 0..call.owners.len() {
            self.hold(call, (m, stored[call.owners[m]]), live, size)?;
        }
        for m in whole {
            self.check_context(call, m, live)?;
            check_tokens(call, m, live)?;
        }
        for m in thinned {
            self.check_thinned(call, m, live)?;
        }
        for m in canvases {
            check_canvas(call, m)?;
        }
        let mut written = HashMap::new();
        let own = Call::of_own(group);
        let slots = check_slots(step, &own, &call.owners, &call.tables, &stored, size, &mut written)?;
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
        Ok(slots)
    }

    /// Releases blocks that are no longer in their rows' tables, before any row gets new ones.
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

    /// Adds a row's new entries. Blocks that its `stored` tokens fill must have been hit; others must be the row's
    /// alone.
    fn hold(
        &mut self,
        call: &GroupCall<'_>,
        (m, stored): (usize, u64),
        live: &mut HashMap<String, Life>,
        size: u32,
    ) -> Result<(), Fault> {
        let id = call.step.rows[call.owners[m]].request_id.as_str();
        let from = self.held.get(id).map_or(0, |held| held.table.len());
        for (i, &block) in call.tables[m].iter().enumerate().skip(from) {
            // A row that writes nothing lies in blocks that were hit, the last of them in part.
            let whole = stored >= call.group.seq_lens[m] || (i as u64 + 1) * u64::from(size) <= stored;
            // If nothing is published, a fork may still share whole blocks with its parent.
            let shared = !call.caching && self.blocks.index(block) == Some(i);
            if whole && !shared && !self.blocks.is_published(block) {
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
                if !self.blocks.hand_out(block) {
                    let what = format!("block {block} is handed out to it, and is in the prefix cache still");
                    return Err(Fault::of(Rule::Published, id, what));
                }
            }
            let kept = call.thinned(m, live).and_then(|(_, thinned, segment)| thinned.block_name(segment, i));
            if let Some((link, life)) = self.blocks.link(block).zip(live.get_mut(id)) {
                let found = match kept {
                    Some(name) if name == link.hash => Ok(()),
                    Some(name) => Err(format!("of hash {}, where its own prompt has {name}", link.hash)),
                    None => life.find(i, link),
                };
                found.map_err(|what| Fault::of(Rule::Context, id, format!("finds block {block}, {what}")))?;
            }
            self.blocks.hold(block, i).map_err(|what| Fault::of(Rule::Alias, id, what))?;
            self.held.entry(id.to_owned()).or_default().table.push(block);
        }
        Ok(())
    }

    /// Drops the requests without a row that held `block`. The draft model must have dropped them.
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

    /// Checks a row of a request that drops tokens of its prompt: how many tokens it has in the group follows from its counts, and each is
    /// the request's token at its position.
    fn check_thinned(
        &mut self,
        call: &GroupCall<'_>,
        m: usize,
        live: &HashMap<String, Life>,
    ) -> Result<(), Fault> {
        let Some((life, thinned, segment)) = call.thinned(m, live) else { return Ok(()) };
        let (group, owner, id) = (call.group, call.owners[m], call.id(m));
        let (row, outcome) = (&call.step.rows[owner], &call.step.outcome[owner]);
        let (context, length) = (group.context_lens[m], group.seq_lens[m]);
        let computed = u64::from(row.num_computed);
        let should = if !row.thins() {
            let context = thinned.held(segment, computed);
            (context, context + query_len(call.step, owner))
        } else if row.first_segment() == segment {
            (computed, computed + u64::from(row.num_new))
        } else {
            (0, thinned.reach(segment))
        };
        if (context, length) != should {
            let what = format!(
                "has tokens {context}..{length} in segment {segment}, where its counts say {}..{}",
                should.0, should.1
            );
            return Err(Fault::of(Rule::Lengths, id, what));
        }
        let Some(held) = self.held.get_mut(id) else { return Ok(()) };
        if let Some(index) = self.blocks.first_unwritten(&held.table, 0, context) {
            let what = format!("reads {context} tokens, and that of index {index} was never written");
            return Err(Fault::of(Rule::Unwritten, id, what));
        }
        held.valid = length - u64::from(outcome.num_drafts - outcome.num_accepted);
        let tokens = group.query_start_loc[m] as usize..group.query_start_loc[m + 1] as usize;
        let mut before = None;
        for (index, t) in (context..).zip(tokens) {
            let (position, token) = (u64::from(group.input_positions[t]), group.input_tokens[t]);
            if thinned.compact {
                if position != index {
                    let what = format!("input token {t} is at position {position}, should be at {index}");
                    return Err(Fault::of(Rule::Positions, id, what));
                }
                continue;
            }
            if before.is_some_and(|before| before >= position) {
                let what = format!("input token {t} is at position {position}, not behind the one before");
                return Err(Fault::of(Rule::Positions, id, what));
            }
            before = Some(position);
            let drafted = row.kind != RowKind::Prefill && position > computed;
            let known = life.tokens.get(position as usize).filter(|_| !drafted);
            if let Some(&known) = known
                && known != token
            {
                let what = format!("feeds token {token} at position {position}, where it has {known}");
                return Err(Fault::of(Rule::Tokens, id, what));
            }
        }
        Ok(())
    }

    /// Checks that a row's context consists of tokens of its request that are known already.
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

    /// Checks that a block is published correctly: a request holds it, and it is full of that request's
    /// tokens.
    pub(super) fn check_stored(
        &mut self,
        event: &KvEventRecord,
        block: u32,
        live: &mut HashMap<String, Life>,
    ) -> Result<(), Fault> {
        let size = self.blocks.block_size();
        let bad = |what: &str| Fault::new(Rule::Published, format!("publishes block {block}{what}"));
        if self.blocks.is_published(block) {
            return Err(bad(", which is published already"));
        }
        let Some(index) = self.blocks.index(block) else { return Err(bad(", which nobody has")) };
        let (from, to) = (index as u64 * u64::from(size), (index as u64 + 1) * u64::from(size));
        let is_full = |(id, held): (&String, &Held)| {
            let life = live.get(id).filter(|_| held.table.get(index) == Some(&block))?;
            let complete = to <= life.tokens.len() as u64
                && self.blocks.first_unwritten(&held.table, from, to).is_none()
                && self.blocks.first_other(&held.table, &life.tokens, from, to).is_none();
            (life.opaque || complete).then(|| id.clone())
        };
        let Some(id) = self.held.iter().find_map(is_full) else {
            return Err(bad(", and nobody has all of its tokens"));
        };
        let Some(life) = live.get_mut(&id) else { return Ok(()) };
        let link =
            life.store(index, event, self.blocks.tokens(block), (size, false)).map_err(|what| bad(&what))?;
        self.blocks.publish(block, link);
        Ok(())
    }

    /// Checks that a block of kept tokens of a later segment is published correctly: a request holds it that keeps so many of its prompt's
    /// tokens, all of its slots were written, and it has the name that the request's prompt gives it.
    pub(super) fn check_kept(
        &mut self,
        event: &KvEventRecord,
        (block, segment): (u32, u16),
        live: &HashMap<String, Life>,
    ) -> Result<(), Fault> {
        let size = self.blocks.block_size();
        let bad = |what: &str| {
            Err(Fault::new(Rule::Published, format!("publishes block {block} of kept tokens{what}")))
        };
        if self.blocks.is_published(block) {
            return bad(", which is published already");
        }
        let Some(index) = self.blocks.index(block) else { return bad(", which nobody has") };
        let (from, to) = (index as u64 * u64::from(size), (index as u64 + 1) * u64::from(size));
        let salt = self.held.iter().find_map(|(id, held)| {
            let thinned = live.get(id)?.thinned.as_ref()?;
            let own = held.table.get(index) == Some(&block)
                && thinned.block_name(segment, index) == event.hash
                && to <= thinned.kept_behind(segment);
            (own && self.blocks.first_unwritten(&held.table, from, to).is_none()).then_some(thinned.name)
        });
        let (Some(salt), Some(hash)) = (salt, event.hash) else {
            return bad(", and it is not full of the kept tokens of a prompt of that name");
        };
        if (event.num_tokens, event.parent) != (size, None) {
            return bad(&format!(": {} tokens, parent {:?}", event.num_tokens, event.parent));
        }
        self.blocks.publish(block, Link { hash, full: None, salt });
        Ok(())
    }

    /// The least number of blocks in use after a step in which the group had rows of the plan rows `rows`:
    /// those of the requests that go on.
    pub(super) fn least_used(&self, step: &StepRecord, rows: &[u64]) -> u64 {
        let held = rows.iter().filter_map(|&row| {
            let row = step.rows.get(usize::try_from(row).ok()?)?;
            self.held.get(&row.request_id)
        });
        held.flat_map(|held| &held.table).collect::<HashSet<_>>().len() as u64
    }
}

/// Checks that the tokens of a canvas that run through a later segment are among those that ran through the first.
fn check_canvas(call: &GroupCall<'_>, m: usize) -> Result<(), Fault> {
    let (group, owner) = (call.group, call.owners[m]);
    let row = &call.step.rows[owner];
    for t in group.query_start_loc[m] as usize..group.query_start_loc[m + 1] as usize {
        let (position, token) = (u64::from(group.input_positions[t]), group.input_tokens[t]);
        let at = position.checked_sub(u64::from(row.num_computed));
        let first = at.and_then(|at| call.inputs[owner].get(at as usize));
        if first != Some(&token) {
            let what = format!(
                "feeds token {token} at position {position}, which the first segment did not compute"
            );
            return Err(Fault::of(Rule::Tokens, &row.request_id, what));
        }
    }
    Ok(())
}

/// The number of tokens that the request of a plan row had before the step's outcome; `None` in the middle
/// of a prompt, where the trace does not show it.
fn known_before(call: &GroupCall<'_>, owner: usize) -> Option<u64> {
    let (row, outcome) = (&call.step.rows[owner], &call.step.outcome[owner]);
    let all = matches!(row.kind, RowKind::Decode | RowKind::Verify) || !outcome.token_ids.is_empty();
    all.then(|| u64::from(row.num_computed) + query_len(call.step, owner) - u64::from(outcome.num_drafts))
}

/// Checks that a row feeds the tokens of its request, and then the drafts that were verified.
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
            && should != UNKNOWN
        {
            let fed = group.input_tokens[t];
            let what = format!("feeds token {fed} at position {position}, where its request has {should}");
            return Err(Fault::of(Rule::Tokens, &row.request_id, what));
        }
    }
    Ok(())
}
