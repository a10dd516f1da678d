//! What a replay learns of a request that a server ran: the end of its stream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the output tokens of a stream were counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TokenCount {
    /// By the server, in each chunk.
    ContinuousUsage,
    /// By the server, at the end. Until then each chunk with text counted as one token.
    Usage,
    /// Each chunk with text as one token, because the server did not tell. Prompt tokens are then those of the tokenizer of
    /// `--model`.
    Chunks,
}

/// The number of tokens that a server says it has read and generated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the output.
    pub output_tokens: u32,
    /// Tokens of the prompt that were found in the prefix cache, if the server tells.
    pub cached_tokens: Option<u32>,
}

/// The end of a stream that gave all that the server had to give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEnd {
    /// When it ended, in nanoseconds since the run began.
    pub at_ns: u64,
    /// Why, in the server's words.
    pub finish_reason: Option<String>,
    /// The text of all chunks.
    pub text: String,
    /// The ids of all output tokens, if the server tells them.
    pub token_ids: Option<Vec<u32>>,
    /// The server's last count.
    pub usage: Option<Usage>,
    /// How output tokens were counted.
    pub counted_by: TokenCount,
}

/// Why a request got no whole answer from a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamFailure {
    /// When that was known, in nanoseconds since the run began.
    pub at_ns: u64,
    /// The kind, as [`Summary::errors`](crate::measures::Summary::errors) counts them.
    pub kind: String,
    /// What happened.
    pub error: String,
}
