use pagedraft_block_manager::{BlockSize, GroupId, KvGroup};
use serde::{Deserialize, Serialize};

use crate::ConfigError;

/// Who comes first when not everyone can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// First come, first served; the last admitted is preempted first.
    #[default]
    Fcfs,
    /// Lower priority values first, then first come; the worst of the running is preempted first.
    Priority,
}

/// A part of the model's forward pass: between two segments the host may look at what was computed and drop tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SegmentKv {
    /// The KV groups that the segment's layers write.
    pub groups: Vec<GroupId>,
    /// The scratch group that holds the residual rows of requests that wait behind this segment.
    pub hold: Option<GroupId>,
}

/// What a scheduler is made from. Field names are the flags' names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulerConfig {
    /// Tokens a KV block: 16, 32 or 64.
    pub block_size: u32,
    /// Size of the KV arena: the bytes of so many blocks of all the target's layers, and of as many blocks of each
    /// group that lags (a draft model's KV).
    pub num_blocks: u32,
    /// Requests running at once.
    pub max_num_seqs: u32,
    /// The token budget of a step: known tokens and drafts of all rows. May be smaller than `max_num_seqs`.
    pub max_num_batched_tokens: u32,
    /// Tokens of a request at most, prompt and output together.
    pub max_model_len: u32,
    /// Whether a prompt may be computed in pieces, over several steps.
    pub enable_chunked_prefill: bool,
    /// Whether committed blocks are published, and hit.
    pub enable_prefix_caching: bool,
    /// The greatest piece of a prefill; by default what the budget leaves.
    pub prefill_chunk: Option<u32>,
    /// Drafts that may follow the last token of a decode row, at most.
    pub num_speculative_tokens: u16,
    /// Who comes first.
    pub policy: Policy,
    /// The model's KV groups.
    #[serde(skip_deserializing, default = "dense")]
    pub groups: Vec<KvGroup>,
    /// The model's segments. Empty: one segment that writes every group which does not lag.
    #[serde(skip_deserializing)]
    pub segments: Vec<SegmentKv>,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            block_size: 16,
            num_blocks: 1024,
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            max_model_len: 8192,
            enable_chunked_prefill: true,
            enable_prefix_caching: true,
            prefill_chunk: None,
            num_speculative_tokens: 0,
            policy: Policy::default(),
            groups: dense(),
            segments: Vec::new(),
        }
    }
}

impl SchedulerConfig {
    pub(crate) fn check(&self) -> Result<BlockSize, ConfigError> {
        let block_size = BlockSize::new(self.block_size)?;
        let least_one = [
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("prefill_chunk", self.prefill_chunk.unwrap_or(1)),
        ];
        for (name, value) in least_one {
            if value == 0 {
                return Err(ConfigError::Zero { name });
            }
        }
        if self.max_model_len < 2 {
            return Err(ConfigError::MaxModelLen { given: self.max_model_len });
        }
        if let Some(chunk) = self.prefill_chunk
            && !self.enable_chunked_prefill
        {
            return Err(ConfigError::ChunkWithoutChunking { chunk });
        }
        Ok(block_size)
    }
}

/// One group whose tokens are a byte each: blocks are then all that is counted.
fn dense() -> Vec<KvGroup> {
    vec![KvGroup::dense(1, 1)]
}
