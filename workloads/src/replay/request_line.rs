use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::TokenCount;
use crate::dataset::SkipReason;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It gave its whole output.
    Finished,
    /// It was not run; `skip_reason` says why.
    Skipped,
    /// The engine refused or failed it; `error` says why.
    Failed,
}

/// A line of `requests.jsonl`, written when the request ended. Times are in seconds since the run began, or
/// in milliseconds if the name says so. Latencies count from the intended arrival.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RequestLine {
    /// Its index in the workload, counted from 0 with skipped records.
    pub request_id: String,
    /// The dataset's own name for it, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
    /// The dataset's category for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// How it ended.
    pub status: Status,
    /// Why it was not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_reason: Option<SkipReason>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The kind of failure, if a server failed it, as [`Summary::errors`](crate::measures::Summary::errors) counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_kind: Option<String>,
    /// When it should have been sent.
    pub intended_arrival_s: Option<f64>,
    /// When the engine was given it. A live engine takes requests between two steps.
    pub sent_s: Option<f64>,
    /// When its first token was there.
    pub first_token_s: Option<f64>,
    /// When its last token was there.
    pub finish_s: Option<f64>,
    /// The number of tokens in its prompt; `null` if it was skipped before they were counted. If a server ran it: by the
    /// server's count, or by that of the tokenizer of `--model` if the server did not tell.
    pub prompt_tokens: Option<u32>,
    /// The number of tokens generated.
    pub output_tokens: u32,
    /// The number of prompt tokens whose KV was found in the prefix cache; `null` if a server ran it that does not tell.
    pub cached_tokens: Option<u32>,
    /// The time from the intended arrival to the first token.
    pub ttft_ms: Option<f64>,
    /// The time from the first token to the last, per token after the first; `null` for a single token.
    pub tpot_ms: Option<f64>,
    /// The time from the intended arrival to the last token.
    pub e2el_ms: Option<f64>,
    /// The time from the intended arrival to the beginning of the first step that ran it; `null` if a server ran it.
    pub queue_ms: Option<f64>,
    /// For each position among the drafts, the number of drafts scored there.
    pub drafted_by_position: Vec<u32>,
    /// For each position, the number of drafts accepted there.
    pub accepted_by_position: Vec<u32>,
    /// Why it ended: `stop`, `length` or `abort`.
    pub finish_reason: Option<String>,
    /// How often its blocks were taken back.
    pub num_preemptions: u32,
    /// The number of KV blocks that it held at its end.
    pub blocks_held: u32,
    /// The engine that ran it.
    #[serde(default)]
    pub replica: u32,
    /// The first 16 hexadecimal digits of the SHA-256 of its token ids (in little-endian bytes).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_hash: Option<String>,
    /// Its score, 0 to 1, if the dataset has an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Its token ids, if `--save-outputs` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// Its text, if `--save-outputs` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Whether it was sent again because the run was stopped, probably while it was in flight, and resumed.
    /// The run's clock goes on from the end of the last request before the stop. If the request has an
    /// arrival time, that stays its intended arrival, from which its latencies count as always. In a closed
    /// loop its intended arrival is when the run was resumed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumed: bool,
    /// How the output tokens were counted, if a server ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_by: Option<TokenCount>,
    /// How often it was sent to a server again because the server failed it (`--endpoint-retries`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: u32,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}
