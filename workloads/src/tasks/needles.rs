//! `niah_*`: needles that are hidden in a haystack.

use super::draws::{Draws, Part, distinct};
use super::essay::Essay;
use super::fit::Composition;
use super::task::{Haystack, NeedleTask, Strings};
use super::words::{adjectives, nouns, one_of};
use rand::Rng;
use rand::seq::SliceRandom;
use std::fmt::Write;

/// The line that noise is made of, in `vt` too.
pub(super) const NOISE: &str =
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";

/// The depths at which needles go into an essay, in percent: 40 of them, evenly from 0 to 100.
pub(super) fn depths() -> Vec<usize> {
    // The division rounds to the nearest number. No depth lies exactly halfway between two numbers.
    (0..40).map(|i| (i * 200 + 39) / 78).collect()
}

/// A sample of a needle task.
pub(super) struct Needles {
    task: NeedleTask,
    draws: Draws,
    essay: Essay,
    /// The sentences to hide, in the order of the text.
    needles: Vec<String>,
    /// The strings that the needles hide.
    hidden: Vec<String>,
    queries: Vec<String>,
    answers: Vec<String>,
}

impl Needles {
    pub(super) fn new(task: NeedleTask, draws: Draws, essay: Essay) -> Self {
        let mut rng = draws.of(Part::Needles);
        let mut hidden: Vec<String> = Vec::new();
        let mut draw = |strings| {
            loop {
                let drawn = string(&mut rng, strings);
                // "old-boat" occurs in "cold-boat", so an answer with one would count as the other.
                if !hidden.iter().any(|other| other.contains(&drawn) || drawn.contains(other.as_str()))
                    && !essay.may_contain(&drawn)
                {
                    hidden.push(drawn.clone());
                    return drawn;
                }
            }
        };
        let pairs: Vec<(String, Vec<String>)> = (0..task.num_keys)
            .map(|_| (draw(task.keys), (0..task.num_values).map(|_| draw(task.values)).collect()))
            .collect();
        let mut needles: Vec<String> = pairs
            .iter()
            .flat_map(|(key, values)| values.iter().map(move |value| needle(task.values, key, value)))
            .collect();
        needles.shuffle(&mut rng);

        let mut asked: Vec<usize> = (0..task.num_keys).collect();
        asked.shuffle(&mut draws.of(Part::Queries));
        asked.truncate(task.num_queries);
        let queries = asked.iter().map(|&i| pairs[i].0.clone()).collect();
        let answers = asked.iter().flat_map(|&i| pairs[i].1.clone()).collect();
        Self { task, draws, essay, needles, hidden, queries, answers }
    }

    /// Puts needles before some of the lines, which are drawn.
    fn in_lines(&self, mut lines: Vec<String>) -> String {
        let places = distinct(&mut self.draws.of(Part::Places), lines.len(), self.needles.len());
        for (place, needle) in places.iter().zip(&self.needles).rev() {
            lines.insert(*place, needle.clone());
        }
        lines.join("\n")
    }

    /// Puts needles between the sentences of an essay, at depths that are drawn.
    fn in_essay(&self, words: u64) -> String {
        let sentences = self.essay.sentences(words);
        let depths = depths();
        let drawn = distinct(&mut self.draws.of(Part::Places), depths.len(), self.needles.len());
        let mut parts: Vec<&str> = Vec::with_capacity(sentences.len() + self.needles.len());
        let mut done = 0;
        for (depth, needle) in drawn.iter().map(|&i| depths[i]).zip(&self.needles) {
            let place = sentences.len() * depth / 100;
            parts.extend(sentences[done..place].iter().map(String::as_str));
            parts.push(needle);
            done = place;
        }
        parts.extend(sentences[done..].iter().map(String::as_str));
        parts.join(" ")
    }

    /// Needles that are not asked for. None has a key or a value of a hidden one.
    fn others(&self, lines: u64) -> Vec<String> {
        let mut rng = self.draws.of(Part::Haystack);
        let mut other = |strings| {
            loop {
                let drawn = string(&mut rng, strings);
                if !self.hidden.iter().any(|h| h.contains(&drawn) || drawn.contains(h.as_str())) {
                    return drawn;
                }
            }
        };
        (0..lines)
            .map(|_| {
                let key = other(self.task.keys);
                needle(self.task.values, &key, &other(self.task.values))
            })
            .collect()
    }
}

impl Composition for Needles {
    fn least(&self) -> u64 {
        match self.task.haystack {
            Haystack::Essay => 0,
            // Each needle needs a line to stand before.
            Haystack::Noise | Haystack::Needles => self.needles.len() as u64,
        }
    }

    fn most(&self) -> u64 {
        u64::MAX
    }

    fn prompt(&self, units: u64) -> String {
        let context = match self.task.haystack {
            Haystack::Noise => self.in_lines((0..units).map(|_| NOISE.to_owned()).collect()),
            Haystack::Needles => self.in_lines(self.others(units)),
            Haystack::Essay => self.in_essay(units),
        };
        let query = match self.queries.as_slice() {
            [one] => one.clone(),
            [first @ .., last] => format!("{}, and {last}", first.join(", ")),
            [] => String::new(),
        };
        let (some, are, are_all, what) = match (self.answers.len(), self.task.values) {
            (1, strings) => ("A", "is", "is", singular(strings)),
            (_, strings) => ("Some", "are", "are all", plural(strings)),
        };
        format!(
            "{some} special magic {what} {are} hidden within the following text. Make sure to memorize it. \
             I will quiz you about the {what} afterwards.\n{context}\n\
             What {are_all} the special magic {what} for {query} mentioned in the provided text? \
             The special magic {what} for {query} mentioned in the provided text {are}"
        )
    }

    fn answers(&self) -> Vec<String> {
        self.answers.clone()
    }
}

fn plural(strings: Strings) -> &'static str {
    match strings {
        Strings::Words => "words",
        Strings::Numbers => "numbers",
        Strings::Uuids => "uuids",
    }
}

fn singular(strings: Strings) -> &'static str {
    plural(strings).trim_end_matches('s')
}

fn needle(values: Strings, key: &str, value: &str) -> String {
    format!("One of the special magic {} for {key} is: {value}.", plural(values))
}

fn string(rng: &mut impl Rng, strings: Strings) -> String {
    match strings {
        Strings::Words => format!("{}-{}", one_of(rng, adjectives()), one_of(rng, nouns())),
        Strings::Numbers => rng.random_range(1_000_000..=9_999_999u32).to_string(),
        Strings::Uuids => uuid(rng.random()),
    }
}

/// A random UUID (RFC 9562, version 4) made from 128 bits, six of which are replaced by fixed ones.
fn uuid(bits: u128) -> String {
    let bits = bits & !(0xf << 76) & !(0b11 << 62) | (4 << 76) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    let mut text = String::with_capacity(36);
    let mut rest = hex.as_str();
    for digits in [8, 4, 4, 4, 12] {
        let (part, others) = rest.split_at(digits);
        // Writing to a string can't fail.
        let _ = write!(text, "{}{part}", if text.is_empty() { "" } else { "-" });
        rest = others;
    }
    text
}
