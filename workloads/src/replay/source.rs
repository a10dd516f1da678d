//! From samples to requests: prompts, arrivals, and what is not run.

use std::sync::Arc;

use crate::arrivals::Arrivals;
use crate::dataset::{DatasetError, Expectation, Samples, SkipReason, Survey};
use crate::prompt::TextTokens;

/// What a source gives next.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// A request to send.
    Request(PlannedRequest),
    /// A record that is not run.
    Skipped(SkippedRequest),
}

/// A request, with its prompt made and its time.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedRequest {
    /// Its place in the workload, from 0, skipped records counted: its name.
    pub index: u64,
    /// The dataset's own name for it.
    pub source_id: Option<String>,
    /// The dataset's category for it.
    pub category: Option<String>,
    /// When it should be sent, in nanoseconds since the run began; `None`: as soon as there is room for it.
    pub arrival_ns: Option<u64>,
    /// Token ids.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most.
    pub max_tokens: u32,
    /// Whether end-of-sequence tokens end it.
    pub until_stop: bool,
    /// What a good answer is.
    pub expect: Option<Expectation>,
}

/// A record that is not run.
#[derive(Clone, Debug, PartialEq)]
pub struct SkippedRequest {
    /// Its place in the workload.
    pub index: u64,
    /// The dataset's own name for it.
    pub source_id: Option<String>,
    /// The dataset's category for it.
    pub category: Option<String>,
    /// When it would have been sent.
    pub arrival_ns: Option<u64>,
    /// Tokens of its prompt, where they were counted.
    pub prompt_tokens: Option<u32>,
    /// Why.
    pub reason: SkipReason,
}

/// What requests are made to be.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceOptions {
    /// When they are sent.
    pub arrivals: Arrivals,
    /// Prompts without text and gaps between arrivals are drawn from this.
    pub seed: u64,
    /// Factor on the lengths of traces that have no text; lengths stay at least 1.
    pub length_scale: f64,
    /// Longer prompts are skipped.
    pub max_prompt_tokens: Option<u32>,
    /// Longer outputs are cut to this; also the length of outputs that end by themselves.
    pub max_new_tokens: Option<u32>,
    /// The model's greatest length: what can't fit is skipped.
    pub max_model_len: u32,
    /// Tokens that the KV pool holds: what can't fit is skipped.
    pub pool_tokens: u64,
    /// The budget of a step, where a prompt must fit it (chunked prefill off).
    pub step_tokens: Option<u32>,
    /// Token ids that prompts without text are made of.
    pub vocabulary: std::ops::Range<u32>,
}

/// Samples made into requests.
pub struct Source {}

impl Source {
    /// Requests from `samples`, of which `survey` tells how many there are.
    ///
    /// # Errors
    ///
    /// Options that do not go with the dataset: recorded arrivals without times, text without a tokenizer, a scale for
    /// lengths of text.
    pub fn new(
        _samples: Samples,
        _survey: &Survey,
        _options: SourceOptions,
        _tokenizer: Option<Arc<dyn TextTokens>>,
    ) -> Result<Self, DatasetError> {
        unimplemented!()
    }
}

impl Iterator for Source {
    type Item = Result<Incoming, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        unimplemented!()
    }
}
