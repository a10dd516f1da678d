//! Computes from a line of a trace what the step changed in the block pool.
//!
//! A trace has whole tables, but a page that scrubs through ten thousand steps needs only the changes. One
//! thing is not in a line and is inferred by the scheduler's own rules: a sequence keeps the blocks that a
//! row reserved for drafts until it ends or is preempted. A later line names such a block for the first
//! time. It is then listed in the step that reserved it ([`StepDelta::reserved`]), if the trace names it at
//! all.
//!
//! If several KV groups share the pool, this is about the group that `metadata` describes.

use std::collections::{HashMap, HashSet};

use pagedraft_workloads::trace::{KvChange, PoolCounts, RowKind, RowRecord, StepRecord};

/// Stands in a table for a block that was given back because it lies wholly behind the window.
pub(super) const FREED: u32 = u32::MAX;

/// The changes of a step. Requests are numbered in the order in which the trace mentions them
/// ([`Deltas::names`]).
#[derive(Clone, Debug, Default)]
pub(super) struct StepDelta {
    pub(super) step: u64,
    pub(super) replayed: bool,
    /// Whether a new engine started before the step (the run was resumed), so that nothing is held or
    /// published.
    pub(super) anew: bool,
    /// The microseconds of the stages: schedule, metadata, propose, execute, sample.
    pub(super) time_us: [f64; 5],
    /// The requests that lost their blocks while the plan was made, because they were preempted.
    pub(super) preempted: Vec<u32>,
    /// The requests that were aborted since the line before.
    pub(super) aborted: Vec<u32>,
    /// The blocks that were copied before anything was written: from, to.
    pub(super) copies: Vec<(u32, u32)>,
    /// The entries of tables that changed to another block (a copy): request, index, block.
    pub(super) replaced: Vec<(u32, u32, u32)>,
    /// The blocks that were appended to tables.
    pub(super) appended: Vec<(u32, Vec<u32>)>,
    /// The blocks whose contents can no longer be hit, because they left the prefix cache while the step
    /// was planned.
    pub(super) removed: Vec<u32>,
    pub(super) rows: Vec<RowDelta>,
    /// The blocks that tables hold from this step on, although only a later line names them.
    pub(super) reserved: Vec<(u32, u32)>,
    pub(super) published: Vec<u32>,
    /// The requests that ended with the step, and the reasons.
    pub(super) ended: Vec<(u32, Option<String>)>,
    /// The slots that were written, if they are not those that follow from tables and positions.
    pub(super) slots: Option<Vec<i64>>,
    /// The sliding window of the group's layers, in tokens.
    pub(super) window: Option<u32>,
    /// The group's share of the pool.
    pub(super) pool: PoolCounts,
}

/// A plan row and its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowDelta {
    pub(super) request: u32,
    pub(super) kind: RowKind,
    pub(super) num_computed: u32,
    /// The number of tokens that were fed: the row's own, then drafts.
    pub(super) queries: u32,
    /// The number of drafts among them.
    pub(super) drafts: u32,
    pub(super) accepted: u32,
    pub(super) emitted: u32,
}

impl RowDelta {
    /// The number of tokens with KV after the step. Slots of rejected drafts hold nothing.
    pub(super) fn next(&self) -> u64 {
        (u64::from(self.num_computed) + u64::from(self.queries) + u64::from(self.accepted))
            .saturating_sub(u64::from(self.drafts))
    }
}

/// Turns lines into changes, one after the other.
#[derive(Debug)]
pub(super) struct Deltas {
    block_size: u32,
    /// The KV group whose blocks are followed; `None` if there is only one.
    group: Option<String>,
    /// The blocks that can be hit.
    published: HashSet<u32>,
    numbers: HashMap<String, u32>,
    names: Vec<String>,
    live: HashMap<u32, Sequence>,
    /// For each block, the number of tables that contain it.
    holders: HashMap<u32, u32>,
    anew: bool,
}

#[derive(Debug, Default)]
struct Sequence {
    table: Vec<u32>,
    /// The last table written for the request, for traces that write only changes.
    written: Vec<i64>,
    /// For each block that it holds beyond `table`, the step that reserved it.
    unnamed: std::collections::VecDeque<u64>,
}

