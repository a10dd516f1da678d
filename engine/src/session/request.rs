//! The requests and the results of a session.

use pagedraft_block_manager::{BlockId, Handle, PoolStats};
use pagedraft_scheduler::FinishReason;
use pagedraft_spec_decode::StageTimes;
use pagedraft_spec_decode::sampling::{SamplingParams, TokenLogprob};
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

use super::{Diffusion, DiffusionOutput, IndexerTopk, PruneOutput};
use crate::prune::PruneChoice;

/// Names one sample of one request, from its submission to the end of the session. The default names none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub(super) Handle);

/// A prompt, and how to continue it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The caller's name for it.
    pub request_id: String,
    /// The token ids of the prompt.
    pub prompt: Vec<u32>,
    /// How tokens are chosen. The session sets `sample`.
    pub sampling: SamplingParams,
    /// The most tokens to generate.
    pub max_tokens: u32,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// Whether the stop string that ended the text is part of it.
    pub include_stop_str_in_output: bool,
    /// Tokens that end the sequence, in addition to the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Whether the model's end-of-sequence tokens are treated as ordinary ones.
    pub ignore_eos: bool,
    /// Under the priority policy, requests with lower numbers go first.
    pub priority: i32,
    /// The number of samples of the prompt.
    pub n: u32,
    /// Limits prefix sharing: a request finds blocks in the prefix cache only from requests with the same
    /// text here (or, if it has none, from those without).
    pub cache_salt: Option<String>,
    /// What the run without speculation generated, one list per sample. The synthetic proposer needs it.
    pub recorded: Vec<Arc<[u32]>>,
    /// Whether the output says which keys the indexers of a model with sparse attention chose for every token.
    /// All of the prompt is then computed: nothing is read from the prefix cache. The engine must have been
    /// opened for it ([`EngineOptions::return_indexer_topk`](super::EngineOptions::return_indexer_topk)).
    pub return_indexer_topk: bool,
    /// Whether its samples are the recorded tokens, whatever its logits are: their log probabilities are those of a given text.
    pub follows_recorded: bool,
    /// Whether and how its prompt is pruned.
    pub prune: RequestPrune,
    /// The most drafts that may follow a token of it, if that is less than the engine would give it. Its tokens are the same.
    pub num_speculative_tokens: Option<u32>,
    /// How its canvas is denoised: of a model that fills masks, and of no other. `max_tokens` is then the length of the canvas.
    pub diffusion: Option<Diffusion>,
}

/// Whether and how a request's prompt is pruned.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RequestPrune {
    /// As the engine's options say for all requests.
    #[default]
    AsEngine,
    /// Not at all.
    Never,
    /// In this way. The engine's model must be cut behind the layers it names
    /// ([`EngineOptions::prune`](super::EngineOptions::prune)).
    Choice(PruneChoice),
}

impl Request {
    /// One greedy sample of up to `max_tokens` tokens after `prompt`. The model's end-of-sequence tokens
    /// end it.
    pub fn new(request_id: impl Into<String>, prompt: Vec<u32>, max_tokens: u32) -> Self {
        Self {
            request_id: request_id.into(),
            prompt,
            sampling: SamplingParams::greedy(),
            max_tokens,
            stop: Vec::new(),
            include_stop_str_in_output: false,
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            priority: 0,
            n: 1,
            cache_salt: None,
            recorded: Vec::new(),
            follows_recorded: false,
            return_indexer_topk: false,
            prune: RequestPrune::default(),
            num_speculative_tokens: None,
            diffusion: None,
        }
    }
}

/// The output of one sample.
#[derive(Clone, Debug, Serialize)]
pub struct RequestOutput {
    /// The caller's name for the request. If there are several samples, a trace calls sample i `NAME/i`.
    pub request_id: String,
    /// The index of the sample, from 0.
    pub sample: u32,
    /// The prompt.
    pub prompt_token_ids: Vec<u32>,
    /// The tokens generated, including a stop token or the tokens of a stop string.
    pub token_ids: Vec<u32>,
    /// Their text, without stop tokens and strings.
    pub text: String,
    /// Why it ended; `None` while it runs.
    pub finish_reason: Option<FinishReason>,
    /// What was wrong with it, if it failed alone; its logits were not numbers, for example.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// For each generated token the most likely candidates, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<Vec<Vec<TokenLogprob>>>,
    /// For each generated token its own log probability, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_logprobs: Option<Vec<TokenLogprob>>,
    /// For each prompt token the most likely candidates (none for the first), if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<Vec<TokenLogprob>>>>,
    /// For each prompt token its own log probability (none for the first), if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_logprobs: Option<Vec<Option<TokenLogprob>>>,
    /// The number of prompt tokens whose KV was found in the prefix cache.
    pub num_cached_tokens: u32,
    /// How often its blocks were taken back.
    pub num_preemptions: u32,
    /// The number of drafts scored for it.
    pub num_drafts: u32,
    /// The number of drafts accepted.
    pub num_accepted: u32,
    /// For each position among the drafts, the number of drafts scored there.
    pub drafted_by_position: Vec<u32>,
    /// For each position, the number of drafts accepted there.
    pub accepted_by_position: Vec<u32>,
    /// Which keys the indexers chose for every token but the last, if asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub indexer_topk: Option<IndexerTopk>,
    /// What pruning left of the prompt (`null` for a request that is not pruned), if the engine prunes any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prune: Option<Option<PruneOutput>>,
    /// What became of its canvas, of a model that fills masks.
    #[serde(flatten)]
    pub diffusion: Option<DiffusionOutput>,
    /// The number of KV blocks that it held in the last step that ran it.
    #[serde(skip)]
    pub num_blocks: u32,
    /// The blocks of it that were found in the prefix cache when it was first admitted.
    #[serde(skip)]
    pub prefix_blocks: Vec<BlockId>,
}

/// What one sample got in a step.
#[derive(Clone, Debug)]
pub struct Emitted {
    /// The sample.
    pub id: RequestId,
    /// The tokens of this step that were kept.
    pub tokens: Vec<u32>,
    /// The text that can be shown now.
    pub text: String,
    /// Why it ended; `None` if it goes on.
    pub finish: Option<FinishReason>,
}

/// What a step of a session did.
#[derive(Clone, Debug, Default)]
pub struct SessionStep {
    /// The number of the step.
    pub step: u64,
    /// Whether nothing could run, because no request is waiting or running.
    pub idle: bool,
    /// The number of plan rows.
    pub rows: usize,
    /// The number of prompt tokens computed.
    pub prefill_tokens: usize,
    /// The number of rows that decoded, with or without drafts.
    pub decode_rows: usize,
    /// The number of requests whose blocks were taken back.
    pub preempted: usize,
    /// The number of admitted requests during the step.
    pub running: usize,
    /// The number of waiting requests during the step.
    pub waiting: usize,
    /// The KV pool during the step: it has taken what it planned, and requests that end with it have not
    /// given anything back yet.
    pub pool_during: PoolStats,
    /// The KV pool after the step.
    pub pool: PoolStats,
    /// Whether the step was replayed from a graph.
    pub replayed: bool,
    /// The microseconds of the executor's stages. Scheduling, and the work after the executor, are only in
    /// `elapsed`.
    pub stages: StageTimes,
    /// The microseconds, among those of the forward pass, in which tokens of prompts were scored and chosen.
    pub scoring_us: f64,
    /// The wall time, with scheduling and sampling.
    pub elapsed: Duration,
    /// What each of its samples got.
    pub emitted: Vec<Emitted>,
}
