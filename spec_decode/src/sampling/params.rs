//! How a request wants its tokens drawn.

use pagedraft_model::Choice;
use serde::Serialize;

use super::changes::LogitChanges;
use super::error::SamplingError;

/// The sampling parameters of one sample of a request. The defaults are vLLM's: temperature 1 and no filters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SamplingParams {
    /// The logits are divided by this. At 0 the choice is greedy.
    pub temperature: f32,
    /// Keeps this many of the most likely tokens, at least 1. `None` turns the filter off.
    pub top_k: Option<u32>,
    /// Keeps the fewest most likely tokens that together hold this share of the probability. 1 turns the filter off.
    pub top_p: f32,
    /// Keeps the tokens that are at least this share as likely as the most likely one. 0 turns the filter off.
    pub min_p: f32,
    /// The key of the request's noise.
    pub seed: u64,
    /// The index of this sample among the request's n samples, from 0.
    pub sample: u32,
    /// The number of most likely tokens whose log probabilities are reported with each generated token.
    pub logprobs: Option<u32>,
    /// The number of most likely tokens whose log probabilities are reported with each token of the prompt.
    pub prompt_logprobs: Option<u32>,
    /// What is changed in the logits before a token is chosen: biases, penalties, and no end before some length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<Box<LogitChanges>>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            seed: 0,
            sample: 0,
            logprobs: None,
            prompt_logprobs: None,
            changes: None,
        }
    }
}

impl SamplingParams {
    /// The parameters of greedy decoding.
    pub fn greedy() -> Self {
        SamplingParams { temperature: 0.0, ..SamplingParams::default() }
    }

    /// Whether the choice is the plain argmax.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether all filters are off, so that every token may be chosen.
    pub fn keeps_all(&self) -> bool {
        self.top_k.is_none() && self.top_p >= 1.0 && self.min_p <= 0.0
    }

    /// The choice of the token at `position`, as a device that makes it itself needs it.
    pub fn choice(&self, position: u32) -> Choice {
        Choice {
            temperature: self.temperature,
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p,
            min_p: self.min_p,
            seed: self.seed,
            sample: self.sample,
            position,
        }
    }

    /// Translates `top_k` from command lines and JSON, where -1 and 0 turn the filter off, as in vLLM.
    ///
    /// # Errors
    /// [`SamplingError::TopK`] below -1 or above `u32::MAX`.
    pub fn top_k_from(number: i64) -> Result<Option<u32>, SamplingError> {
        match number {
            -1 | 0 => Ok(None),
            _ => u32::try_from(number).map(Some).map_err(|_| SamplingError::TopK { found: number }),
        }
    }

    /// Checks every parameter.
    ///
    /// # Errors
    /// The error names the first parameter that is out of its range. `Some(0)` for `top_k` is refused, because `None`
    /// turns the filter off ([`SamplingParams::top_k_from`] translates).
    pub fn validate(&self) -> Result<(), SamplingError> {
        let found = self.temperature;
        if !(found.is_finite() && found >= 0.0) {
            return Err(SamplingError::Temperature { found });
        }
        let found = self.top_p;
        if !(found > 0.0 && found <= 1.0) {
            return Err(SamplingError::TopP { found });
        }
        let found = self.min_p;
        if !(0.0..=1.0).contains(&found) {
            return Err(SamplingError::MinP { found });
        }
        if self.top_k == Some(0) {
            return Err(SamplingError::TopK { found: 0 });
        }
        self.changes.as_ref().map_or(Ok(()), |changes| changes.validate())
    }
}
