//! Recall: statements between the lines of a text, and several questions about them behind it.
//!
//! RULER's needle tasks ask one question a prompt, in words that a model of a few million parameters can't follow. Here
//! a statement has eight tokens or so, and each question repeats the beginning of a statement, so that a model learns
//! from every question of a row. `The word for KEY is VALUE.` is the statement, `The word for KEY is` the question.
//!
//! Statements may make chains, which is the least form of RULER's variable tracking: `The word for stone is red.`, then
//! `The word for oak is stone.` The question `The word for oak was` asks for the word at the chain's beginning, `red`.

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
    /// The most questions a sample. Each asks for another statement, or for another chain.
    pub questions: usize,
    /// The least and the greatest number of statements a chain; all chains of a sample have as many, and each number is
    /// equally likely. A chain of one is a statement by itself.
    pub hops: RangeInclusive<usize>,
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
    /// Behind the key of a statement, and of a question about it.
    link: Vec<u32>,
    /// Behind the key of a question about a chain.
    origin: Vec<u32>,
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
        let longest_chain = *options.hops.end();
        let empty = options.needles.is_empty() || options.hops.is_empty() || *options.hops.start() == 0;
        if *options.needles.end() == 0 || options.questions == 0 || empty {
            return Err(error("a recall sample needs a statement and a question".to_owned()));
        }
        let most = longest_chain.max(*options.needles.end());
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
        let origin = encode(" was")?;
        let longest = |words: &[Vec<u32>]| words.iter().map(Vec::len).max().unwrap_or(0);
        let statement =
            lead.len() + longest(&keys) + link.len().max(origin.len()) + longest(&values) + stop.len();
        let least = statement * (most + most.min(options.questions));
        if least > options.length {
            return Err(error(format!(
                "{most} statements and their questions take up to {least} tokens, more than the length {}",
                options.length
            )));
        }
        Ok(Self { options, seed, lines, keys, values, lead, link, origin, stop })
    }

    /// The sample with an index. It is a function of the options, the text, the tokenizer, the seed and the index.
    #[must_use]
    pub fn sample(&self, index: u64) -> RecallSample {
        let draws = Draws { task: TASK, seed: self.seed, index };
        let mut rng = draws.of(Part::Needles);
        let count = rng.random_range(self.options.needles.clone());
        let hops = match self.options.hops.clone() {
            same if same.start() == same.end() => *same.start(),
            range => rng.random_range(range),
        };
        let chains = (count / hops).max(1);
        let mut taken: Vec<&str> = Vec::new();
        // A chain's first statement, the statements that lead to it, and so on for each chain.
        let mut said: Vec<Statement<'_>> = Vec::with_capacity(chains * hops);
        let mut asked: Vec<Statement<'_>> = Vec::with_capacity(chains);
        for _ in 0..chains {
            let key = &self.keys[draw(&mut rng, &self.options.keys, &mut taken)][..];
            let value = &self.values[draw(&mut rng, &self.options.values, &mut taken)][..];
            let mut last = Statement { key, link: &self.link, value };
            said.push(last);
            for _ in 1..hops {
                let key = &self.keys[draw(&mut rng, &self.options.keys, &mut taken)][..];
                last = Statement { key, value: last.key, ..last };
                said.push(last);
            }
            let link = &if hops == 1 { &self.link } else { &self.origin }[..];
            asked.push(Statement { link, value, ..last });
        }
        asked.shuffle(&mut draws.of(Part::Queries));
        asked.truncate(self.options.questions);

        let fixed: usize = said.iter().chain(&asked).map(|statement| self.length(statement)).sum();
        let mut room = self.options.length - fixed;
        let first = draws.of(Part::Haystack).random_range(0..self.lines.len());
        let text = self.lines.iter().cycle().skip(first).take_while(|line| {
            let fits = line.len() <= room;
            room = room.saturating_sub(line.len());
            fits
        });
        let text: Vec<&Vec<u32>> = text.collect();
        let mut rng = draws.of(Part::Places);
        let mut places: Vec<usize> = said.iter().map(|_| rng.random_range(0..=text.len())).collect();
        places.sort_unstable();

        let mut sample =
            RecallSample { tokens: Vec::with_capacity(self.options.length), answers: Vec::new() };
        let mut done = 0;
        for (&place, statement) in places.iter().zip(&said) {
            text[done..place].iter().for_each(|line| sample.tokens.extend(*line));
            done = place;
            self.state(&mut sample.tokens, statement);
        }
        text[done..].iter().for_each(|line| sample.tokens.extend(*line));
        for statement in &asked {
            let answer = self.state(&mut sample.tokens, statement);
            sample.answers.push(answer);
        }
        sample
    }

    fn length(&self, Statement { key, link, value }: &Statement<'_>) -> usize {
        self.lead.len() + key.len() + link.len() + value.len() + self.stop.len()
    }

    /// Appends a statement, and returns where its value lies.
    fn state(&self, tokens: &mut Vec<u32>, &Statement { key, link, value }: &Statement<'_>) -> Range<usize> {
        for part in [&self.lead[..], key, link] {
            tokens.extend(part);
        }
        let start = tokens.len();
        tokens.extend(value);
        let end = tokens.len();
        tokens.extend(&self.stop);
        start..end
    }
}

/// The words of a statement or of a question, as tokens.
#[derive(Clone, Copy)]
struct Statement<'a> {
    key: &'a [u32],
    link: &'a [u32],
    value: &'a [u32],
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
