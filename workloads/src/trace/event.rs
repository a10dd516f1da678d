//! One line of a trace, borrowed from the objects the step was executed from.

use std::collections::BTreeMap;

use pagedraft_block_manager::{BlockManager, Salt};
use pagedraft_scheduler::{Applied, FinishReason, Kind, PlanRow, Progress, RequestKey, RowOutcome, StepPlan};
use schemars::JsonSchema;
use serde::ser::{SerializeSeq, SerializeStruct};
use serde::{Deserialize, Serialize, Serializer};

use super::KvEvents;

/// How the time of a step was spent, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TimesUs {
    /// The time to make the plan.
    #[serde(serialize_with = "nanoseconds")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub schedule: f64,
    /// The time to build the metadata.
    #[serde(serialize_with = "nanoseconds")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub metadata: f64,
    /// The time to propose drafts.
    #[serde(serialize_with = "nanoseconds")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub propose: f64,
    /// The time of the forward pass.
    #[serde(serialize_with = "nanoseconds")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub execute: f64,
    /// The time of sampling, verification included.
    #[serde(serialize_with = "nanoseconds")]
    #[schemars(with = "f64", range(min = 0.0))]
    pub sample: f64,
}

/// Rounds to three decimals. Further ones would be noise of the conversion.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn nanoseconds<S: Serializer>(us: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((us * 1e3).round() / 1e3)
}

/// The block pool after a step was applied. Requests that ended with the step hold nothing any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PoolCounts {
    /// The number of blocks.
    pub num_blocks: u64,
    /// The number of blocks that sequences hold.
    pub used: u64,
    /// The number of other blocks.
    pub free: u64,
    /// The number of free blocks with contents that a prefix can still hit.
    pub cached: u64,
    /// The bytes of the arena. This and the next four are written if several KV groups share it.
    /// `num_blocks` then counts the smallest block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// The bytes of the blocks that sequences hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_used: Option<u64>,
    /// The bytes of everything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_free: Option<u64>,
    /// The part of the free bytes in blocks that a prefix can still hit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_cached: Option<u64>,
    /// The part of the free bytes in pages with a block that is held. Only the group that owns such a page
    /// can use them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_fragmented: Option<u64>,
}

/// The blocks of one KV group, if several share the pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupCounts {
    /// The number of blocks that sequences hold.
    pub used: u64,
    /// The number of free blocks with contents that a prefix can still hit.
    pub cached: u64,
    /// The bytes that a block of the group takes in the arena.
    pub block_bytes: u64,
}

impl GroupCounts {
    /// Fills `counts` with those of each group of `blocks`, by the groups' names.
    pub fn by_group(blocks: &BlockManager, counts: &mut BTreeMap<String, Self>) {
        counts.clear();
        for group in blocks.groups() {
            let stats = blocks.group_stats(group.id);
            let of = Self {
                used: u64::from(stats.used),
                cached: u64::from(stats.cached),
                // With the padding that makes whole pages of its blocks.
                block_bytes: blocks.arena().group(group.id).map_or(0, |cut| cut.stride as u64),
            };
            counts.insert(group.name.clone(), of);
        }
    }
}

/// The pool as a trace writes it.
#[derive(Serialize)]
struct Pool<'a> {
    #[serde(flatten)]
    counts: PoolCounts,
    #[serde(skip_serializing_if = "Option::is_none")]
    by_group: Option<&'a BTreeMap<String, GroupCounts>>,
}

impl From<pagedraft_block_manager::PoolStats> for PoolCounts {
    fn from(pool: pagedraft_block_manager::PoolStats) -> Self {
        Self {
            num_blocks: u64::from(pool.num_blocks),
            used: u64::from(pool.used),
            free: u64::from(pool.free),
            cached: u64::from(pool.cached),
            ..Self::default()
        }
    }
}

impl PoolCounts {
    /// The same with its bytes, which are written if several KV groups share the pool.
    #[must_use]
    pub fn with_bytes(pool: pagedraft_block_manager::PoolStats) -> Self {
        Self {
            bytes_total: Some(pool.bytes_total),
            bytes_used: Some(pool.bytes_used),
            bytes_free: Some(pool.bytes_free),
            bytes_cached: Some(pool.bytes_cached),
            bytes_fragmented: Some(pool.bytes_fragmented),
            ..pool.into()
        }
    }
}

