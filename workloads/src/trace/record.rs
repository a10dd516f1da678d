//! A step as read back from a trace. The writing side serialises the engine's own objects ([`super::StepEvent`]); these
//! types are the reader's, and tolerate fields they don't know.

use schemars::{JsonSchema, Schema};
use serde::Deserialize;

/// Fields that are always written, also where they are null or empty.
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
    /// Its number; each engine counts its own.
    pub step: u64,
    /// Which engine's, from 0, in a trace of several (`--replicas`); absent in that of one.
    #[serde(default)]
    pub replica: Option<u32>,
    /// `eager` or `graph`.
    #[schemars(extend("enum" = ["eager", "graph"]))]
    pub mode: String,
    /// Where the time went.
    #[serde(default)]
    #[schemars(required)]
    pub time_us: Option<super::TimesUs>,
    /// The shape that was replayed, if any.
    #[serde(default)]
    #[schemars(with = "Option<GraphKeyRecord>")]
    pub graph_key: Option<serde_json::Value>,
    /// The plan.
    pub rows: Vec<RowRecord>,
    /// Token ids, by metadata row.
    pub input_tokens: Vec<u32>,
    /// Positions of those tokens.
    pub input_positions: Vec<u32>,
    /// The plan row of each metadata row; absent in traces that leave it to be found out.
    #[serde(default)]
    pub plan_rows: Option<Vec<u64>>,
    /// The attention call.
    pub metadata: MetadataRecord,
    /// KV groups beyond the one in `metadata`.
    #[serde(default)]
    pub groups: Option<std::collections::BTreeMap<String, GroupRecord>>,
    /// What each plan row gave.
    pub outcome: Vec<OutcomeRecord>,
    /// Whose blocks were taken back while the plan was made.
    #[serde(default)]
    pub preempted: Vec<String>,
    /// Who ended with this step, or was aborted since the line before.
    #[serde(default)]
    pub finished: Vec<String>,
    /// Blocks copied before the step wrote anything: (from, to).
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
    /// All blocks; where several KV groups share the pool, as many as there could be of the smallest.
    pub num_blocks: u64,
    /// Blocks that sequences hold.
    pub used: u64,
    /// The others.
    pub free: u64,
    /// Of the free ones, those with contents that a prefix can still hit.
    pub cached: u64,
    /// Bytes of the arena; written, as are the next four, where several KV groups share it.
    #[serde(default)]
    pub bytes_total: Option<u64>,
    /// Bytes of the blocks that sequences hold.
    #[serde(default)]
    pub bytes_used: Option<u64>,
    /// The other bytes.
    #[serde(default)]
    pub bytes_free: Option<u64>,
    /// Of the free bytes, those of blocks that a prefix can still hit.
    #[serde(default)]
    pub bytes_cached: Option<u64>,
    /// Of the free bytes, those in pages with a block that is held: only the group that owns such a page can take them.
    #[serde(default)]
    pub bytes_fragmented: Option<u64>,
    /// By KV group, where several share the pool.
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
    /// Whose.
    pub request_id: String,
    /// What kind of work.
    pub kind: RowKind,
    /// Tokens whose KV was there before the step.
    pub num_computed: u32,
    /// Query tokens, drafts included.
    pub num_new: u32,
    /// Drafts planned for.
    #[serde(default)]
    pub num_drafts: u32,
    /// Drafts that slots were reserved for, where there were more.
    #[serde(default)]
    pub drafts_max: Option<u32>,
    /// Of a denoise row: the positions of its block, the first and the one behind the last.
    #[serde(default)]
    pub block: Option<(u32, u32)>,
    /// Of a denoise row: whether all of the block is computed.
    #[serde(default)]
    pub full: Option<bool>,
    /// The salt of the request's block hashes in hexadecimal digits, where it is not the configuration's `kv_salt`.
    #[serde(default)]
    pub kv_salt: Option<String>,
}

/// Kind of a plan row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RowKind {
    /// Known tokens without KV.
    Prefill,
    /// The last token.
    Decode,
    /// The last token and drafts.
    Verify,
    /// A block of a diffusion model.
    Denoise,
}

