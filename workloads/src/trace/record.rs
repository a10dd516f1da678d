//! A step as it is read back from a trace. The writing side serialises the engine's own objects
//! ([`super::StepEvent`]). These types are for readers, and ignore fields that they don't know.

use schemars::{JsonSchema, Schema};
use serde::Deserialize;

/// Marks fields that are always written, even if they are null or empty.
fn require(schema: &mut Schema, names: &[&str]) {
    let required = schema.ensure_object().entry("required").or_insert_with(|| serde_json::json!([]));
    if let Some(required) = required.as_array_mut() {
        required.extend(names.iter().map(|name| serde_json::json!(name)));
    }
}

fn of_a_step(schema: &mut Schema) {
    require(schema, &["graph_key", "groups", "preempted", "finished"]);
}

fn of_an_outcome(schema: &mut Schema) {
    require(schema, &["finish_reason"]);
}

fn of_a_setup(schema: &mut Schema) {
    require(schema, &["draft"]);
}

/// One line with `"event": "step"`.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(transform = of_a_step)]
pub struct StepRecord {
    /// The step's number. Each engine counts its own steps.
    pub step: u64,
    /// The engine, from 0, in a trace of several (`--replicas`); absent in a trace of one.
    #[serde(default)]
    pub replica: Option<u32>,
    /// `eager` or `graph`.
    #[schemars(extend("enum" = ["eager", "graph"]))]
    pub mode: String,
    /// How the time was spent.
    #[serde(default)]
    #[schemars(required)]
    pub time_us: Option<super::TimesUs>,
    /// The shape that was replayed, if any.
    #[serde(default)]
    #[schemars(with = "Option<GraphKeyRecord>")]
    pub graph_key: Option<serde_json::Value>,
    /// The plan's rows.
    pub rows: Vec<RowRecord>,
    /// The token ids, by metadata row.
    pub input_tokens: Vec<u32>,
    /// The positions of those tokens.
    pub input_positions: Vec<u32>,
    /// The plan row of each metadata row; absent in traces that leave it to the reader to find out.
    #[serde(default)]
    pub plan_rows: Option<Vec<u64>>,
    /// The metadata of the attention call.
    pub metadata: MetadataRecord,
    /// KV groups beyond the one in `metadata`.
    #[serde(default)]
    pub groups: Option<std::collections::BTreeMap<String, GroupRecord>>,
    /// The result of each plan row.
    pub outcome: Vec<OutcomeRecord>,
    /// The requests whose blocks were taken back while the plan was made.
    #[serde(default)]
    pub preempted: Vec<String>,
    /// The requests that ended with this step, or were aborted since the line before.
    #[serde(default)]
    pub finished: Vec<String>,
    /// The blocks that were copied before the step wrote anything.
    #[serde(default)]
    pub copies: Vec<CopyRecord>,
    /// The block pool.
    pub pool: PoolRecord,
    /// What entered and left the prefix cache since the line before, in that order.
    #[serde(default)]
    pub kv_events: Vec<super::KvEventRecord>,
}

/// The block pool after a step was applied, and what each KV group has of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub struct PoolRecord {
    /// The number of blocks. If several KV groups share the pool, it is the number of smallest blocks that
    /// would fit.
    pub num_blocks: u64,
    /// The number of blocks that sequences hold.
    pub used: u64,
    /// The number of other blocks.
    pub free: u64,
    /// The number of free blocks with contents that a prefix can still hit.
    pub cached: u64,
    /// The bytes of the arena. This and the next four are written if several KV groups share it.
    #[serde(default)]
    pub bytes_total: Option<u64>,
    /// The bytes of the blocks that sequences hold.
    #[serde(default)]
    pub bytes_used: Option<u64>,
    /// The bytes of everything else.
    #[serde(default)]
    pub bytes_free: Option<u64>,
    /// The part of the free bytes in blocks that a prefix can still hit.
    #[serde(default)]
    pub bytes_cached: Option<u64>,
    /// The part of the free bytes in pages with a block that is held. Only the group that owns such a page
    /// can use them.
    #[serde(default)]
    pub bytes_fragmented: Option<u64>,
    /// The blocks by KV group, if several share the pool.
    #[serde(default)]
    pub by_group: Option<std::collections::BTreeMap<String, super::GroupCounts>>,
}

impl From<&PoolRecord> for super::PoolCounts {
    fn from(pool: &PoolRecord) -> Self {
        Self {
            num_blocks: pool.num_blocks,
            used: pool.used,
            free: pool.free,
            cached: pool.cached,
            bytes_total: pool.bytes_total,
            bytes_used: pool.bytes_used,
            bytes_free: pool.bytes_free,
            bytes_cached: pool.bytes_cached,
            bytes_fragmented: pool.bytes_fragmented,
        }
    }
}

