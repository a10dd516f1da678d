//! A record, as it is written and read.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The kind of row that a query token was computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DsaRow {
    /// Tokens of a prompt, or tokens whose KV was lost.
    Prefill,
    /// The last token alone.
    Decode,
    /// The last token, with drafts behind it.
    Verify,
}

/// The scores that the indexer gave to the keys that were chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DsaScores {
    /// The least.
    pub min: f32,
    /// Their mean: the sum in 64 bits over ascending positions, divided by their number and rounded to 32 bits.
    pub mean: f32,
    /// The greatest.
    pub max: f32,
}

impl DsaScores {
    /// The figures of some scores; `None` if there are none, or if one is not finite.
    #[must_use]
    pub fn of(scores: &[f32]) -> Option<Self> {
        let sum = scores.iter().fold(0.0, |sum, &score| sum + f64::from(score));
        let mean = (sum / scores.len() as f64) as f32;
        let (min, max) = (f32::INFINITY, f32::NEG_INFINITY);
        let (min, max) = scores.iter().fold((min, max), |(min, max), &s| (min.min(s), max.max(s)));
        mean.is_finite().then_some(Self { min, mean, max })
    }
}

/// How many chosen tokens lie in each block that has any.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DsaTouched {
    /// The mean over the blocks, rounded to 6 decimals.
    pub mean: f64,
    /// The median: of an even number of blocks the lower one.
    pub p50: u32,
    /// The least number that at least 95 % of the blocks do not exceed.
    pub p95: u32,
}

/// What attention read from one place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DsaSource {
    /// The physical blocks that were there, ascending. A block that an earlier query token of the step had fetched is in the pool.
    pub hit_blocks: Vec<u32>,
    /// The bytes read. Of the pool: the latents of the chosen tokens in this layer, which all lie there when attention reads them; other
    /// tokens of these blocks are not read. Of a tier below: the blocks, as this layer has them.
    pub bytes_read: u64,
    /// The number of reads: of the pool one for each latent, of a tier below one for each block.
    pub read_ops: u64,
    /// The microseconds that it took; of the pool the time to find its blocks. Null if there are no tiers.
    pub latency_us: Option<f64>,
    /// The number of blocks that were read from together.
    pub batch_size: u32,
}

/// Where the KV was read from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DsaFetch {
    /// The pool. It is called so on the CPU too.
    pub hbm: DsaSource,
    /// The tier below: host memory, or a mapped file.
    pub local_pool: DsaSource,
    /// The last tier.
    pub remote_pool: DsaSource,
}

/// How a choice meets the prefix cache.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DsaPrefix {
    /// Whether the request found whole blocks in the cache when it was admitted, the last time that it was.
    pub prefix_cache_hit: bool,
    /// The number of those blocks.
    pub prefix_cached_blocks: u32,
    /// The SHA-256 of the first tokens of the prompt (each as 4 bytes, little-endian): its first 16 hexadecimal digits.
    pub prefix_key: String,
    /// The share of the chosen blocks that are among the cached ones, rounded to 6 decimals.
    pub intersection_ratio: f64,
    /// Those blocks, by their physical ids, ascending.
    pub intersection_blocks: Vec<u32>,
}

/// One line with `"event": "dsa_topk"`: what one layer attended to for one query token.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DsaTopkRecord {
    /// The request.
    pub request_id: String,
    /// The layer.
    pub layer_id: u16,
    /// The engine's step.
    pub step: u64,
    /// The position of the query token.
    pub step_idx: u32,
    /// The number of keys that it sees: `step_idx` + 1.
    pub seq_len_current: u32,
    /// The kind of row.
    pub row: DsaRow,
    /// In a verify row, whether the token belongs to the sequence: true for the first token and for drafts that were
    /// accepted. Null in other rows.
    pub accepted: Option<bool>,
    /// The positions of the chosen keys, ascending.
    pub selected_token_pos: Vec<u32>,
    /// How many there are.
    pub unique_token_pos_count: u32,
    /// The least distance from the query token to a chosen key.
    pub offset_min: u32,
    /// The median distance: of an even number the lower one.
    pub offset_p50: u32,
    /// The greatest distance.
    pub offset_max: u32,
    /// The scores of the chosen keys. Null if a score is not finite.
    pub scores_stats: Option<DsaScores>,
    /// Each of these scores, in the order of the positions. Null unless they are asked for (`--trace-store-scores`), and where
    /// `scores_stats` is null.
    pub scores_topk: Option<Vec<f32>>,
    /// Tokens a block.
    pub block_size_tokens: u32,
    /// The physical blocks of the chosen keys, ascending.
    pub selected_block_ids: Vec<u32>,
    /// Their places in the request's block table, ascending.
    pub selected_logical_blocks: Vec<u32>,
    /// How many blocks these are.
    pub unique_blocks: u32,
    /// Their share of the blocks that hold keys, rounded to 6 decimals.
    pub coverage: f64,
    /// The expectation of that share for a random choice of as many keys, rounded to 6 decimals.
    pub coverage_random: f64,
    /// How many chosen keys lie in each of these blocks.
    pub tokens_per_touched_block: DsaTouched,
    /// What was read.
    pub kv_fetch: DsaFetch,
    /// The prefix cache.
    pub prefix: DsaPrefix,
    /// The layer whose indexer chose: this one, or the one whose choice it uses.
    pub selection_layer: u16,
}

/// A record with the name of its event.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(in crate::trace) enum DsaLine<'a> {
    DsaTopk(&'a DsaTopkRecord),
}
