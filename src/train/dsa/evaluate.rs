//! How often a model finds what a text hides.

use super::model::{Attention, Sparse};
use super::rows::{Rows, add_recall, recall};
use super::training::Source;
use crate::train::corpus::windows;
use crate::train::kernels::with_floats;
use crate::train::loss::cross_entropy;
use anyhow::Result;
use candle_core::Tensor;

/// Which of the rows of `logits` give `next` the greatest score (the lowest token among equals).
pub fn right(logits: &Tensor, next: &[u32]) -> Result<Vec<bool>> {
    let (_, vocab) = logits.dims2()?;
    Ok(with_floats(logits, |logits| {
        let rows = logits.chunks_exact(vocab).zip(next);
        let first = |row: &[f32]| {
            row.iter()
                .enumerate()
                .fold(0, |best, (token, score)| if *score > row[best] { token } else { best })
        };
        rows.map(|(row, &token)| first(row) == token as usize).collect()
    })?)
}

/// A set of questions to answer.
#[derive(Debug, Clone)]
pub struct Quiz {
    /// Tokens of prompt and answer.
    pub length: usize,
    /// Statements in the text; one of them is asked for.
    pub needles: usize,
    /// Samples.
    pub samples: usize,
    /// Whether keys and values are words that never were keys or values in training.
    pub new_words: bool,
    /// What keys the samples' draws.
    pub seed: u64,
}

/// The share of the questions that are answered by the model's likeliest token. The texts are tails of the training texts
/// that nothing was trained on.
pub fn accuracy(model: &Sparse, source: &Source<'_>, quiz: &Quiz, attention: Attention) -> Result<f64> {
    let words = if quiz.new_words { &source.words.held_out } else { &source.words.trained };
    let shape = (quiz.length, quiz.needles..=quiz.needles, 1);
    let generator = recall(source.tokenizer, &source.held_out, words, shape, quiz.seed)?;
    let mut found = 0;
    for first in (0..quiz.samples).step_by(4) {
        let count = 4.min(quiz.samples - first);
        let mut rows = Rows { time: quiz.length, ..Rows::default() };
        add_recall(&mut rows, &generator, first as u64, count, source.specials.1);
        let pass = model.forward(&rows.inputs, rows.time, attention, &[], None)?;
        let (places, next): (Vec<usize>, Vec<u32>) = rows.answers.iter().copied().unzip();
        let logits = model.logits(&pass.hidden.detach(), places)?;
        found += right(&logits, &next)?.iter().filter(|right| **right).count();
    }
    Ok(found as f64 / quiz.samples as f64)
}

/// Cross entropy over consecutive windows of `tokens`, nats a token.
pub fn text_loss(model: &Sparse, tokens: &[u32], time: usize, attention: Attention) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for batch in windows(tokens, time, 4) {
        let pass = model.forward(&batch.inputs, batch.time, attention, &[], None)?;
        let logits = model.logits(&pass.hidden.detach(), (0..batch.next.len()).collect())?;
        let rows = batch.next.len() as f64;
        sum += rows * f64::from(cross_entropy(&logits, &batch.next, None)?.text);
        count += rows;
    }
    Ok(sum / f64::max(count, 1.0))
}
