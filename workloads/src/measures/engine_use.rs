use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{HotBlock, Tally};

/// What the engines of a run did: their steps, and the blocks of their KV pools.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct EngineUse {
    /// How full the KV pool was.
    pub kv: KvUse,
    /// The number of preemptions: how often a request's blocks were taken back.
    pub preemptions: u64,
    /// The number of steps of all engines.
    pub steps: u64,
    /// The number of those steps that replayed a graph.
    pub graph_replays: u64,
    /// The number of prompt tokens computed, including those computed again after a preemption.
    pub prefill_tokens: u64,
    /// The number of rows that decoded, with or without drafts.
    pub decode_rows: u64,
    /// The number of blocks that a decode row read. Dense attention reads all of its context, drafts
    /// included. All rows count that gave tokens after a request's first one. If the run has records of sparse
    /// attention (`--trace-dsa`), this and the next four are about them: one value a layer of each decoded token that was kept.
    pub unique_blocks: Tally,
    /// The number of tokens that a decode row read of each block. All its blocks are full but the last.
    pub tokens_per_touched_block: Tally,
    /// The distance from a token to each key that sparse attention chose for it, in tokens. Left out without such records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offsets: Option<Tally>,
    /// The share of a decode row's blocks that belong to its cached prefix, 0 to 1, counted in parts of
    /// 1/4096.
    pub prefix_intersection_ratio: Tally,
    /// The cached blocks with the most decode steps of requests that held them, at most 16, in falling
    /// order. Dense attention reads the same blocks in every layer, so the one key `"0"` stands for all
    /// layers. Of sparse attention: for each layer those that were chosen from most often.
    pub prefix_hot_blocks: BTreeMap<String, Vec<HotBlock>>,
}

/// How full the KV pool was. During a step this counts the blocks that the step has taken, before any are
/// given back by requests that end with it. Between steps it is what the last step left. Time before the
/// first step of a resumed run does not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct KvUse {
    /// Blocks of all engines. Where several KV groups share a pool, the smallest block of a group is counted here and below.
    pub num_blocks: u64,
    /// The most blocks in use at once, of all engines together. For each step it adds the blocks of that
    /// step and those of every other engine, during that engine's last step if the two overlapped, and
    /// otherwise after it.
    pub peak_used: u64,
    /// The greatest share of one engine's blocks that was in use, 0 to 1.
    pub peak_share: f64,
    /// Bytes of the pool of one engine; told where several KV groups share it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_total: Option<u64>,
    /// Most bytes of it in use in one engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes_used: Option<u64>,
    /// The share of blocks in use, as a mean over the run's time (of a resumed run: the time since its
    /// first step).
    pub mean_share: f64,
}
