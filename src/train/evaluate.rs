//! What a model is worth: its loss on a text, how often it agrees with another, and what it writes.

use super::bpe;
use super::corpus::{Batch, windows};
use super::kernels::{exp, with_floats};
use super::llama::Llama;
use super::loss::{cross_entropy, log_sum_exp};
use super::noise::Noise;
use anyhow::{Result, ensure};
use candle_core::Tensor;
use rayon::prelude::*;
use tokenizers::Tokenizer;

/// Figures over the predictions of a text, each a mean.
#[derive(Debug, Clone, Copy, Default)]
pub struct Figures {
    /// Predictions made.
    pub predictions: usize,
    /// Cross entropy, nats a token.
    pub loss: f64,
    /// How often the likeliest token was the one that came.
    pub right: f64,
    /// How often the other model's likeliest token was the same (0 without another).
    pub agreement: f64,
    /// How likely a token sampled from one model is to be accepted under the other by rejection
    /// sampling: the sum over tokens of the lesser probability (0 without another).
    pub overlap: f64,
}

/// Rows of the teacher-forced evaluation read at once.
const ROWS: usize = 8;

fn likeliest(row: &[f32]) -> usize {
    let mut best = 0;
    for (token, score) in row.iter().enumerate() {
        if *score > row[best] {
            best = token;
        }
    }
    best
}

/// Teacher-forced figures of `model` over consecutive windows of `time` tokens: the first
/// prediction of a window has one token of context, the last `time`.
pub fn figures(model: &Llama, other: Option<&Llama>, tokens: &[u32], time: usize) -> Result<Figures> {
    let mut total = Figures::default();
    for Batch { inputs, next, time, .. } in windows(tokens, time, ROWS) {
        let logits = detached(model, &inputs, time)?;
        let rows = next.len() as f64;
        total.predictions += next.len();
        total.loss += rows * f64::from(cross_entropy(&logits, &next, None)?.text);
        let other = other.map(|other| detached(other, &inputs, time)).transpose()?;
        let vocab = model.config.vocab_size;
        let (right, same, overlap) = with_floats(&logits, |mine| {
            let compare = |theirs: Option<&[f32]>| {
                let rows = mine.par_chunks(vocab).zip(&next).enumerate();
                let scores: Vec<(f64, f64, f64)> = rows
                    .map(|(index, (mine, next))| {
                        let pick = likeliest(mine);
                        let right = f64::from(u8::from(pick == *next as usize));
                        let Some(theirs) = theirs else { return (right, 0.0, 0.0) };
                        let theirs = &theirs[index * vocab..][..vocab];
                        let same = f64::from(u8::from(pick == likeliest(theirs)));
                        let (m, t) = (log_sum_exp(mine).1, log_sum_exp(theirs).1);
                        let shared = mine.iter().zip(theirs).map(|(a, b)| exp((a - m).min(b - t)));
                        (right, same, f64::from(shared.sum::<f32>()))
                    })
                    .collect();
                let sum = |pick: fn(&(f64, f64, f64)) -> f64| scores.iter().map(pick).sum::<f64>();
                (sum(|s| s.0), sum(|s| s.1), sum(|s| s.2))
            };
            match &other {
                None => Ok(compare(None)),
                Some(other) => with_floats(other, |theirs| compare(Some(theirs))),
            }
        })??;
        total.right += right;
        total.agreement += same;
        total.overlap += overlap;
    }
    ensure!(total.predictions > 0, "the text to evaluate on has no two tokens");
    let count = total.predictions as f64;
    for figure in [&mut total.loss, &mut total.right, &mut total.agreement, &mut total.overlap] {
        *figure /= count;
    }
    Ok(total)
}

/// Logits without what a backward pass would need.
pub fn detached(model: &Llama, inputs: &[u32], time: usize) -> Result<Tensor> {
    Ok(model.forward(inputs, time, None)?.detach())
}

/// Continues `prompt` by `count` tokens: sampled at `temperature`, the likeliest at 0. Reads at most
/// `context` tokens back, and has no cache: meant for a look at a model, not for use.
pub fn sample(
    model: &Llama,
    tokenizer: &Tokenizer,
    prompt: &str,
    (count, context): (usize, usize),
    temperature: f32,
    seed: u64,
) -> Result<String> {
    let mut tokens = vec![bpe::special(tokenizer, bpe::BOS)?];
    tokens.extend(bpe::encode(tokenizer, prompt)?);
    let mut noise = Noise::new(seed, "sample", 0);
    for _ in 0..count {
        let seen = &tokens[tokens.len().saturating_sub(context)..];
        let logits = detached(model, seen, seen.len())?.get(seen.len() - 1)?.to_vec1::<f32>()?;
        let token = if temperature > 0.0 {
            // Gumbel's trick: the argmax of scores with this noise is a sample of their softmax.
            let noisy: Vec<f32> =
                logits.iter().map(|x| x / temperature - (-noise.uniform().max(1e-12).ln()).ln()).collect();
            likeliest(&noisy)
        } else {
            likeliest(&logits)
        };
        tokens.push(token as u32);
    }
    bpe::decode(tokenizer, &tokens)
}
