//! Words: lists of English ones, and any number of further ones made of syllables.

use rand::Rng;
use std::sync::LazyLock;

/// No word of the three lists is part of another one.
static ADJECTIVES: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| include_str!("words/adjectives.txt").lines().collect());
static NOUNS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| include_str!("words/nouns.txt").lines().collect());
static VERBS: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| include_str!("words/verbs.txt").lines().collect());

pub(super) fn adjectives() -> &'static [&'static str] {
    &ADJECTIVES
}

pub(super) fn nouns() -> &'static [&'static str] {
    &NOUNS
}

/// Verbs that take an object.
pub(super) fn verbs() -> &'static [&'static str] {
    &VERBS
}

/// Draws one word of a list.
pub(super) fn one_of<'a>(rng: &mut impl Rng, list: &[&'a str]) -> &'a str {
    list[rng.random_range(0..list.len())]
}

const CONSONANTS: &[u8; 20] = b"bcdfghjklmnpqrstvwxz";
const VOWELS: &[u8; 5] = b"aeiou";
/// The number of words of three syllables, each a consonant and a vowel.
const COINED: u64 = 1_000_000;

/// A million words of six letters, in an order that is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct CoinedWords {
    factor: u64,
    offset: u64,
}

impl CoinedWords {
    pub(super) const COUNT: u64 = COINED;

    /// Draws an order.
    pub(super) fn new(rng: &mut impl Rng) -> Self {
        // Multiplication by a factor that has no divisor in common with a million permutes the numbers
        // below a million.
        let factor = loop {
            let factor = rng.random_range(100_003..COINED);
            if factor % 2 != 0 && factor % 5 != 0 {
                break factor;
            }
        };
        Self { factor, offset: rng.random_range(0..COINED) }
    }

    /// The word at a place. Places count modulo a million, and different ones have different words.
    pub(super) fn at(&self, place: u64) -> String {
        let affine = |number: u64| (number * self.factor + self.offset) % COINED;
        // After one such step, neighbours would differ by the same amount. Therefore the digits are
        // exchanged and the step is repeated; both permute as well.
        let once = affine(place % COINED);
        let mut number = affine(once % 1_000 * 1_000 + once / 1_000);
        let mut word = String::with_capacity(6);
        for _ in 0..3 {
            let syllable = (number % 100) as usize;
            number /= 100;
            word.push(char::from(CONSONANTS[syllable / 5]));
            word.push(char::from(VOWELS[syllable % 5]));
        }
        word
    }

    /// The same word, capitalised.
    pub(super) fn name_at(&self, place: u64) -> String {
        let mut name = self.at(place);
        if let Some(first) = name.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        name
    }
}