/// A plan row.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct RowRecord {
    /// The request.
    pub request_id: String,
    /// The kind of work.
    pub kind: RowKind,
    /// The number of tokens whose KV was stored before the step.
    pub num_computed: u32,
    /// The number of query tokens, drafts included.
    pub num_new: u32,
    /// The number of drafts that were planned.
    #[serde(default)]
    pub num_drafts: u32,
    /// The number of drafts that slots were reserved for, if it is greater.
    #[serde(default)]
    pub drafts_max: Option<u32>,
    /// For a denoise row: the first position of its block, and the one after the last.
    #[serde(default)]
    pub block: Option<(u32, u32)>,
    /// For a denoise row: whether the whole block is computed.
    #[serde(default)]
    pub full: Option<bool>,
    /// The salt of the request's block hashes in hexadecimal digits, if it is not the configuration's
    /// `kv_salt`.
    #[serde(default)]
    pub kv_salt: Option<String>,
    /// Of a request that drops tokens of its prompt: how many of them go on behind each cut of the model.
    #[serde(default)]
    pub kept: Option<Vec<u32>>,
    /// Of such a request: whether its tokens are numbered anew behind each cut.
    #[serde(default)]
    pub compact: bool,
    /// Of such a request: the tokens of its prompt.
    #[serde(default)]
    pub prompt_len: u32,
    /// Of such a request: what the blocks of its kept tokens are found by in the prefix cache, in hexadecimal digits.
    #[serde(default)]
    pub kept_name: Option<String>,
    /// Of a prefill row of such a request: whether the prefix cache had what it keeps, so that the row's tokens are none that are dropped.
    #[serde(default)]
    pub resumed: bool,
    /// Of such a request: the first segment of the model that the row runs through, and the one after the last. In a
    /// prefill row, `num_computed` and `num_new` then count the tokens that reach the first of them.
    #[serde(default)]
    pub segments: Option<(u16, u16)>,
}

impl RowRecord {
    /// Whether it computes part of a prompt of which not all tokens go on.
    #[must_use]
    pub fn thins(&self) -> bool {
        self.kept.is_some() && self.kind == RowKind::Prefill && !self.resumed
    }

    /// The first segment that it runs through.
    #[must_use]
    pub fn first_segment(&self) -> u16 {
        self.segments.map_or(0, |(first, _)| first)
    }
}

/// The kind of a plan row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// It computes known tokens without KV.
    Prefill,
    /// It computes the last token.
    Decode,
    /// It computes the last token and drafts.
    Verify,
    /// It computes a block of a diffusion model.
    Denoise,
}

/// The attention call of a step.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct MetadataRecord {
    /// The number of metadata rows with more than one query token.
    pub num_prefills: u64,
    /// The number of their query tokens.
    pub num_prefill_tokens: u64,
    /// The number of metadata rows with one query token.
    pub num_decode_tokens: u64,
    /// The slot of each query token, -1 for none.
    pub slot_mapping: Vec<i64>,
    /// The sum of context and query of each row; in a bidirectional row also the keys behind its queries.
    pub seq_lens: Vec<u64>,
    /// The number of tokens before the query of each row.
    pub context_lens: Vec<u64>,
    /// Where each row's query starts, and the total at the end.
    pub query_start_loc: Vec<u64>,
    /// Where each row's sequence would start if all were laid end to end, and the total at the end.
    pub seq_start_loc: Vec<u64>,
    /// The greatest query length.
    pub max_query_len: u64,
    /// The greatest `seq_lens` of the prefill rows.
    pub max_prefill_seq_len: u64,
    /// The greatest `seq_lens` of the decode rows.
    pub max_decode_seq_len: u64,
    /// The block table of each row, with -1 for blocks that were given back behind the window. An empty
    /// list or `null` stands for the last one written for the request (`--trace-tables delta`).
    pub block_tables: Vec<Option<Vec<i64>>>,
    /// Whether a CUDA graph or a tape was replayed.
    pub use_cuda_graph: bool,
    /// The mask of each row, `causal` or `bidirectional`; absent if all are causal.
    #[serde(default)]
    pub mask_kinds: Vec<String>,
    /// The sliding window of the layers: the query of index i sees no key j with j <= i - window.
    #[serde(default)]
    pub window: Option<u32>,
    /// The index of each query token among the row's keys, -1 for one that is not kept; absent if the
    /// tokens of every row have the indices `context_len, context_len + 1, ..`.
    #[serde(default)]
    pub kv_index: Vec<i64>,
}