/// The most blocks that a row may reserve. Real rows reserve a few; a trace that claims more is not
/// followed.
const MOST_RESERVED: u64 = 1 << 12;

/// A block that a step reserved, which a later line names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NamedLater {
    pub(super) step: u64,
    pub(super) request: u32,
    pub(super) block: u32,
}

impl Deltas {
    /// Starts before the first line. `block_size` must not be 0. `group` names the KV group that `metadata`
    /// describes, if there are several.
    pub(super) fn new(block_size: u32, group: Option<String>) -> Self {
        Self {
            block_size: block_size.max(1),
            group,
            published: HashSet::new(),
            numbers: HashMap::new(),
            names: Vec::new(),
            live: HashMap::new(),
            holders: HashMap::new(),
            anew: false,
        }
    }

    /// The run was stopped here and resumed: a new engine starts with the next step.
    pub(super) fn resume(&mut self) {
        self.live.clear();
        self.holders.clear();
        self.published.clear();
        self.anew = true;
    }

    /// The requests' names, by their numbers.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    fn number(&mut self, name: &str) -> u32 {
        if let Some(&number) = self.numbers.get(name) {
            return number;
        }
        let number = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        self.numbers.insert(name.to_owned(), number);
        self.names.push(name.to_owned());
        number
    }

    fn drop_sequence(&mut self, request: u32) {
        let Some(sequence) = self.live.remove(&request) else { return };
        for block in sequence.table.into_iter().filter(|&block| block != FREED) {
            release(&mut self.holders, block);
        }
    }

    /// The changes of the next line, and the blocks that it names for earlier steps.
    ///
    /// # Errors
    ///
    /// The line contradicts the pool. The error says how.
    pub(super) fn next(&mut self, record: &StepRecord) -> Result<(StepDelta, Vec<NamedLater>), String> {
        let mut delta = StepDelta {
            step: record.step,
            replayed: record.mode == "graph",
            anew: std::mem::take(&mut self.anew),
            time_us: record
                .time_us
                .map_or([0.0; 5], |t| [t.schedule, t.metadata, t.propose, t.execute, t.sample]),
            window: record.metadata.window,
            pool: self.pool(record),
            ..StepDelta::default()
        };
        let mut later = Vec::new();
        for name in &record.preempted {
            let request = self.number(name);
            self.drop_sequence(request);
            delta.preempted.push(request);
        }
        let rows: HashSet<&str> = record.rows.iter().map(|row| row.request_id.as_str()).collect();
        for name in record.finished.iter().filter(|name| !rows.contains(name.as_str())) {
            let request = self.number(name);
            self.drop_sequence(request);
            delta.aborted.push(request);
        }
        self.events(record, &mut delta);
        for copy in record.copies.iter().filter(|copy| copy.group == 0) {
            delta.copies.push((block_id(copy.from)?, block_id(copy.to)?));
        }
        let tables = self.tables(record)?;
        for (row, table) in record.rows.iter().zip(tables) {
            self.grow(row, table, &mut delta, &mut later);
        }
        self.outcome(record, &mut delta)?;
        delta.slots = self.unusual_slots(record, &delta);
        self.give_back(&delta);
        for (request, _) in &delta.ended {
            self.drop_sequence(*request);
        }
        Ok((delta, later))
    }

    /// The group's share of the pool.
    fn pool(&self, record: &StepRecord) -> PoolCounts {
        let whole = PoolCounts::from(&record.pool);
        let counts = self.group.as_ref().zip(record.pool.by_group.as_ref());
        match counts.and_then(|(name, by_group)| by_group.get(name)).zip(whole.bytes_total) {
            None => whole,
            Some((counts, total)) => {
                let num_blocks = total.checked_div(counts.block_bytes).unwrap_or(0);
                let free = num_blocks.saturating_sub(counts.used);
                PoolCounts {
                    num_blocks,
                    used: counts.used,
                    free,
                    cached: counts.cached,
                    ..PoolCounts::default()
                }
            }
        }
    }

    /// Takes in what entered and left the prefix cache.
    fn events(&mut self, record: &StepRecord, delta: &mut StepDelta) {
        for event in &record.kv_events {
            let other = self.group.is_some() && self.group != event.group;
            match (event.kind, event.block) {
                (KvChange::Cleared, _) => delta.removed.extend(self.published.drain()),
                (KvChange::Stored | KvChange::Kept | KvChange::Restored, Some(block)) if !other => {
                    self.published.insert(block);
                    delta.published.push(block);
                }
                (KvChange::Removed | KvChange::Lost, Some(block)) if !other => {
                    self.published.remove(&block);
                    delta.published.retain(|&stored| stored != block);
                    delta.removed.push(block);
                }
                _ => {}
            }
        }
    }

    /// The longest table of each plan row, as far as its tokens reach.
    fn tables(&mut self, record: &StepRecord) -> Result<Vec<Vec<u32>>, String> {
        let mut tables: Vec<Vec<u32>> = vec![Vec::new(); record.rows.len()];
        for (m, owner) in owners(record)?.into_iter().enumerate() {
            let number = self.number(&record.rows[owner].request_id);
            let written = &mut self.live.entry(number).or_default().written;
            if let Some(Some(now)) = record.metadata.block_tables.get(m)
                && !now.is_empty()
            {
                written.clone_from(now);
            }
            let length = record.metadata.seq_lens.get(m).copied().unwrap_or(0);
            let blocks = usize::try_from(length.div_ceil(u64::from(self.block_size))).unwrap_or(usize::MAX);
            let used = written.get(..blocks).ok_or_else(|| {
                format!(
                    "{length} tokens of request {:?} need {blocks} blocks, its table has {}",
                    record.rows[owner].request_id,
                    written.len()
                )
            })?;
            if used.len() > tables[owner].len() {
                tables[owner] = used
                    .iter()
                    .map(|&block| if block == -1 { Ok(FREED) } else { block_id(block) })
                    .collect::<Result<_, _>>()?;
            }
        }
        Ok(tables)
    }

    /// Takes in a row's table.
    fn grow(&mut self, row: &RowRecord, table: Vec<u32>, delta: &mut StepDelta, later: &mut Vec<NamedLater>) {
        let request = self.number(&row.request_id);
        let size = u64::from(self.block_size);
        let sequence = self.live.entry(request).or_default();
        let mut appended = Vec::new();
        for (i, block) in table.into_iter().enumerate() {
            match sequence.table.get(i).copied() {
                Some(known) if known == block => continue,
                Some(known) => {
                    release(&mut self.holders, known);
                    sequence.table[i] = block;
                    delta.replaced.push((request, u32::try_from(i).unwrap_or(u32::MAX), block));
                }
                None => {
                    sequence.table.push(block);
                    if let Some(step) = sequence.unnamed.pop_front() {
                        later.push(NamedLater { step, request, block });
                    } else {
                        appended.push(block);
                    }
                }
            }
            if block != FREED {
                *self.holders.entry(block).or_default() += 1;
            }
        }
        if !appended.is_empty() {
            delta.appended.push((request, appended));
        }
        let more = row.drafts_max.unwrap_or(0).saturating_sub(row.num_drafts);
        let reserved =
            (u64::from(row.num_computed) + u64::from(row.num_new) + u64::from(more)).div_ceil(size);
        let held = (sequence.table.len() + sequence.unnamed.len()) as u64;
        for _ in 0..reserved.saturating_sub(held).min(MOST_RESERVED) {
            sequence.unnamed.push_back(delta.step);
        }
    }

    fn outcome(&mut self, record: &StepRecord, delta: &mut StepDelta) -> Result<(), String> {
        if record.rows.len() != record.outcome.len() {
            return Err(format!("{} plan rows, {} outcome rows", record.rows.len(), record.outcome.len()));
        }
        for (row, outcome) in record.rows.iter().zip(&record.outcome) {
            let request = self.number(&row.request_id);
            let drafts = outcome.num_drafts.min(row.num_new);
            delta.rows.push(RowDelta {
                request,
                kind: row.kind,
                num_computed: row.num_computed,
                queries: row.num_new.saturating_sub(row.num_drafts).saturating_add(drafts),
                drafts,
                accepted: outcome.num_accepted.min(drafts),
                emitted: u32::try_from(outcome.token_ids.len()).unwrap_or(u32::MAX),
            });
            if record.finished.contains(&row.request_id) || outcome.finish_reason.is_some() {
                delta.ended.push((request, outcome.finish_reason.clone()));
            }
        }
        Ok(())
    }

    /// Releases the blocks that lie wholly behind the window of their request's next query.
    fn give_back(&mut self, delta: &StepDelta) {
        for row in &delta.rows {
            let behind = first_block(row.next(), delta.window, self.block_size);
            let table = self.live.get_mut(&row.request).map(|sequence| &mut sequence.table);
            for block in table.into_iter().flatten().take(behind).filter(|block| **block != FREED) {
                release(&mut self.holders, std::mem::replace(block, FREED));
            }
        }
    }

    /// The slots in the trace; `None` if they are those that follow from tables and positions.
    fn unusual_slots(&self, record: &StepRecord, delta: &StepDelta) -> Option<Vec<i64>> {
        let mut usual = Vec::with_capacity(record.metadata.slot_mapping.len());
        for row in &delta.rows {
            let table = self.live.get(&row.request).map_or(&[][..], |sequence| &sequence.table);
            usual.extend(slots_of(row, table, self.block_size));
        }
        let mut logged = record.metadata.slot_mapping.clone();
        let slots = logged.clone();
        usual.sort_unstable();
        logged.sort_unstable();
        (usual != logged).then_some(slots)
    }
}

