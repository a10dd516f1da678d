//! The search for the greatest haystack against trying all of them.

use super::super::fit::{Composition, Misfit, fit};
use super::super::{RULER_TASKS, RulerGenerator};
use super::{Blanks, Quarters, options};
use crate::prompt::TextTokens;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Units of given lengths.
struct Units {
    least: u64,
    lengths: Vec<usize>,
}

impl Composition for Units {
    fn least(&self) -> u64 {
        self.least
    }

    fn most(&self) -> u64 {
        self.lengths.len() as u64
    }

    fn prompt(&self, units: u64) -> String {
        "a ".repeat(self.lengths[..units as usize].iter().sum())
    }

    fn answers(&self) -> Vec<String> {
        Vec::new()
    }
}

struct Counts<T>(T, AtomicU32);

impl<T: TextTokens> TextTokens for Counts<T> {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.encode(text)
    }
}

proptest! {
    #[test]
    fn the_greatest_that_fits_is_found_as_by_trying_all(
        lengths in prop::collection::vec(1usize..60, 5..300),
        least in 0u64..5,
        budget in 0u64..9_000,
    ) {
        let units = Units { least, lengths };
        let tokens = |n: u64| Blanks.encode(&units.prompt(n)).map(|t| t.len() as u64).unwrap();
        let by_trying = (least..=units.most()).rev().find(|&n| tokens(n) <= budget);
        let counted = Counts(Blanks, AtomicU32::new(0));
        match (fit(&units, budget, &counted), by_trying) {
            (Ok(found), Some(wanted)) => {
                prop_assert_eq!(found.units, wanted);
                prop_assert_eq!(found.tokens, tokens(wanted));
                prop_assert_eq!(found.prompt, units.prompt(wanted));
            }
            (Err(Misfit::TooLong(said)), None) => prop_assert_eq!(said, tokens(least)),
            (found, wanted) => prop_assert!(false, "{:?} {:?}", found, wanted),
        }
        prop_assert!(counted.1.load(Ordering::Relaxed) <= 20);
    }
}

#[test]
fn few_encodings_find_it() {
    for task in RULER_TASKS {
        let counted = Arc::new(Counts(Quarters, AtomicU32::new(0)));
        let generator = RulerGenerator::new(&options(task, 32_768), 1, counted.clone()).unwrap();
        generator.sample(0).unwrap();
        // Halving from nothing to 32,768 takes 15 for each search; vt searches twice.
        let encodings = counted.1.load(Ordering::Relaxed);
        assert!(encodings <= if task == "vt" { 18 } else { 10 }, "{task}: {encodings}");
    }
}

#[test]
fn a_tokenizer_that_gives_no_tokens_comes_to_an_end() {
    struct Nothing;
    impl TextTokens for Nothing {
        fn encode(&self, _text: &str) -> Result<Vec<u32>, String> {
            Ok(Vec::new())
        }
    }
    for task in RULER_TASKS {
        let generator = RulerGenerator::new(&options(task, 600), 1, Arc::new(Nothing)).unwrap();
        assert!(generator.sample(0).is_ok(), "{task}");
    }
}
