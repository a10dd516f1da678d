//! Keeps what a trace says about each request from step to step: its table, its length, its end.

use std::collections::{HashMap, HashSet};

use pagedraft_block_manager::Salt;

use super::fault::Fault;
use super::life::Life;
use super::own_group::OwnGroup;
use super::row_group::RowGroup;
use super::rows::{inputs, query_len};
use super::rule::Rule;
use super::thinned::Thinned;
use super::trace_config::TraceConfig;
use crate::trace::{KvGroupRecord, RowKind, StepRecord};

/// All state that is carried from one step to the next.
pub(super) struct Lives {
    pub(super) block_size: u32,
    /// Whether an empty table stands for the last one written.
    pub(super) delta: bool,
    last_step: Option<u64>,
    pub(super) num_blocks: Option<u64>,
    pub(super) live: HashMap<String, Life>,
    /// The requests that have ended, so that none can come back.
    pub(super) ended: HashSet<String>,
    /// For each slot of the present step, the input token that wrote it. It is kept to reuse the memory.
    pub(super) written: HashMap<u64, usize>,
    /// The KV groups of the target. The first is the one that `metadata` describes.
    pub(super) row_groups: Vec<RowGroup>,
    /// Whether the target has several groups, in which prefix hits may differ.
    pub(super) several: bool,
    /// KV groups with rows of their own, by name.
    pub(super) own_groups: HashMap<String, OwnGroup>,
    /// Whether drafts are accepted exactly if they are the target's own choice.
    pub(super) coupled: bool,
    /// The numbers of token rows that graphs were captured for, if the configuration says so.
    pub(super) graph_sizes: Option<Vec<u64>>,
    /// Whether full blocks are published.
    pub(super) caching: bool,
    /// The KV groups that the configuration names.
    pub(super) kv_groups: Vec<KvGroupRecord>,
    /// The salt of block hashes, for requests that do not name another.
    kv_salt: Option<Salt>,
    /// If several groups share the pool: its bytes, and below the number of smallest blocks that these
    /// bytes are.
    pub(super) bytes_total: Option<u64>,
    pub(super) num_smallest: Option<u64>,
    seen: u64,
    /// The requests that an engine had which was stopped.
    before: HashSet<String>,
}

impl Lives {
    pub(super) fn new(config: &TraceConfig) -> Self {
        Self {
            block_size: config.block_size,
            delta: config.delta,
            last_step: None,
            num_blocks: config.num_blocks,
            live: HashMap::new(),
            ended: HashSet::new(),
            written: HashMap::new(),
            row_groups: Vec::new(),
            several: false,
            own_groups: HashMap::new(),
            coupled: config.coupled,
            graph_sizes: config.graph_sizes.clone(),
            caching: config.caching,
            kv_groups: config.kv_groups.clone(),
            kv_salt: config.kv_salt,
            bytes_total: None,
            num_smallest: None,
            seen: 0,
            before: HashSet::new(),
        }
    }

    /// A new engine resumes the run at step `first`, with nothing of the old engine's state. What the old
    /// engine did after the last recorded result is run again, so even a request that had ended may come
    /// back.
    pub(super) fn resume(&mut self, first: u64) -> Result<(), Fault> {
        if let Some(last) = self.last_step
            && first <= last
        {
            return Err(Fault::new(Rule::StepOrder, format!("resumed at step {first} after step {last}")));
        }
        self.last_step = first.checked_sub(1);
        self.before.extend(self.live.drain().map(|(id, _)| id));
        self.before.extend(self.ended.drain());
        self.row_groups.clear();
        self.written.clear();
        self.own_groups.clear();
        Ok(())
    }

    /// Whether a request has had a row since the run was last resumed.
    pub(super) fn has_seen(&self, id: &str) -> bool {
        self.live.contains_key(id) || self.ended.contains(id)
    }

