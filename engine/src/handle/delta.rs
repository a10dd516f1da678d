//! What a request gets in one step.

use pagedraft_spec_decode::sampling::{RowLogprobs, TokenLogprob};

use crate::session::RequestOutput;

/// What one sample of a request got in one step.
#[derive(Clone, Debug, Default)]
pub struct Delta {
    /// The index of the sample, from 0.
    pub sample: u32,
    /// The tokens of the step.
    pub token_ids: Vec<u32>,
    /// The text that can be shown now. It may lag behind the tokens: half a character, or what may be the beginning of a stop
    /// string, is held back.
    pub text: String,
    /// The log probabilities of the tokens, if they were asked for.
    pub logprobs: Vec<RowLogprobs>,
    /// What is known of the prompt. It comes with the first delta of a sample.
    pub prompt: Option<Box<PromptDelta>>,
    /// How the sample ended. It comes with the last delta of a sample.
    pub end: Option<End>,
}

/// What is known of a prompt when the first token behind it is there.
#[derive(Clone, Debug, Default)]
pub struct PromptDelta {
    /// The number of prompt tokens whose KV was found in the prefix cache.
    pub num_cached_tokens: u32,
    /// For each prompt token its own log probability (none for the first), if asked for.
    pub token_logprobs: Option<Vec<Option<TokenLogprob>>>,
    /// For each prompt token the most likely candidates (none for the first), if asked for.
    pub logprobs: Option<Vec<Option<Vec<TokenLogprob>>>>,
}

/// How a sample ended.
#[derive(Clone, Debug)]
pub enum End {
    /// It came to its end, or failed alone: then the output says why in `error`.
    Finished(Box<RequestOutput>),
    /// The step that computed it failed; the text says why. The engine goes on.
    StepFailed(String),
    /// It was aborted because its output was not read: the reader was too many steps behind.
    TooSlow,
    /// The engine's thread has ended.
    EngineStopped,
}