/// What a trace says about requests that plans do not know: their names, and why they ended.
pub trait StepNames {
    /// The name that its owner gave it. It must be known for every request in a plan or outcome, even one
    /// that ended.
    fn request_id(&self, request: RequestKey) -> &str;
    /// Why it ended with this step; `None` if it did not.
    fn finish_reason(&self, request: RequestKey) -> Option<FinishReason>;
    /// The salt of its block hashes, if that is not the engine's own (`kv_salt` in `config.json`).
    fn kv_salt(&self, request: RequestKey) -> Option<Salt> {
        let _ = request;
        None
    }
    /// How many of its prompt's tokens go on behind each cut of the model, if it drops any.
    fn kept(&self, request: RequestKey) -> Option<&KeptCounts> {
        let _ = request;
        None
    }
}

/// How a request drops tokens of its prompt on the way through the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptCounts {
    /// How many of the prompt's tokens go on behind each cut.
    pub counts: Vec<u32>,
    /// Whether tokens are numbered anew behind each cut.
    pub compact: bool,
    /// Tokens of the prompt.
    pub prompt_len: u32,
    /// What the blocks of its kept tokens are found by in the prefix cache.
    pub name: Option<Salt>,
}

/// A step as a trace writes it. `M` is the attention metadata, `G` the further KV groups, and `K` the graph
/// key. Each is the object that the step was executed from.
pub struct StepEvent<'a, M, G, K> {
    /// Is added to the plan's number. It is more than 0 if the trace goes on from another engine's
    /// ([`TraceWriter::first_step`](super::TraceWriter::first_step)).
    pub first_step: u64,
    /// The engine, from 0, in a trace of several. `None`, which is not written, in a trace of one.
    pub replica: Option<u32>,
    /// The plan.
    pub plan: &'a StepPlan,
    /// The outcome's rows, in the plan's order.
    pub outcome: &'a [RowOutcome],
    /// The outcome's tokens, including those that nobody was given: those behind a stop token and those of
    /// an aborted request.
    pub tokens: &'a [u32],
    /// What was kept of the outcome, with one entry per plan row whose request was not aborted while the
    /// step ran. It says what was emitted. A row without an entry emitted nothing.
    pub applied: &'a [Applied],
    /// The names of the requests, and the reasons for which they ended.
    pub names: &'a dyn StepNames,
    /// The requests that ended with this step's outcome, or were aborted since the line before
    /// ([`RequestNames::finished`](super::RequestNames::finished)). Unlike [`StepPlan::finished`], this and
    /// `pool` show the state after the step was applied.
    pub finished: &'a [RequestKey],
    /// How the time was spent.
    pub time_us: TimesUs,
    /// `eager` or `graph`.
    pub mode: &'a str,
    /// The shape that was replayed, if any.
    pub graph_key: Option<&'a K>,
    /// The token ids, by metadata row.
    pub input_tokens: &'a [u32],
    /// Their positions.
    pub input_positions: &'a [u32],
    /// The plan row that each metadata row belongs to. Metadata rows are in another order than the plan's,
    /// and there may be more of them.
    pub plan_rows: &'a [u32],
    /// The metadata of the attention call.
    pub metadata: &'a M,
    /// The further KV groups, if any: a map from the name of each to what the step did in it. A group whose
    /// rows are not the metadata's (a draft model's) has a `plan_rows` of its own.
    pub groups: Option<&'a G>,
    /// The block pool.
    pub pool: PoolCounts,
    /// The pool's blocks by KV group, if several share it.
    pub by_group: Option<&'a BTreeMap<String, GroupCounts>>,
    /// What entered and left the prefix cache since the line before. It is written if there is anything.
    pub kv_events: KvEvents<'a>,
}

impl<M: Serialize, G: Serialize, K: Serialize> Serialize for StepEvent<'_, M, G, K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut line = serializer.serialize_struct("StepEvent", 18)?;
        line.serialize_field("event", "step")?;
        line.serialize_field("step", &self.first_step.saturating_add(self.plan.id.0))?;
        match self.replica {
            Some(replica) => line.serialize_field("replica", &replica)?,
            None => line.skip_field("replica")?,
        }
        line.serialize_field("time_us", &self.time_us)?;
        line.serialize_field("mode", self.mode)?;
        line.serialize_field("graph_key", &self.graph_key)?;
        line.serialize_field("rows", &Rows { plan: self.plan, outcome: self.outcome, names: self.names })?;
        line.serialize_field("input_tokens", self.input_tokens)?;
        line.serialize_field("input_positions", self.input_positions)?;
        line.serialize_field("plan_rows", self.plan_rows)?;
        line.serialize_field("metadata", self.metadata)?;
        line.serialize_field("groups", &self.groups)?;
        line.serialize_field(
            "outcome",
            &Outcomes { rows: self.outcome, tokens: self.tokens, applied: self.applied, names: self.names },
        )?;
        line.serialize_field("preempted", &Names { requests: &self.plan.preempted, names: self.names })?;
        line.serialize_field("finished", &Names { requests: self.finished, names: self.names })?;
        line.serialize_field("copies", &self.plan.copies)?;
        line.serialize_field("pool", &Pool { counts: self.pool, by_group: self.by_group })?;
        if self.kv_events.is_empty() {
            line.skip_field("kv_events")?;
        } else {
            line.serialize_field("kv_events", &self.kv_events)?;
        }
        line.end()
    }
}

