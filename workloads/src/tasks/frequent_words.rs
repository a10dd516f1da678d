//! `fwe`: the three most frequent words of a coded text, whose frequencies are Zipf's.

use super::draws::{Draws, Part};
use super::fit::Composition;
use rand::Rng;
use rand::seq::SliceRandom;
use std::collections::BTreeSet;

/// Letters of a coded word.
const LETTERS: usize = 6;
/// Tokens of a text for each word of its vocabulary.
const TOKENS_A_WORD: u32 = 50;
/// The zeta function of the exponent, which is 2 (RULER's alpha).
const ZETA_OF_2: f64 = std::f64::consts::PI * std::f64::consts::PI / 6.0;
/// Words from which on the shares of the third and fourth coded word, `n (1/16 - 1/25) / zeta(2)`, differ by more than
/// one: their counts, rounded down, never tie.
const LEAST: u64 = 74;
/// Words of a short text, at least: those from which on the third coded word comes at all.
const LEAST_SHORT: u64 = 27;
/// Below [`LEAST`], the texts whose third and fourth coded word come once each.
const TIED: std::ops::Range<u64> = 42..53;
/// The dots, three words that are asked for, and one that is not.
const LEAST_VOCABULARY: usize = 5;

/// A sample.
pub(super) struct FrequentWords {
    draws: Draws,
    /// The most frequent first, which is noise.
    vocabulary: Vec<String>,
    /// Whether the text may have fewer than [`LEAST`] words.
    short: bool,
}

impl FrequentWords {
    /// `tokens`: of the prompt, at most.
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

    /// Words of a text, before their shares are rounded down: short texts are counted without those that tie.
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
