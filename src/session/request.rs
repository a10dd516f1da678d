//! What goes into a session, and what comes out.

use pagedraft_block_manager::{BlockId, Handle, PoolStats};
use pagedraft_scheduler::FinishReason;
use pagedraft_spec_decode::StageTimes;
use pagedraft_spec_decode::sampling::{SamplingParams, TokenLogprob};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

/// One sample of one request, from submission to the end of the session. The default names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(super) Handle);

/// A prompt and how to go on from it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The caller's name for it.
    pub request_id: String,
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// How tokens are chosen; `sample` is set by the session.
    pub sampling: SamplingParams,
    /// Greatest number of tokens to generate.
    pub max_tokens: u32,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// Tokens that end the sequence, besides the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Whether the model's end-of-sequence tokens are ordinary ones.
    pub ignore_eos: bool,
    /// Lower goes first under the priority policy.
    pub priority: i32,
    /// Samples of the prompt.
    pub n: u32,
    /// Whose prefixes it may share: blocks of the prefix cache are found by requests with the same text, or without one,
    /// alone.
    pub cache_salt: Option<String>,
    /// What the run without speculation generated, a list a sample, for the synthetic proposer.
    pub recorded: Vec<Arc<[u32]>>,
}

impl Request {
    /// One greedy sample of up to `max_tokens` tokens behind `prompt`, ended by the model's end-of-sequence tokens.
    pub fn new(request_id: impl Into<String>, prompt: Vec<u32>, max_tokens: u32) -> Self {
        Self {
            request_id: request_id.into(),
            prompt,
            sampling: SamplingParams::greedy(),
            max_tokens,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            priority: 0,
            n: 1,
            cache_salt: None,
            recorded: Vec::new(),
        }
    }
}

/// What came of one sample.
#[derive(Clone, Debug, Serialize)]
pub struct RequestOutput {
    /// The caller's name; a trace calls sample i of several `NAME/i`.
    pub request_id: String,
    /// Which sample of the prompt, from 0.
    pub sample: u32,
    /// The prompt.
    pub prompt_token_ids: Vec<u32>,
    /// The tokens generated, a stop token or the tokens of a stop string included.
    pub token_ids: Vec<u32>,
    /// Their text, without stop tokens and strings.
    pub text: String,
    /// Why it ended; `None` while it runs.
    pub finish_reason: Option<FinishReason>,
    /// What was wrong with it, where it failed alone: its logits were no numbers, for example.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// For each generated token the best candidates, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<Vec<TokenLogprob>>>,
    /// For each generated token its own log probability, where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_logprobs: Option<Vec<TokenLogprob>>,
    /// For each prompt token the best candidates (none for the first), where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<Vec<TokenLogprob>>>>,
    /// For each prompt token its own log probability (none for the first), where asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_logprobs: Option<Vec<Option<TokenLogprob>>>,
    /// Prompt tokens whose KV was there already.
    pub num_cached_tokens: u32,
    /// How often its blocks were taken back.
    pub num_preemptions: u32,
    /// Drafts scored for it.
    pub num_drafts: u32,
    /// Drafts accepted.
    pub num_accepted: u32,
    /// For each place in a row of drafts, how many were scored there.
    pub drafted_by_position: Vec<u32>,
    /// The same, accepted.
    pub accepted_by_position: Vec<u32>,
    /// KV blocks that it held in the last step that ran it.
    #[serde(skip)]
    pub num_blocks: u32,
    /// Of its blocks, those that were found in the prefix cache when it was first admitted.
    #[serde(skip)]
    pub prefix_blocks: Vec<BlockId>,
}

/// News of one sample in a step.
#[derive(Clone, Debug)]
pub struct Emitted {
    /// Whose.
    pub id: RequestId,
    /// Tokens of this step that were kept.
    pub tokens: Vec<u32>,
    /// Text that can be shown now.
    pub text: String,
    /// Set when it ended.
    pub finish: Option<FinishReason>,
}

/// What a step of a session did.
#[derive(Clone, Debug, Default)]
pub struct SessionStep {
    /// Its number.
    pub step: u64,
    /// Nothing could run: no request is waiting or running.
    pub idle: bool,
    /// Plan rows.
    pub rows: usize,
    /// Tokens of prompts computed.
    pub prefill_tokens: usize,
    /// Rows that decoded, drafts or none.
    pub decode_rows: usize,
    /// Requests whose blocks were taken back.
    pub preempted: usize,
    /// Admitted requests, as the step ran.
    pub running: usize,
    /// Requests that waited, as the step ran.
    pub waiting: usize,
    /// The KV pool as the step ran: what it planned is taken, what ends with it is not yet given back.
    pub pool_during: PoolStats,
    /// The KV pool, after the step.
    pub pool: PoolStats,
    /// Whether it was replayed from a graph.
    pub replayed: bool,
    /// Where its time went, in microseconds; scheduling and what is done behind the executor are in `elapsed` alone.
    pub stages: StageTimes,
    /// Wall time, scheduling and sampling included.
    pub elapsed: Duration,
    /// News of its requests.
    pub emitted: Vec<Emitted>,
}