/// The attention call of a step.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
pub struct MetadataRecord {
    /// Metadata rows of more than one query token.
    pub num_prefills: u64,
    /// Their query tokens.
    pub num_prefill_tokens: u64,
    /// Metadata rows of one query token.
    pub num_decode_tokens: u64,
    /// Slot of each query token, -1 for none.
    pub slot_mapping: Vec<i64>,
    /// Context and query of each row; of a bidirectional row also the keys behind its queries.
    pub seq_lens: Vec<u64>,
    /// Tokens before the query.
    pub context_lens: Vec<u64>,
    /// Where each row's query starts, and the total.
    pub query_start_loc: Vec<u64>,
    /// Where each row's sequence would start were all laid end to end, and the total.
    pub seq_start_loc: Vec<u64>,
    /// Greatest query length.
    pub max_query_len: u64,
    /// Greatest `seq_lens` of the prefill rows.
    pub max_prefill_seq_len: u64,
    /// Greatest `seq_lens` of the decode rows.
    pub max_decode_seq_len: u64,
    /// A table a row, with -1 for blocks that were given back behind the window; empty or `null`: the one last written
    /// for the request (`--trace-tables delta`).
    pub block_tables: Vec<Option<Vec<i64>>>,
    /// Whether a graph or a tape was replayed.
    pub use_cuda_graph: bool,
    /// The mask of each row, `causal` or `bidirectional`; absent where all are causal.
    #[serde(default)]
    pub mask_kinds: Vec<String>,
    /// The sliding window of the layers: the query of index i sees no key j with j <= i - window.
    #[serde(default)]
    pub window: Option<u32>,
    /// Index of each query token among the row's keys, -1 for one that is not kept; absent where the tokens of every row
    /// are `context_len, context_len + 1, ..`.
    #[serde(default)]
    pub kv_index: Vec<i64>,
}

/// The shape of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub struct GraphKeyRecord {
    /// Token rows, padding included.
    pub token_rows: u64,
    /// Query tokens of the longest metadata row: exact.
    pub max_query_len: u64,
    /// Metadata rows, padding included.
    pub sequences: u64,
}

/// The part of the metadata that a further KV group has of its own.
///
/// Two forms: the rows are the metadata's, or, with `plan_rows`, the group's own, with tokens and positions of their own
/// (a draft model's).
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
pub struct GroupRecord {
    /// The plan row of each row of the group's own; absent where the rows are the metadata's, as are the next three.
    #[serde(default)]
    pub plan_rows: Option<Vec<u64>>,
    /// Tokens whose KV was written, row by row.
    #[serde(default)]
    pub input_tokens: Vec<u32>,
    /// Their positions.
    #[serde(default)]
    pub input_positions: Vec<u32>,
    /// Where each row's tokens start, and the end of the last.
    #[serde(default)]
    pub query_start_loc: Vec<u64>,
    /// Slot of each query token in the group, -1 for none.
    pub slot_mapping: Vec<i64>,
    /// Tokens of each row in the group.
    pub seq_lens: Vec<u64>,
    /// Of those, the ones before the step.
    pub context_lens: Vec<u64>,
    /// A table a row, or empty as in [`MetadataRecord::block_tables`].
    pub block_tables: Vec<Option<Vec<i64>>>,
    /// Index of each query token in its group (-1: not kept) where that is not its position.
    #[serde(default)]
    pub kv_index: Option<Vec<i64>>,
    /// The window of the group's layers: the query of index i sees no key j with j <= i - window.
    #[serde(default)]
    pub window: Option<u32>,
}

/// What a plan row gave.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[schemars(transform = of_an_outcome)]
pub struct OutcomeRecord {
    /// Whose.
    pub request_id: String,
    /// Tokens emitted: not those behind an end, and none of a request aborted while the step ran.
    pub token_ids: Vec<u32>,
    /// Drafts scored.
    #[serde(default)]
    pub num_drafts: u32,
    /// Drafts accepted.
    #[serde(default)]
    pub num_accepted: u32,
    /// Set when the request ended with this step: `stop`, `length` or `abort`.
    #[serde(default)]
    #[schemars(extend("enum" = ["stop", "length", "abort", null]))]
    pub finish_reason: Option<String>,
}

/// A block copied for a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub struct CopyRecord {
    /// The KV group of both blocks, by its place in the configuration's `kv_groups`.
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
    /// Who proposes drafts, as `--draft` has it.
    pub draft: Option<String>,
    /// What a token of the synthetic proposer is made to take, as a share of a decode step.
    pub draft_cost: f64,
    /// Drafts a row at most, or `auto`.
    pub num_speculative_tokens: String,
    /// How verify rows become metadata: `mqa` or `batch-expansion`.
    pub scorer: String,
    /// Which drafts stand: `coupled`, `rejection` or `typical:THRESHOLD,ALPHA`.
    pub acceptance: String,
    /// Whether no graph is replayed.
    pub enforce_eager: bool,
}

/// One line with `"event": "resume"`: a stopped run goes on with a new engine, which has nothing of the old one's: no
/// blocks, no requests, no prefix cache.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
pub struct ResumeRecord {
    /// The number of its first step: step numbers go on.
    pub step: u64,
}
