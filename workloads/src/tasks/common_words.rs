//! `cwe` asks for the ten words that occur more often in a list than the others. A short example of the
//! same task comes first.

use super::draws::{Draws, Part};
use super::fit::Composition;
use super::words::{CoinedWords, adjectives, nouns, verbs};
use rand::seq::SliceRandom;
use std::fmt::Write;

/// How many words are asked for.
const COMMON: usize = 10;
/// How many words short texts ask for, from the most to the fewest.
const SHORT: [usize; 3] = [COMMON, 5, 3];
/// From this length in tokens on, lists have more repetitions.
const LONG: u32 = 4096;

/// How often words occur.
#[derive(Clone, Copy, Debug)]
struct Repeats {
    common: usize,
    others: usize,
}

/// Where the words come from.
enum Vocabulary {
    /// The lists of English words, shuffled.
    English(Vec<&'static str>),
    /// Words made of syllables.
    Coined(CoinedWords),
}

impl Vocabulary {
    fn count(&self) -> u64 {
        match self {
            Self::English(words) => words.len() as u64,
            Self::Coined(_) => CoinedWords::COUNT,
        }
    }

    fn word(&self, place: u64) -> String {
        match self {
            Self::English(words) => words[place as usize % words.len()].to_owned(),
            Self::Coined(words) => words.at(place),
        }
    }
}

/// How often words occur in examples of lists that are not long.
const FEW: Repeats = Repeats { common: 3, others: 1 };

/// A sample.
pub(super) struct CommonWords {
    draws: Draws,
    vocabulary: Vocabulary,
    /// The number of words in the example. The list does not use them.
    example_words: u64,
    /// How often words occur in the example; `None` if it is left out.
    example: Option<Repeats>,
    list: Repeats,
    /// How many words are asked for.
    common: usize,
    /// The least number of words in the list.
    least: usize,
}

impl CommonWords {
    /// A sample with words of the English lists, which are limited.
    pub(super) fn english(draws: Draws, length: u32) -> Self {
        let mut words = [adjectives(), nouns(), verbs()].concat();
        words.shuffle(&mut draws.of(Part::Words));
        Self::new(draws, length, Vocabulary::English(words))
    }

    /// With words made of syllables.
    pub(super) fn coined(draws: Draws, length: u32) -> Self {
        Self::new(draws, length, Vocabulary::Coined(CoinedWords::new(&mut draws.of(Part::Words))))
    }

    fn new(draws: Draws, length: u32, vocabulary: Vocabulary) -> Self {
        let (example_words, example, list) = if length < LONG {
            (20, FEW, Repeats { common: 6, others: 1 })
        } else {
            (40, Repeats { common: 10, others: 3 }, Repeats { common: 30, others: 3 })
        };
        Self { draws, vocabulary, example_words, example: Some(example), list, common: COMMON, least: COMMON }
    }

    /// A sample for a short text. It has no example, common words occur as often as in an example, and
    /// there are at least half as many others. The greater `shorter` is, the fewer words it asks for.
    /// `None` if it can't be shorter.
    pub(super) fn short(draws: Draws, shorter: usize) -> Option<Self> {
        let common = *SHORT.get(shorter)?;
        let least = common + common.div_ceil(2);
        Some(Self { example: None, list: FEW, common, least, ..Self::english(draws, 0) })
    }

    /// The template with the list of words. The first words of `words` are the common ones.
    fn text(&self, words: &[String], repeats: Repeats, part: Part) -> String {
        let (asked, common) = (self.common, words.len().min(self.common));
        let mut entries: Vec<&str> =
            Vec::with_capacity(common * repeats.common + words.len() * repeats.others);
        for (i, word) in words.iter().enumerate() {
            let times = if i < common { repeats.common } else { repeats.others };
            entries.extend(std::iter::repeat_n(word.as_str(), times));
        }
        entries.shuffle(&mut self.draws.of(part));
        format!(
            "Below is a numbered list of words. In these words, some appear more often than others. \
             Memorize the ones that appear most often.\n{}\n\
             Question: What are the {asked} most common words in the above list? \
             Answer: The top {asked} words that appear most often in the list are:",
            numbered(&entries)
        )
    }

    fn words(&self, from: u64, count: u64) -> Vec<String> {
        (from..from.saturating_add(count)).map(|place| self.vocabulary.word(place)).collect()
    }
}

impl Composition for CommonWords {
    fn least(&self) -> u64 {
        self.least as u64
    }

    fn most(&self) -> u64 {
        self.vocabulary.count().saturating_sub(self.example_words)
    }

    fn prompt(&self, units: u64) -> String {
        let words = self.words(self.example_words, units);
        let asked = self.text(&words, self.list, Part::Places);
        let Some(repeats) = self.example else { return asked };
        let example = self.words(0, self.example_words);
        let answered: Vec<&str> = example.iter().take(self.common).map(String::as_str).collect();
        format!("{} {}\n{asked}", self.text(&example, repeats, Part::Example), numbered(&answered))
    }

    fn answers(&self) -> Vec<String> {
        self.words(self.example_words, self.common as u64)
    }
}

fn numbered(words: &[&str]) -> String {
    let mut text = String::with_capacity(words.len() * 12);
    for (i, word) in words.iter().enumerate() {
        // Writing to a string can't fail.
        let _ = write!(text, "{}{}. {word}", if i == 0 { "" } else { " " }, i + 1);
    }
    text
}
