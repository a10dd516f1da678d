//! Recall samples, read back from their bytes.

use super::Refuses;
use crate::prompt::TextTokens;
use crate::tasks::{RecallGenerator, RecallOptions, RecallSample};
use std::collections::BTreeMap;

/// A token a byte.
struct Bytes;

impl TextTokens for Bytes {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        Ok(text.bytes().map(u32::from).collect())
    }
}

const TEXT: &str = "  A line.\n\nAnother one, with a comma\nThe third\n\n   The word is out.\n";

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn options() -> RecallOptions {
    RecallOptions {
        length: 400,
        needles: 1..=3,
        questions: 2,
        hops: 1..=1,
        keys: words(&["oak", "elm", "ash", "fir", "yew", "box"]),
        values: words(&["red", "oak", "blue", "green", "white", "black"]),
    }
}

fn generator(options: RecallOptions) -> RecallGenerator {
    RecallGenerator::new(options, 5, TEXT, &Bytes).unwrap()
}

fn text(tokens: &[u32]) -> String {
    tokens.iter().map(|&token| char::from(token as u8)).collect()
}

/// What the lines of a prompt say: key to value.
fn said(prompt: &str) -> BTreeMap<&str, &str> {
    let statements = prompt.lines().filter_map(|line| line.strip_prefix("The word for ")?.strip_suffix('.'));
    statements.filter_map(|line| line.split_once(" is ")).collect()
}

#[test]
fn each_question_of_a_recall_sample_asks_for_something_that_was_said_before() {
    let generator = generator(options());
    let mut counts = [0; 4];
    for index in 0..200 {
        let RecallSample { tokens, answers } = generator.sample(index);
        assert!(tokens.len() <= 400, "{}", tokens.len());
        let first = text(&tokens[..answers[0].start]);
        let stated = said(&first);
        counts[stated.len()] += 1;
        assert_eq!(answers.len(), stated.len().min(2));
        let mut asked = Vec::new();
        for answer in answers {
            let prompt = text(&tokens[..answer.start]);
            let (before, key) = prompt.rsplit_once("\nThe word for ").unwrap();
            let key = key.strip_suffix(" is").unwrap();
            assert_eq!(text(&tokens[answer]).strip_prefix(' '), said(before).get(key).copied(), "{prompt}");
            assert!(!asked.contains(&key.to_owned()));
            asked.push(key.to_owned());
            assert!(stated.keys().all(|key| stated.values().all(|value| key != value)), "{prompt}");
        }
        // The next line would not have fitted.
        assert!(tokens.len() + "\nAnother one, with a comma".len() > 400);
        assert!(!text(&tokens).contains("\n\n") && !text(&tokens).contains("\n "));
    }
    assert!(counts[0] == 0 && counts[1..].iter().all(|&count| count > 30), "{counts:?}");
}

/// A key stands where it is said for the first time, or where a later statement leads to it.
#[test]
fn the_question_about_a_chain_asks_for_the_word_at_its_beginning() {
    let keys = words(&["oak", "elm", "ash", "fir", "yew", "box", "bay", "nut"]);
    let values = words(&["red", "oak", "blue", "green", "white", "black", "grey", "pink"]);
    let generator = generator(RecallOptions { needles: 4..=4, hops: 1..=3, keys, values, ..options() });
    let mut lengths = [0; 4];
    for index in 0..100 {
        let RecallSample { tokens, answers } = generator.sample(index);
        let stated = said(&text(&tokens[..answers[0].start])).len();
        for answer in answers {
            let prompt = text(&tokens[..answer.start]);
            let (_, asked) = prompt.rsplit_once("\nThe word for ").unwrap();
            let (key, link) = asked.split_once(' ').unwrap();
            let (said, mut value, mut hops) = (said(&prompt), key, 0);
            while let Some(next) = said.get(value) {
                (value, hops) = (next, hops + 1);
            }
            assert_eq!(text(&tokens[answer]), format!(" {value}"), "{prompt}");
            assert_eq!(link, if hops == 1 { "is" } else { "was" });
            assert_eq!(stated, 4 / hops * hops);
            lengths[hops] += 1;
        }
    }
    assert!(lengths[1..].iter().all(|&count| count > 20), "{lengths:?}");
}

#[test]
fn a_recall_sample_is_a_function_of_seed_and_index() {
    let sample = |seed, index| RecallGenerator::new(options(), seed, TEXT, &Bytes).unwrap().sample(index);
    assert_eq!(sample(1, 7), sample(1, 7));
    assert_ne!(sample(1, 7), sample(1, 8));
    assert_ne!(sample(1, 7), sample(2, 7));
}

#[test]
fn recall_options_that_cannot_work_are_refused_with_what_is_wrong() {
    let refused = |options: RecallOptions, text: &str| {
        RecallGenerator::new(options, 5, text, &Bytes).unwrap_err().to_string()
    };
    let few = RecallOptions { keys: words(&["oak", "elm", "ash"]), ..options() };
    assert!(refused(few, TEXT).contains("twice as many keys"));
    assert!(refused(RecallOptions { length: 60, ..options() }, TEXT).contains("more than the length 60"));
    assert!(refused(RecallOptions { questions: 0, ..options() }, TEXT).contains("a question"));
    assert!(refused(options(), " \n").contains("no line"));
    let error = RecallGenerator::new(options(), 5, TEXT, &Refuses).unwrap_err().to_string();
    assert!(error.contains("no letters"), "{error}");
}
