//! The answers to completions and chat completions, whole and in pieces.

use std::borrow::Cow;
use std::collections::BTreeMap;

use pagedraft_engine::session::IndexerTopk;
use serde::Serialize;

use super::logprobs::{Candidate, Logprobs};

/// The object around the choices.
#[derive(Debug, Serialize)]
pub struct Answer<'a> {
    pub id: &'a str,
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: u64,
    pub model: &'a str,
    pub choices: Vec<Choice<'a>>,
    /// In a stream that ends with the usage, the chunks before have `null` here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
}

/// What one sample said, or what it has said since the chunk before.
#[derive(Debug, Serialize)]
pub struct Choice<'a> {
    pub index: u32,
    #[serde(flatten)]
    pub said: Said<'a>,
    pub logprobs: Option<Logprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(flatten)]
    pub more: More<'a>,
}

/// The field of the text, which has another name and form in each kind of answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Said<'a> {
    /// Of a completion.
    Text(Cow<'a, str>),
    /// Of a chat.
    Message(Message<'a>),
    /// Of a chat, in pieces.
    Delta(Message<'a>),
}

/// A message of the assistant, or a piece of it.
#[derive(Debug, Serialize)]
pub struct Message<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    pub content: Cow<'a, str>,
}

/// What a choice has beyond OpenAI's fields, where it was asked for.
#[derive(Debug, Default, Serialize)]
pub struct More<'a> {
    /// The stop string or the id of the token that ended it; `null` for the model's own end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<&'a [u32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Vec<Option<BTreeMap<u32, Candidate>>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub indexer_topk: Option<&'a IndexerTopk>,
}

/// What ended a sample before its length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum StopReason<'a> {
    Text(&'a str),
    Token(u32),
}

/// How many tokens a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
    pub prompt_tokens_details: PromptDetails,
}

/// What of the prompts need not be computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PromptDetails {
    pub cached_tokens: u64,
}
