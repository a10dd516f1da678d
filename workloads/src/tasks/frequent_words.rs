//! `fwe` asks for the three most frequent words of a coded text, in which frequencies follow Zipf's law.

use super::draws::{Draws, Part};
use super::fit::Composition;
use rand::Rng;
use rand::seq::SliceRandom;
use std::collections::BTreeSet;

/// How many letters a coded word has.
const LETTERS: usize = 6;
/// How many tokens a text has for each word of its vocabulary.
const TOKENS_A_WORD: u32 = 50;
/// The zeta function of the exponent, which is 2 (RULER's alpha).
const ZETA_OF_2: f64 = std::f64::consts::PI * std::f64::consts::PI / 6.0;
/// The least number of words from which on the expected counts of the third and fourth coded word,
/// `n / 16 / zeta(2)` and `n / 25 / zeta(2)`, differ by more than one, so that the counts, which are
/// rounded down, never tie.
const LEAST: u64 = 74;
/// The least number of words of a short text. From here on the third coded word occurs.
const LEAST_SHORT: u64 = 27;
/// Sizes below [`LEAST`] at which the third and the fourth coded word both occur once.
const TIED: std::ops::Range<u64> = 42..53;
/// The dots, the three words that are asked for, and one that is not.
const LEAST_VOCABULARY: usize = 5;

/// A sample.
pub(super) struct FrequentWords {
    draws: Draws,
    /// The vocabulary, the most frequent word first. That word is noise (the dots).
    vocabulary: Vec<String>,
    /// Whether the text may have fewer than [`LEAST`] words.
    short: bool,
}

impl FrequentWords {
    /// `tokens` is the most tokens of the prompt.
    pub(super) fn new(draws: Draws, tokens: u32) -> Self {
        let count = ((tokens / TOKENS_A_WORD) as usize).max(LEAST_VOCABULARY);
        let mut rng = draws.of(Part::Words);
        let mut seen = BTreeSet::new();
        let mut vocabulary = vec!["...".to_owned()];
        while vocabulary.len() < count {
            let word: String = (0..LETTERS).map(|_| char::from(rng.random_range(b'a'..=b'z'))).collect();
            if seen.insert(word.clone()) {
                vocabulary.push(word);
            }
        }
        Self { draws, vocabulary, short: false }
    }

    /// The same for a short text: fewer than 74 words.
    pub(super) fn short(draws: Draws, tokens: u32) -> Self {
        Self { short: true, ..Self::new(draws, tokens) }
    }

    /// The number of words of a text with `units` units, before their shares are rounded down. Short texts
    /// skip the sizes at which words tie.
    fn words(&self, units: u64) -> u64 {
        if self.short && units >= TIED.start { units + (TIED.end - TIED.start) } else { units }
    }
}

impl Composition for FrequentWords {
    fn least(&self) -> u64 {
        if self.short { LEAST_SHORT } else { LEAST }
    }

    fn most(&self) -> u64 {
        if self.short { LEAST - 1 - (TIED.end - TIED.start) } else { u64::MAX }
    }

    fn prompt(&self, units: u64) -> String {
        let count = self.words(units);
        let mut words: Vec<&str> = Vec::new();
        for (k, word) in self.vocabulary.iter().enumerate() {
            let rank = (k + 1) as f64;
            let times = (count as f64 / (rank * rank) / ZETA_OF_2) as usize;
            if times == 0 {
                break;
            }
            words.extend(std::iter::repeat_n(word.as_str(), times));
        }
        words.shuffle(&mut self.draws.of(Part::Places));
        format!(
            "Read the following coded text and track the frequency of each coded word. \
             Find the three most frequently appeared coded words. {}\n\
             Question: Do not provide any explanation. Please ignore the dots '....'. \
             What are the three most frequently appeared words in the above coded text? \
             Answer: According to the coded text above, the three most frequently appeared words are:",
            words.join(" ")
        )
    }

    fn answers(&self) -> Vec<String> {
        self.vocabulary[1..4].to_vec()
    }
}