/// The slots that a row writes, by position.
pub(super) fn slots_of(row: &RowDelta, table: &[u32], block_size: u32) -> impl Iterator<Item = i64> {
    let size = u64::from(block_size);
    let from = u64::from(row.num_computed);
    (from..from + u64::from(row.queries)).map_while(move |position| {
        let block = table.get(usize::try_from(position / size).ok()?)?;
        let block = Some(block).filter(|&&block| block != FREED)?;
        i64::try_from(u64::from(*block) * size + position % size).ok()
    })
}

/// The first block that a query at position `at`, or a later one, can see.
pub(super) fn first_block(at: u64, window: Option<u32>, block_size: u32) -> usize {
    let first = window.map_or(0, |window| at.saturating_add(1).saturating_sub(u64::from(window)));
    usize::try_from(first / u64::from(block_size.max(1))).unwrap_or(usize::MAX)
}

fn release(holders: &mut HashMap<u32, u32>, block: u32) {
    if let Some(count) = holders.get_mut(&block) {
        *count -= 1;
        if *count == 0 {
            holders.remove(&block);
        }
    }
}

fn block_id(block: i64) -> Result<u32, String> {
    u32::try_from(block).map_err(|_| format!("block {block} is no block of a pool"))
}

/// The plan row of each metadata row, as the line says, or else the first plan row that continues where the
/// metadata row starts.
fn owners(record: &StepRecord) -> Result<Vec<usize>, String> {
    let metadata = &record.metadata;
    if let Some(stated) = &record.plan_rows {
        let row = |&row: &u64| usize::try_from(row).ok().filter(|&row| row < record.rows.len());
        return stated
            .iter()
            .map(|r| row(r).ok_or_else(|| format!("plan_rows names row {r}, there is none")))
            .collect();
    }
    let mut at: Vec<u64> = record.rows.iter().map(|row| u64::from(row.num_computed)).collect();
    let mut owners = Vec::with_capacity(metadata.context_lens.len());
    for (context, length) in metadata.context_lens.iter().zip(&metadata.seq_lens) {
        let last = owners.last().copied().unwrap_or(0);
        let found = (0..at.len()).map(|i| (last + i) % at.len()).find(|&row| at[row] == *context);
        let owner = found.ok_or_else(|| format!("a metadata row of context {context} is no plan row's"))?;
        at[owner] = *length;
        owners.push(owner);
    }
    Ok(owners)
}
