//! Recall: statements between the lines of a text, and several questions about them behind it.
//!
//! RULER's needle tasks ask one question a prompt, in words that a model of a few million parameters can't follow. Here
//! a statement has eight tokens or so, and each question repeats the beginning of a statement, so that a model learns
//! from every question of a row. `The word for KEY is VALUE.` is the statement, `The word for KEY is` the question.

use super::draws::{Draws, Part};
use crate::dataset::DatasetError;
use crate::prompt::TextTokens;
use rand::Rng;
use rand::seq::SliceRandom;
use std::ops::{Range, RangeInclusive};

/// The number that keys this task's draws; RULER's tasks have those below 13.
const TASK: u64 = 100;

/// What a recall sample holds.
#[derive(Clone, Debug)]
pub struct RecallOptions {
    /// The most tokens of a sample, its answers included.
    pub length: usize,
    /// The least and the greatest number of statements. Each number is equally likely.
    pub needles: RangeInclusive<usize>,
    /// The most questions a sample. Each asks for another statement.
    pub questions: usize,
    /// What statements are about.
    pub keys: Vec<String>,
    /// What statements say of it. No value of a sample is one of its keys.
    pub values: Vec<String>,
}

/// A sample: text, statements and questions as one row of tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecallSample {
    /// The row. Each question is followed by its answer and by a full stop.
    pub tokens: Vec<u32>,
    /// Where the answers lie in the row, in its order. What comes before an answer is the prompt that asks for it.
    pub answers: Vec<Range<usize>>,
}

/// Makes recall samples, each independently of the others.
#[derive(Debug)]
pub struct RecallGenerator {
    options: RecallOptions,
    seed: u64,
    /// The lines of the text, each with the line end before it.
    lines: Vec<Vec<u32>>,
    keys: Vec<Vec<u32>>,
    values: Vec<Vec<u32>>,
    lead: Vec<u32>,
    link: Vec<u32>,
    stop: Vec<u32>,
}

impl RecallGenerator {
    /// A generator that hides statements between the lines of `text`. Blank lines and indents are left out, because the
    /// tokens of a line then are the same wherever it stands.
    ///
    /// # Errors
    ///
    /// The text has no line; there are fewer keys or values than statements need; statements and questions alone are
    /// longer than the length; or the tokenizer fails.
    pub fn new(
        options: RecallOptions,
        seed: u64,
        text: &str,
        tokenizer: &dyn TextTokens,
    ) -> Result<Self, DatasetError> {
        let error = |what: String| DatasetError::Options(what);
        let encode = |text: &str| {
            tokenizer
                .encode(text)
                .map_err(|what| error(format!("the tokenizer can't encode {text:?}: {what}")))
        };
        let most = *options.needles.end();
        if most == 0 || options.questions == 0 || options.needles.is_empty() {
            return Err(error("a recall sample needs a statement and a question".to_owned()));
        }
        if options.keys.len() < 2 * most || options.values.len() < 2 * most {
            return Err(error(format!(
                "{most} statements need twice as many keys and twice as many values; there are {} and {}",
                options.keys.len(),
                options.values.len()
            )));
        }
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let lines = lines.map(|line| encode(&format!("\n{line}"))).collect::<Result<Vec<_>, _>>()?;
        if lines.is_empty() {
            return Err(error("the text to hide statements in has no line".to_owned()));
        }
        let words = |words: &[String]| {
            words.iter().map(|word| encode(&format!(" {word}"))).collect::<Result<Vec<_>, _>>()
        };
        let (keys, values) = (words(&options.keys)?, words(&options.values)?);
        let (lead, link, stop) = (encode("\nThe word for")?, encode(" is")?, encode(".")?);
        let longest = |words: &[Vec<u32>]| words.iter().map(Vec::len).max().unwrap_or(0);
        let statement = lead.len() + longest(&keys) + link.len() + longest(&values) + stop.len();
        let least = statement * (most + most.min(options.questions));
        if least > options.length {
            return Err(error(format!(
                "{most} statements and their questions take up to {least} tokens, more than the length {}",
                options.length
            )));
        }
        Ok(Self { options, seed, lines, keys, values, lead, link, stop })
    }

    /// The sample with an index. It is a function of the options, the text, the tokenizer, the seed and the index.
    #[must_use]
    pub fn sample(&self, index: u64) -> RecallSample {
        let draws = Draws { task: TASK, seed: self.seed, index };
        let mut rng = draws.of(Part::Needles);
        let count = rng.random_range(self.options.needles.clone());
        let mut taken: Vec<&str> = Vec::new();
        let mut pairs: Vec<(usize, usize)> = Vec::with_capacity(count);
        for _ in 0..count {
            let key = draw(&mut rng, &self.options.keys, &mut taken);
            pairs.push((key, draw(&mut rng, &self.options.values, &mut taken)));
        }
        let mut asked: Vec<usize> = (0..count).collect();
        asked.shuffle(&mut draws.of(Part::Queries));
        asked.truncate(self.options.questions);

        let length = |&(key, value): &(usize, usize)| {
            let words = self.keys[key].len() + self.values[value].len();
            self.lead.len() + words + self.link.len() + self.stop.len()
        };
        let fixed =
            pairs.iter().map(length).sum::<usize>() + asked.iter().map(|&i| length(&pairs[i])).sum::<usize>();
        let mut room = self.options.length - fixed;
        let first = draws.of(Part::Haystack).random_range(0..self.lines.len());
        let text = self.lines.iter().cycle().skip(first).take_while(|line| {
            let fits = line.len() <= room;
            room = room.saturating_sub(line.len());
            fits
        });
        let text: Vec<&Vec<u32>> = text.collect();
        let mut rng = draws.of(Part::Places);
        let mut places: Vec<usize> = (0..count).map(|_| rng.random_range(0..=text.len())).collect();
        places.sort_unstable();

        let mut sample =
            RecallSample { tokens: Vec::with_capacity(self.options.length), answers: Vec::new() };
        let mut done = 0;
        for (&place, pair) in places.iter().zip(&pairs) {
            text[done..place].iter().for_each(|line| sample.tokens.extend(*line));
            done = place;
            self.state(&mut sample.tokens, pair);
        }
        text[done..].iter().for_each(|line| sample.tokens.extend(*line));
        for i in asked {
            let answer = self.state(&mut sample.tokens, &pairs[i]);
            sample.answers.push(answer);
        }
        sample
    }

    /// Appends a statement, and returns where its value lies.
    fn state(&self, tokens: &mut Vec<u32>, &(key, value): &(usize, usize)) -> Range<usize> {
        for part in [&self.lead, &self.keys[key], &self.link] {
            tokens.extend(part);
        }
        let start = tokens.len();
        tokens.extend(&self.values[value]);
        let end = tokens.len();
        tokens.extend(&self.stop);
        start..end
    }
}

/// Draws a word that is not taken yet, and takes it.
fn draw<'a>(rng: &mut impl Rng, words: &'a [String], taken: &mut Vec<&'a str>) -> usize {
    loop {
        let at = rng.random_range(0..words.len());
        // The generator has seen to it that words are left.
        if !taken.contains(&words[at].as_str()) {
            taken.push(&words[at]);
            return at;
        }
    }
}
