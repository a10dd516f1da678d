//! The texts, as tokens, and the batches drawn from them.

use super::bpe;
use super::noise::Noise;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// One batch: `inputs[i]` is followed by `next[i]` (or, in a batch with masks, stands for it); rows of `time` tokens.
pub struct Batch {
    /// What the model reads, row by row.
    pub inputs: Vec<u32>,
    /// What it should have predicted at each place.
    pub next: Vec<u32>,
    /// Tokens a row.
    pub time: usize,
    /// What each prediction counts for in the loss; each counts 1 if there are none.
    pub weights: Vec<f32>,
}

impl Batch {
    /// The batch in at most `count` parts of whole rows, of equal size if `count` divides the rows.
    pub fn shards(&self, count: usize) -> Vec<Self> {
        let rows = (self.inputs.len() / self.time).div_ceil(count.max(1)).max(1);
        let mut weights = self.weights.chunks(rows * self.time);
        let parts = self.inputs.chunks(rows * self.time).zip(self.next.chunks(rows * self.time));
        parts
            .map(|(inputs, next)| Self {
                inputs: inputs.to_vec(),
                next: next.to_vec(),
                time: self.time,
                weights: weights.next().unwrap_or_default().to_vec(),
            })
            .collect()
    }
}

/// Reads a text as UTF-8, with CRLF line ends made LF.
pub fn read(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file)
        .with_context(|| format!("{} can't be read: give the path of a plain text", file.display()))?;
    let text = String::from_utf8(bytes)
        .with_context(|| format!("{} isn't UTF-8: convert it first (iconv -t UTF-8)", file.display()))?;
    Ok(text.replace("\r\n", "\n"))
}

/// Texts to train on, and the tails of them that are kept for validation.
pub struct Corpus {
    /// Training tokens, texts one after another, each between the two specials.
    pub train: Vec<u32>,
    /// Validation tokens: a tail of each text.
    pub validation: Vec<u32>,
    bos: u32,
}

impl Corpus {
    /// Cuts each of `texts` at a line end so that about `held` of it (by bytes) is its tail: heads
    /// and tails.
    pub fn split(texts: &[String], held: f64) -> (Vec<&str>, Vec<&str>) {
        texts
            .iter()
            .map(|text| {
                let mut aim = ((text.len() as f64) * (1.0 - held)) as usize;
                while !text.is_char_boundary(aim) {
                    aim -= 1;
                }
                let cut = text[..aim].rfind('\n').map_or(aim, |i| i + 1);
                text.split_at(cut)
            })
            .unzip()
    }

    /// Tokenises texts already split by [`Corpus::split`]. `needed` is the longest row that will be
    /// drawn.
    pub fn new(
        tokenizer: &Tokenizer,
        heads: &[&str],
        tails: &[&str],
        files: &[PathBuf],
        needed: usize,
    ) -> Result<Self> {
        let bos = bpe::special(tokenizer, bpe::BOS)?;
        let eos = bpe::special(tokenizer, bpe::EOS)?;
        let join = |texts: &[&str]| -> Result<Vec<u32>> {
            let mut tokens = Vec::new();
            for text in texts {
                tokens.push(bos);
                tokens.extend(bpe::encode(tokenizer, text)?);
                tokens.push(eos);
            }
            Ok(tokens)
        };
        let (train, validation) = (join(heads)?, join(tails)?);
        for (part, tokens, least) in [("training", &train, 2 * needed + 2), ("validation", &validation, 2)] {
            ensure!(
                tokens.len() >= least,
                "{} too short: {} {part} tokens, {least} needed; give more --text or a shorter --seq-len",
                files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", "),
                tokens.len()
            );
        }
        Ok(Self { train, validation, bos })
    }

    /// Rows `first .. first + rows` of the endless sequence of rows of `time` tokens. Each epoch
    /// cuts the text into windows from another offset and goes through them in another order, so
    /// that every token is read about once an epoch. One row in eight starts with the `bos` token,
    /// as prompts may.
    pub fn batch(&self, seed: u64, first: u64, rows: usize, time: usize) -> Batch {
        let windows = ((self.train.len() - 1) / time - 1).max(1);
        let room = || Vec::with_capacity(rows * time);
        let mut batch = Batch { inputs: room(), next: room(), time, weights: Vec::new() };
        let mut order: Option<(u64, usize, Vec<usize>)> = None;
        for row in first..first + rows as u64 {
            let (epoch, place) = (row / windows as u64, (row % windows as u64) as usize);
            if order.as_ref().is_none_or(|(of, _, _)| *of != epoch) {
                let mut noise = Noise::new(seed, "epoch", epoch);
                let offset = noise.below(time);
                let mut shuffled: Vec<usize> = (0..windows).collect();
                for last in (1..windows).rev() {
                    shuffled.swap(last, noise.below(last + 1));
                }
                order = Some((epoch, offset, shuffled));
            }
            let Some((_, offset, shuffled)) = &order else { continue };
            let from = offset + shuffled[place] * time;
            let start = batch.inputs.len();
            batch.inputs.extend(&self.train[from..from + time]);
            batch.next.extend(&self.train[from + 1..from + time + 1]);
            if Noise::new(seed, "bos", row).below(8) == 0 {
                batch.inputs[start] = self.bos;
            }
        }
        batch
    }
}

/// Cuts `tokens` into consecutive rows of `time` predictions (the rest is left out), `rows` rows a
/// batch.
pub fn windows(tokens: &[u32], time: usize, rows: usize) -> Vec<Batch> {
    let time = time.min(tokens.len().saturating_sub(1)).max(1);
    let count = tokens.len().saturating_sub(1) / time;
    (0..count)
        .step_by(rows.max(1))
        .map(|first| {
            let (from, to) = (first * time, count.min(first + rows) * time);
            let (inputs, next) = (tokens[from..to].to_vec(), tokens[from + 1..to + 1].to_vec());
            Batch { inputs, next, time, weights: Vec::new() }
        })
        .collect()
}
