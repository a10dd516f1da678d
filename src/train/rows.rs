//! What is trained on: rows of text, and rows with questions.

use super::bpe;
use super::corpus::Corpus;
use super::noise::scramble;
use super::renaming::Renaming;
use anyhow::{Result, anyhow};
use pagedraft_workloads::prompt::TextTokens;
use pagedraft_workloads::tasks::{RecallGenerator, RecallOptions};
use std::ops::RangeInclusive;
use tokenizers::Tokenizer;

/// Rows of tokens, and which predictions count.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// What the model reads, row by row.
    pub inputs: Vec<u32>,
    /// Tokens a row.
    pub time: usize,
    /// (index of the input, token that follows) of text.
    pub text: Vec<(usize, u32)>,
    /// The same of answers.
    pub answers: Vec<(usize, u32)>,
}

impl Rows {
    /// Rows `from..to` as rows of their own.
    fn part(&self, from: usize, to: usize) -> Self {
        let range = from * self.time..to * self.time;
        let cut = |wanted: &[(usize, u32)]| {
            let inside = wanted.iter().filter(|(at, _)| range.contains(at));
            inside.map(|&(at, token)| (at - range.start, token)).collect()
        };
        Self {
            inputs: self.inputs[range.clone()].to_vec(),
            time: self.time,
            text: cut(&self.text),
            answers: cut(&self.answers),
        }
    }

    /// The rows in at most `count` parts, every `count`-th row in the same one, so that each has its share of both kinds.
    pub fn shards(&self, count: usize) -> Vec<Self> {
        let rows = self.inputs.len() / self.time;
        let mut parts = vec![Self { time: self.time, ..Self::default() }; count.min(rows)];
        for row in 0..rows {
            let Self { inputs, text, answers, .. } = self.part(row, row + 1);
            let part = &mut parts[row % count];
            let start = part.inputs.len();
            part.inputs.extend(inputs);
            part.text.extend(text.iter().map(|&(at, token)| (start + at, token)));
            part.answers.extend(answers.iter().map(|&(at, token)| (start + at, token)));
        }
        parts
    }
}

/// The trainer's tokenizer for the generator.
struct Tokens<'a>(&'a Tokenizer);

impl TextTokens for Tokens<'_> {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        bpe::encode(self.0, text).map_err(|e| format!("{e:#}"))
    }
}

/// Words of one token each, to be keys and values.
#[derive(Debug, Clone)]
pub struct Words {
    /// Those of training.
    pub trained: Vec<String>,
    /// Those that are neither key nor value in training (the texts have them as they have any word).
    pub held_out: Vec<String>,
}

impl Words {
    /// Of the tokens that are three letters or more behind a space: one in six of the lower-case ones of four letters or
    /// more is held out, and the others are trained.
    pub fn of(tokenizer: &Tokenizer) -> Result<Self> {
        let mut found: Vec<(u32, String)> = Vec::new();
        for (token, id) in tokenizer.get_vocab(false) {
            let Some(word) = token.strip_prefix('Ġ') else { continue };
            if word.len() >= 3 && word.bytes().all(|b| b.is_ascii_alphabetic()) {
                found.push((id, word.to_owned()));
            }
        }
        found.sort_unstable();
        let (held_out, trained): (Vec<_>, Vec<_>) = found.into_iter().partition(|(id, word)| {
            let plain = word.len() >= 4 && word.bytes().all(|b| b.is_ascii_lowercase());
            plain && scramble(u64::from(*id)).is_multiple_of(6)
        });
        let words = |found: Vec<(u32, String)>| found.into_iter().map(|(_, word)| word).collect();
        Ok(Self { trained: words(trained), held_out: words(held_out) })
    }
}

/// The size of a recall sample; see [`RecallOptions`].
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "documented in RecallOptions")]
pub struct Sizes {
    pub length: usize,
    pub needles: RangeInclusive<usize>,
    pub questions: usize,
    pub hops: RangeInclusive<usize>,
}

/// A generator of recall samples over `text`.
pub fn recall(
    tokenizer: &Tokenizer,
    text: &str,
    words: &[String],
    sizes: Sizes,
    seed: u64,
) -> Result<RecallGenerator> {
    let Sizes { length, needles, questions, hops } = sizes;
    let (keys, values) = (words.to_vec(), words.to_vec());
    let options = RecallOptions { length, needles, questions, hops, keys, values };
    RecallGenerator::new(options, seed, text, &Tokens(tokenizer)).map_err(|e| anyhow!("{e}"))
}

/// Fills rows `first .. first + count` of an endless sequence of recall rows into `rows`; what a sample lacks of a row is
/// filled with `pad`, behind it. `renaming` puts other tokens in the place of words.
pub fn add_recall(
    rows: &mut Rows,
    generator: &RecallGenerator,
    first: u64,
    count: usize,
    pad: u32,
    renaming: Option<&Renaming>,
) {
    for index in first..first + count as u64 {
        let mut sample = generator.sample(index);
        if let Some(renaming) = renaming {
            renaming.apply(index, &mut sample.tokens);
        }
        let start = rows.inputs.len();
        let kept = sample.tokens.len().min(rows.time);
        rows.inputs.extend(&sample.tokens[..kept]);
        rows.inputs.resize(start + rows.time, pad);
        for place in sample.answers.into_iter().flatten() {
            if place <= rows.time {
                rows.answers.push((start + place - 1, sample.tokens[place]));
            }
        }
    }
}

/// Fills `count` rows of text from row `first` on.
pub fn add_text(rows: &mut Rows, corpus: &Corpus, seed: u64, first: u64, count: usize) {
    let batch = corpus.batch(seed, first, count, rows.time);
    let start = rows.inputs.len();
    rows.text.extend((start..).zip(batch.next.iter().copied()));
    rows.inputs.extend(batch.inputs);
}
