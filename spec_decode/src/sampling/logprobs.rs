//! Computes log probabilities: what the model predicted, before any sampling parameter.

use serde::Serialize;

use super::error::SamplingError;
use super::filter::top;
use super::row::Row;
use super::series::{exp, ln};

/// This many exponentials are computed together.
const BLOCK: usize = 64;

/// A token and the natural logarithm of its probability.
///
/// In JSON the f32 has as many digits as are needed to tell it from every other f32.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct TokenLogprob {
    /// The token.
    pub token_id: u32,
    /// The natural logarithm of its softmax at temperature 1 over the whole vocabulary, at most 0.
    pub logprob: f32,
}

/// The log probabilities reported for one position.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RowLogprobs {
    /// The token that was chosen there, or that the prompt has there.
    pub chosen: TokenLogprob,
    /// The most likely tokens, the best first, and among equals the lower id.
    pub best: Vec<TokenLogprob>,
}

/// Computes the log probabilities of the `best` most likely tokens and of the `chosen` one, from the softmax at
/// temperature 1 over the whole vocabulary, before any filter. If there are fewer tokens than `best`, all are given;
/// tokens with a logit of -inf are never among them.
///
/// The exponentials are summed in f64 in the order of the ids. This takes a few ns for each token of the vocabulary.
///
/// # Errors
/// [`SamplingError::BadLogit`], [`SamplingError::NoToken`], or [`SamplingError::TokenOutOfRange`] for `chosen`.
pub fn logprobs(logits: &[f32], best: u32, chosen: u32) -> Result<RowLogprobs, SamplingError> {
    let row = Row::new(logits)?;
    let Some(&chosen_logit) = logits.get(chosen as usize) else {
        return Err(SamplingError::TokenOutOfRange { token: chosen, vocab: logits.len() });
    };
    let max = f64::from(row.max);
    let mut total = 0.0;
    for block in logits.chunks(BLOCK) {
        // The exponentials are computed first, because that loop vectorises. The sum stays in order.
        let mut powers = [0.0; BLOCK];
        for (power, &logit) in powers.iter_mut().zip(block) {
            *power = exp(f64::from(logit) - max);
        }
        total = powers.iter().take(block.len()).fold(total, |t, p| t + p);
    }
    let log_total = ln(total);
    let report = |logit: f32, token_id: u32| TokenLogprob {
        token_id,
        logprob: ((f64::from(logit) - max) - log_total) as f32,
    };
    let mut candidates = Vec::new();
    let count = (best as usize).min(logits.len());
    top(&mut candidates, logits, count, |_| true);
    candidates.sort_unstable_by(super::filter::best_first);
    Ok(RowLogprobs {
        chosen: report(chosen_logit, chosen),
        best: candidates.iter().map(|&(l, t)| report(l, t)).collect(),
    })
}
