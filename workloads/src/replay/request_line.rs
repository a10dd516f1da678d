use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::dataset::SkipReason;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It has its whole output.
    Finished,
    /// It was not run; `skip_reason` says why.
    Skipped,
    /// The engine refused or failed it; `error` says why.
    Failed,
}

/// A line of `requests.jsonl`, written when the request ended. Times are seconds since the run began, or milliseconds
/// where the name says so; latencies count from the intended arrival.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RequestLine {
    /// Its place in the workload, from 0, skipped records counted.
    pub request_id: String,
    /// The dataset's own name for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_id: Option<String>,
    /// The dataset's category for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub category: Option<String>,
    /// What became of it.
    pub status: Status,
    /// Why it was not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_reason: Option<SkipReason>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it should have been sent.
    pub intended_arrival_s: Option<f64>,
    /// When the engine was given it; a live one takes requests between two steps.
    pub sent_s: Option<f64>,
    /// When its first token was there.
    pub first_token_s: Option<f64>,
    /// When its last token was.
    pub finish_s: Option<f64>,
    /// Tokens of its prompt; `null` where it was skipped before they were counted.
    pub prompt_tokens: Option<u32>,
    /// Tokens generated.
    pub output_tokens: u32,
    /// Prompt tokens whose KV was there already.
    pub cached_tokens: u32,
    /// From the intended arrival to the first token.
    pub ttft_ms: Option<f64>,
    /// From the first token to the last, a token behind the first; `null` for a single token.
    pub tpot_ms: Option<f64>,
    /// From the intended arrival to the last token.
    pub e2el_ms: Option<f64>,
    /// From the intended arrival to the beginning of the first step that ran it.
    pub queue_ms: Option<f64>,
    /// For each place in a row of drafts, how many were scored there.
    pub drafted_by_position: Vec<u32>,
    /// The same, accepted.
    pub accepted_by_position: Vec<u32>,
    /// Why it ended: `stop`, `length` or `abort`.
    pub finish_reason: Option<String>,
    /// How often its blocks were taken back.
    pub num_preemptions: u32,
    /// KV blocks it held at its end.
    pub blocks_held: u32,
    /// The engine that ran it.
    #[serde(default)]
    pub replica: u32,
    /// SHA-256 of its token ids (little endian), the first 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_hash: Option<String>,
    /// Its score, 0 to 1, where the dataset has an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Its token ids, with `--save-outputs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// Its text, with `--save-outputs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The run was stopped, probably while this request was in flight, and resumed: it was sent again. The run's clock goes on
    /// at the end of the last request before the stop. With an arrival time it keeps that as its intended arrival, from which
    /// its latencies count as ever; in a closed loop it should have been sent when the run was resumed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub resumed: bool,
}
