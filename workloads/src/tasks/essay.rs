//! The prose that needles are hidden in.

use super::draws::{Draws, Part};
use super::words::{adjectives, nouns, one_of, verbs};
use crate::dataset::DatasetError;
use rand::Rng;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

/// The greatest file that is read as a whole, in bytes.
pub(super) const MAX_FILE_BYTES: u64 = 256 << 20;

/// Where the prose comes from.
#[derive(Clone, Debug)]
pub(super) enum Essay {
    /// Sentences of a grammar. They are the same for all samples of a task and seed, as RULER's essays are.
    Written(Draws),
    /// A text file.
    File(Arc<FileText>),
}

/// A text, split into words.
#[derive(Debug)]
pub(super) struct FileText {
    text: String,
    words: Vec<Range<usize>>,
}

impl FileText {
    /// Reads a text file.
    pub(super) fn read(path: &Path) -> Result<Self, DatasetError> {
        let file = |what: String| DatasetError::File { path: path.to_owned(), what };
        let text = String::from_utf8(read_whole(path)?).map_err(|e| {
            let at = e.utf8_error().valid_up_to();
            file(format!("the haystack is not UTF-8 (byte {at}); convert it first"))
        })?;
        let start = text.as_ptr() as usize;
        // A word's offset follows from its address, because the word is a slice of the text.
        let words: Vec<_> = text
            .split_whitespace()
            .map(|word| {
                let at = word.as_ptr() as usize - start;
                at..at + word.len()
            })
            .collect();
        if words.is_empty() {
            return Err(file("the haystack has no words; give a text file".to_owned()));
        }
        Ok(Self { text, words })
    }

    /// Whether a string occurs in the text.
    pub(super) fn contains(&self, part: &str) -> bool {
        self.text.contains(part)
    }

    fn sentences(&self, words: u64) -> Vec<String> {
        let mut sentences = Sentences::default();
        for i in 0..words {
            sentences.push(&self.text[self.words[(i % self.words.len() as u64) as usize].clone()]);
        }
        sentences.end()
    }
}

/// Reads all of a file, unless it is greater than [`MAX_FILE_BYTES`].
pub(super) fn read_whole(path: &Path) -> Result<Vec<u8>, DatasetError> {
    let read = |source| DatasetError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(read)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        let what = "more than 256 MiB, which is more than any prompt holds; give a part of it".to_owned();
        return Err(DatasetError::File { path: path.to_owned(), what });
    }
    Ok(bytes)
}

/// Puts words together into sentences.
#[derive(Default)]
struct Sentences {
    whole: Vec<String>,
    current: String,
}

impl Sentences {
    fn push(&mut self, word: &str) {
        if !self.current.is_empty() {
            self.current.push(' ');
        }
        self.current.push_str(word);
        if word.trim_end_matches(['"', '\'', ')', ']', '”', '’']).ends_with(['.', '!', '?']) {
            self.whole.push(std::mem::take(&mut self.current));
        }
    }

    /// The sentences. The last one may be cut.
    fn end(mut self) -> Vec<String> {
        if !self.current.is_empty() {
            self.whole.push(self.current);
        }
        self.whole
    }
}

impl Essay {
    /// The sentences of the first `words` words. The last one may be cut.
    pub(super) fn sentences(&self, words: u64) -> Vec<String> {
        match self {
            Self::File(file) => file.sentences(words),
            Self::Written(draws) => {
                let mut rng = draws.common(Part::Haystack);
                let mut sentences = Sentences::default();
                let mut left = words;
                while left > 0 {
                    for word in
                        sentence(&mut rng).split(' ').take(usize::try_from(left).unwrap_or(usize::MAX))
                    {
                        sentences.push(word);
                        left -= 1;
                    }
                }
                sentences.end()
            }
        }
    }

    /// Whether a string may occur in the prose. The grammar writes neither digits nor hyphens, which all
    /// keys and values have.
    pub(super) fn may_contain(&self, part: &str) -> bool {
        match self {
            Self::Written(_) => false,
            Self::File(file) => file.contains(part),
        }
    }
}

/// The shapes of sentences: `A` is an adjective, `N` a noun, `V` a verb.
const SHAPES: &[&str] = &[
    "The A N did not V the N until the N was A again.",
    "Most people who V the N will also V the A N beside it.",
    "If you want to V the N, you should first V every A N that you know.",
    "It took me years to V the A N that others V every day.",
    "Nobody can V the N and the N at the same time.",
    "What the A N has in common with the A N is that both can V the N.",
    "When I was young, the N was A and we used to V it without asking why.",
    "There are two ways to V this N: the A one and the A one.",
    "Perhaps the N is A because so few of us ever V it.",
    "You can tell that the N is A by the way people V it.",
    "The best reason to V the N is that it helps you V the N later.",
    "So the question is not whether to V the N, but how A the N must be.",
    "In the end they had to V the N, and the A N was all that was left.",
    "Some say that every N should V the N, yet I doubt that the A N would agree.",
    "Where the N was A, the N had to be A as well.",
    "The N and the A N seem alike, but only one of them will V the N.",
    "I once met the owner of the A N, who liked to V the N in the evening.",
    "This is why the A N matters more than the N that we V.",
];

fn sentence(rng: &mut impl Rng) -> String {
    let mut sentence = String::new();
    for slot in one_of(rng, SHAPES).split_inclusive(' ') {
        let (word, rest) = match slot.strip_prefix(['A', 'N', 'V']) {
            Some(rest) if !rest.starts_with(|c: char| c.is_ascii_alphabetic()) => {
                let list = match slot.as_bytes()[0] {
                    b'A' => adjectives(),
                    b'N' => nouns(),
                    _ => verbs(),
                };
                (one_of(rng, list), rest)
            }
            _ => (slot, ""),
        };
        sentence.push_str(word);
        sentence.push_str(rest);
    }
    sentence
}