/// The plan's rows, under the names that the trace format fixes.
struct Rows<'a> {
    plan: &'a StepPlan,
    outcome: &'a [RowOutcome],
    names: &'a dyn StepNames,
}

impl Serialize for Rows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.plan.rows.iter().enumerate().map(|(i, row)| {
            let num_drafts = self.outcome.get(i).map_or(row.drafts_max, |o| o.num_drafts);
            Row { row, num_drafts, names: self.names }
        }))
    }
}

struct Row<'a> {
    row: &'a PlanRow,
    num_drafts: u16,
    names: &'a dyn StepNames,
}

impl Serialize for Row<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let tokens = &self.row.tokens;
        let mut row = serializer.serialize_struct("Row", 9)?;
        row.serialize_field("request_id", self.names.request_id(self.row.request))?;
        row.serialize_field("kind", kind_name(&self.row.kind))?;
        row.serialize_field("num_computed", &tokens.start)?;
        row.serialize_field(
            "num_new",
            &(tokens.end.saturating_sub(tokens.start) + u32::from(self.num_drafts)),
        )?;
        row.serialize_field("num_drafts", &self.num_drafts)?;
        row.serialize_field("drafts_max", &self.row.drafts_max)?;
        if let Kind::Denoise { block, full } = &self.row.kind {
            row.serialize_field("block", &(block.start, block.end))?;
            row.serialize_field("full", full)?;
        }
        if let Some(salt) = self.names.kv_salt(self.row.request) {
            row.serialize_field("kv_salt", &salt)?;
        }
        if let Some(kept) = self.names.kept(self.row.request) {
            row.serialize_field("kept", &kept.counts)?;
            row.serialize_field("compact", &kept.compact)?;
            row.serialize_field("prompt_len", &kept.prompt_len)?;
            row.serialize_field("kept_name", &kept.name)?;
            row.serialize_field("resumed", &(self.row.kind == Kind::Prefill && !self.row.thins))?;
            row.serialize_field("segments", &(self.row.segments.start, self.row.segments.end))?;
        }
        row.end()
    }
}

fn kind_name(kind: &Kind) -> &'static str {
    match kind {
        Kind::Prefill => "prefill",
        Kind::Decode => "decode",
        Kind::Verify => "verify",
        Kind::Denoise { .. } => "denoise",
    }
}

/// The outcome's rows, under the names that the trace format fixes.
struct Outcomes<'a> {
    rows: &'a [RowOutcome],
    tokens: &'a [u32],
    applied: &'a [Applied],
    names: &'a dyn StepNames,
}

impl Serialize for Outcomes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.rows.len()))?;
        let mut applied = self.applied.iter().peekable();
        for row in self.rows {
            let kept =
                applied.next_if(|one| one.request == row.request).map_or(0..0, |one| one.tokens.clone());
            let emitted = self.tokens.get(kept.start as usize..kept.end as usize).unwrap_or_default();
            seq.serialize_element(&Outcome { row, emitted, of: self })?;
        }
        seq.end()
    }
}

struct Outcome<'a> {
    row: &'a RowOutcome,
    emitted: &'a [u32],
    of: &'a Outcomes<'a>,
}

impl Serialize for Outcome<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Outcome", 6)?;
        out.serialize_field("request_id", self.of.names.request_id(self.row.request))?;
        out.serialize_field("token_ids", self.emitted)?;
        out.serialize_field("num_drafts", &self.row.num_drafts)?;
        out.serialize_field("num_accepted", &self.row.num_accepted)?;
        out.serialize_field("finish_reason", &self.of.names.finish_reason(self.row.request))?;
        if self.row.progress == Progress::Lost {
            out.serialize_field("lost", &true)?;
        }
        out.end()
    }
}

/// Requests, written by name.
struct Names<'a> {
    requests: &'a [RequestKey],
    names: &'a dyn StepNames,
}

impl Serialize for Names<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.requests.iter().map(|&r| self.names.request_id(r)))
    }
}
