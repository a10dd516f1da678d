//! How often a model finds what a text hides.

use super::corpus::windows;
use super::drill::Source;
use super::kernels::with_floats;
use super::loss::cross_entropy;
use super::rows::{Rows, Sizes, add_recall, recall};
use anyhow::Result;
use candle_core::Tensor;
use pagedraft_workloads::tasks::RecallGenerator;
use std::fmt;

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
    /// Statements in the text; one of them, or one of their chains, is asked for.
    pub needles: usize,
    /// Statements a chain.
    pub hops: usize,
    /// Samples.
    pub samples: usize,
    /// Whether keys and values are words that never were keys or values in training.
    pub new_words: bool,
    /// What keys the samples' draws.
    pub seed: u64,
}

/// Reads rows of `time` tokens, and gives the scores of the next token at some places: (inputs, time, places).
pub type Ask<'a> = &'a dyn Fn(&[u32], usize, Vec<usize>) -> Result<Tensor>;

impl fmt::Display for Quiz {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { length, needles, hops, samples, new_words, .. } = self;
        let words = if *new_words { "new" } else { "known" };
        write!(
            f,
            "length {length}, {needles} statements in chains of {hops}, {words} words, {samples} samples"
        )
    }
}

impl Quiz {
    /// The generator of the questions. The texts are tails of the training texts that nothing was trained on.
    pub fn generator(&self, source: &Source<'_>) -> Result<RecallGenerator> {
        let words = if self.new_words { &source.words.held_out } else { &source.words.trained };
        let (needles, hops) = (self.needles..=self.needles, self.hops..=self.hops);
        let sizes = Sizes { length: self.length, needles, questions: 1, hops };
        recall(source.tokenizer, &source.held_out, words, sizes, self.seed)
    }

    /// The share of the questions that are answered by the model's likeliest token.
    pub fn accuracy(&self, source: &Source<'_>, ask: Ask<'_>) -> Result<f64> {
        let generator = self.generator(source)?;
        let mut found = 0;
        for first in (0..self.samples).step_by(4) {
            let count = 4.min(self.samples - first);
            let mut rows = Rows { time: self.length, ..Rows::default() };
            add_recall(&mut rows, &generator, first as u64, count, source.specials.1, None);
            let (places, next): (Vec<usize>, Vec<u32>) = rows.answers.iter().copied().unzip();
            found +=
                right(&ask(&rows.inputs, rows.time, places)?, &next)?.iter().filter(|right| **right).count();
        }
        Ok(found as f64 / self.samples as f64)
    }
}

/// Cross entropy over consecutive windows of `tokens`, nats a token.
pub fn text_loss(tokens: &[u32], time: usize, ask: Ask<'_>) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for batch in windows(tokens, time, 4) {
        let logits = ask(&batch.inputs, batch.time, (0..batch.next.len()).collect())?;
        let rows = batch.next.len() as f64;
        sum += rows * f64::from(cross_entropy(&logits, &batch.next, None)?.text);
        count += rows;
    }
    Ok(sum / f64::max(count, 1.0))
}