    /// The way of a running request's prompt through the model, if it drops tokens.
    pub(super) fn thinned_mut(&mut self, id: &str) -> Option<&mut Thinned> {
        self.live.get_mut(id)?.thinned.as_mut()
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

    /// Checks every rule that needs earlier steps. Returns the number of slots that were re-derived.
    ///
    /// The order follows the engine. First blocks were taken back and aborted requests gave up theirs,
    /// before the plan's rows got any. Then the step copied, read and wrote. Then its outcome was applied,
    /// which `pool` shows.
    pub(super) fn check_step(&mut self, step: &StepRecord, owners: &[usize]) -> Result<u64, Fault> {
        self.check_pool(step)?;
        self.check_rows(step)?;
        self.check_ends(step)?;
        for id in &step.preempted {
            self.drop_table(id);
        }
        let rows: HashSet<&str> = step.rows.iter().map(|r| r.request_id.as_str()).collect();
        for id in step.finished.iter().filter(|id| !rows.contains(id.as_str())) {
            self.end(id);
        }
        self.check_starts(step)?;
        self.check_early_events(step)?;
        let mut slots = self.check_tables(step, owners)?;
        slots += self.apply_outcome(step, owners)?;
        self.check_used(step)?;
        Ok(slots)
    }

    fn check_rows(&self, step: &StepRecord) -> Result<(), Fault> {
        match step.rows.iter().find(|row| self.ended.contains(&row.request_id)) {
            Some(row) => Err(Fault::of(Rule::FinishedAgain, &row.request_id, "has a row after it ended")),
            None => Ok(()),
        }
    }

    /// Checks that each row starts where the request's row before ended, and is of the kind that this makes
    /// it.
    fn check_starts(&mut self, step: &StepRecord) -> Result<(), Fault> {
        let kv_salt = self.kv_salt;
        for row in &step.rows {
            let id = row.request_id.as_str();
            let (seen, before) = (&mut self.seen, &self.before);
            let life = self.live.entry(id.to_owned()).or_insert_with(|| {
                *seen += u64::from(!before.contains(id));
                Life::default()
            });
            life.salt = match &row.kv_salt {
                None => kv_salt,
                Some(text) => Some(Salt::from_hex(text).ok_or_else(|| {
                    Fault::of(Rule::Line, id, format!("kv_salt {text:?} is not 64 hexadecimal digits"))
                })?),
            };
            if life.lost {
                return Err(Fault::of(Rule::Preempted, id, "its KV was lost, and it was not preempted"));
            }
            let start = u64::from(row.num_computed);
            life.note_kept(row).map_err(|what| Fault::of(Rule::Growth, id, what))?;
            if row.thins() {
                life.check_thinned(row).map_err(|what| Fault::of(Rule::Growth, id, what))?;
                continue;
            }
            if let Some(next) = life.next
                && row.kind != RowKind::Denoise
                && next != start
            {
                let what = format!("num_computed is {start}, the rows before come to {next}");
                return Err(Fault::of(Rule::Growth, id, what));
            }
            life.check_kind(row).map_err(|what| Fault::of(Rule::Kind, id, what))?;
        }
        Ok(())
    }

    /// Applies what the step emitted: tokens, publications, new lengths and ends. Returns the number of
    /// slots re-derived in groups with rows of their own, for whose drafts the outcome is needed.
    fn apply_outcome(&mut self, step: &StepRecord, owners: &[usize]) -> Result<u64, Fault> {
        let inputs = inputs(step, owners);
        let mut nexts = Vec::with_capacity(step.rows.len());
        for (r, (row, outcome)) in step.rows.iter().zip(&step.outcome).enumerate() {
            let id = row.request_id.as_str();
            let own = query_len(step, r) - u64::from(outcome.num_drafts);
            let next = match outcome.lost {
                true => u64::from(row.num_computed),
                false => u64::from(row.num_computed) + own + u64::from(outcome.num_accepted),
            };
            let coupled = self.coupled;
            let life = self.live.entry(id.to_owned()).or_default();
            if row.thins() {
                let computed = life.take_thinned(row, outcome, &inputs[r]);
                nexts.push(computed.map_err(|what| Fault::of(Rule::Tokens, id, what))?);
                continue;
            }
            life.lost = outcome.lost;
            life.check_emitted(row, outcome, own).map_err(|what| Fault::of(Rule::Tokens, id, what))?;
            life.take_tokens(row, outcome, &inputs[r], coupled)
                .map_err(|(rule, what)| Fault::of(rule, id, what))?;
            if row.kind != RowKind::Denoise && !outcome.token_ids.is_empty() {
                life.known = Some(u64::from(row.num_computed) + own + outcome.token_ids.len() as u64);
            }
            nexts.push(next);
        }
        let slots = self.check_own_groups(step, &inputs)?;
        self.check_late_events(step, &nexts)?;
        self.settle(step, owners, &nexts);
        for (r, (row, outcome)) in step.rows.iter().zip(&step.outcome).enumerate() {
            let id = row.request_id.as_str();
            if row.kind != RowKind::Denoise
                && let Some(life) = self.live.get_mut(id)
            {
                life.next = Some(nexts[r]);
            }
            if outcome.finish_reason.is_some() {
                if let Some(life) = self.live.get_mut(id) {
                    life.take_unkept(outcome, &inputs[r]);
                }
                self.end(id);
            }
        }
        Ok(slots)
    }

    fn drop_table(&mut self, id: &str) {
        if let Some(life) = self.live.get_mut(id) {
            self.own_groups.values_mut().for_each(|group| group.give_back(id));
            self.row_groups.iter_mut().for_each(|group| group.give_back(id));
            life.written.clear();
            life.next = None;
            life.lost = false;
            if let Some(thinned) = &mut life.thinned {
                thinned.begin_again();
            }
        }
    }

    fn end(&mut self, id: &str) {
        self.drop_table(id);
        self.live.remove(id);
        self.ended.insert(id.to_owned());
    }
}