/// The shape of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub struct GraphKeyRecord {
    /// The number of token rows, padding included.
    pub token_rows: u64,
    /// The number of query tokens of the longest metadata row. A step must match it exactly.
    pub max_query_len: u64,
    /// The number of metadata rows, padding included.
    pub sequences: u64,
}

/// The part of the metadata that differs in a further KV group.
///
/// It has two forms. Without `plan_rows` its rows are the metadata's. With `plan_rows` they are the group's
/// own, with tokens and positions of their own (a draft model's).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct GroupRecord {
    /// The plan row of each of the group's own rows; absent if the rows are the metadata's, as are the next
    /// three fields.
    #[serde(default)]
    pub plan_rows: Option<Vec<u64>>,
    /// The tokens whose KV was written, row by row.
    #[serde(default)]
    pub input_tokens: Vec<u32>,
    /// The positions of these tokens.
    #[serde(default)]
    pub input_positions: Vec<u32>,
    /// Where each row's tokens start, and the end of the last row.
    #[serde(default)]
    pub query_start_loc: Vec<u64>,
    /// The slot of each query token in the group, -1 for none.
    pub slot_mapping: Vec<i64>,
    /// The number of tokens of each row in the group.
    pub seq_lens: Vec<u64>,
    /// The number of those tokens that were stored before the step.
    pub context_lens: Vec<u64>,
    /// The block table of each row; it may be empty as in [`MetadataRecord::block_tables`].
    pub block_tables: Vec<Option<Vec<i64>>>,
    /// The index of each query token in its group (-1: not kept); absent if that is its position.
    #[serde(default)]
    pub kv_index: Option<Vec<i64>>,
    /// The window of the group's layers: the query of index i sees no key j with j <= i - window.
    #[serde(default)]
    pub window: Option<u32>,
    /// What the queries of each row see; absent if all of them see what is before them.
    #[serde(default)]
    pub mask_kinds: Vec<String>,
    /// The segment of the model that the group belongs to, if it is not the first. Its rows are then the group's own, one for each
    /// plan row that reaches the segment.
    #[serde(default)]
    pub segment: Option<u16>,
}

/// The result of a plan row.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(transform = of_an_outcome)]
pub struct OutcomeRecord {
    /// The request.
    pub request_id: String,
    /// The tokens emitted, without those behind an end. There are none for a request that was aborted while
    /// the step ran.
    pub token_ids: Vec<u32>,
    /// The number of drafts scored.
    #[serde(default)]
    pub num_drafts: u32,
    /// The number of drafts accepted.
    #[serde(default)]
    pub num_accepted: u32,
    /// Set when the request ended with this step: `stop`, `length` or `abort`.
    #[serde(default)]
    #[schemars(extend("enum" = ["stop", "length", "abort", null]))]
    pub finish_reason: Option<String>,
    /// Whether KV that the row needs was lost, so that it gave nothing and is computed again.
    #[serde(default)]
    pub lost: bool,
}

/// A block copied for a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub struct CopyRecord {
    /// The KV group of both blocks, as an index into the configuration's `kv_groups`.
    #[serde(default)]
    pub group: u8,
    /// The shared block.
    #[serde(rename = "src", alias = "from", alias = "source")]
    pub from: i64,
    /// The writable one.
    #[serde(rename = "dst", alias = "to", alias = "target")]
    pub to: i64,
}

/// One line with `"event": "setup"`: from here on the engine speculates in this way.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(transform = of_a_setup)]
pub struct SetupRecord {
    /// The proposer, as `--draft` names it.
    pub draft: Option<String>,
    /// The time that a token of the synthetic proposer is made to take, as a share of a decode step.
    pub draft_cost: f64,
    /// The most drafts of a row, or `auto`.
    pub num_speculative_tokens: String,
    /// How verify rows become metadata: `mqa` or `batch-expansion`.
    pub scorer: String,
    /// The acceptance rule: `coupled`, `rejection` or `typical:THRESHOLD,ALPHA`.
    pub acceptance: String,
    /// Whether no graph is replayed.
    pub enforce_eager: bool,
}

/// One line with `"event": "resume"`: a stopped run is resumed with a new engine, which has no blocks, no
/// requests and no prefix cache of the old one.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub struct ResumeRecord {
    /// The number of its first step. Step numbers go on.
    pub step: u64,
}
