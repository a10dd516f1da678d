//! The published file's rows beside the generator's, and the scorers by themselves.

use super::super::{choice, ruler_json_line, score};
use super::{Quarters, answers, generator, text};
use crate::dataset::Expectation;
use proptest::prelude::*;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// The rows of the shared RULER file.
fn rows() -> Option<Vec<Value>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/data/ruler/niah_multikey_3_4096_rows001-250.jsonl");
    let Ok(text) = std::fs::read_to_string(&path) else {
        eprintln!("skipped: no {}", path.display());
        return None;
    };
    Some(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A text with every hexadecimal digit as `x`, where it is in a UUID.
fn without_uuids(text: &str) -> String {
    text.split_inclusive([' ', '\n', '.'])
        .map(|word| {
            let bare = word.trim_end_matches([' ', '\n', '.']);
            if bare.len() == 36 && bare.split('-').map(str::len).eq([8, 4, 4, 4, 12]) {
                assert_eq!(&bare[14..15], "4", "version of {bare}");
                assert!(matches!(&bare[19..20], "8" | "9" | "a" | "b"), "variant of {bare}");
                assert!(bare.bytes().all(|b| b == b'-' || b.is_ascii_digit() || (b'a'..=b'f').contains(&b)));
                word.replace(bare, "UUID")
            } else {
                word.to_owned()
            }
        })
        .collect()
}

#[test]
fn the_shared_rows_score_1_with_their_own_outputs() {
    let Some(rows) = rows() else { return };
    assert_eq!(rows.len(), 250);
    for (i, row) in rows.iter().enumerate() {
        let answers: Vec<String> = serde_json::from_value(row["outputs"].clone()).unwrap();
        let told = answers.join(" ");
        let other: Vec<String> =
            serde_json::from_value(rows[(i + 1) % rows.len()]["outputs"].clone()).unwrap();
        let expect = Expectation::Contains { answers, any: false };
        assert_eq!(score(&expect, &format!(" {told}.")), 1.0, "row {i}");
        assert_eq!(score(&expect, &other.join(" ")), 0.0, "row {i}");
    }
}

#[test]
fn generated_uuid_needles_have_the_shape_of_the_shared_file() {
    let Some(rows) = rows() else { return };
    let generator = generator("niah_multikey_3", 4096, 2, Arc::new(Quarters));
    for index in 0..3 {
        let sample = generator.sample(index).unwrap();
        let line = ruler_json_line(index, &sample, generator.tokens(text(&sample)) as u32);
        let row = &rows[index as usize];
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&line), keys(row));
        assert_eq!(line["index"], row["index"]);
        assert_eq!(line["outputs"], serde_json::json!(answers(&sample)));
        let length = line["length"].as_u64().unwrap();
        assert!(length <= 4096 && length > 4096 - 40, "{length}");

        let (ours, theirs) =
            (without_uuids(line["input"].as_str().unwrap()), without_uuids(row["input"].as_str().unwrap()));
        let (ours, theirs): (Vec<&str>, Vec<&str>) = (ours.lines().collect(), theirs.lines().collect());
        assert_eq!(ours[0], theirs[0]);
        assert_eq!(ours.last(), theirs.last());
        assert!(theirs.len() > 10 && ours.len() > 10);
        for needle in ours[1..ours.len() - 1].iter().chain(&theirs[1..theirs.len() - 1]) {
            assert_eq!(*needle, "One of the special magic uuids for UUID is: UUID.");
        }
    }
}

#[test]
fn choices_are_found_as_longbench_finds_them() {
    for (text, found) in [
        ("The correct answer is (B).", Some('B')),
        ("**The correct answer is (C)**", Some('C')),
        ("The correct answer is **D**, I think.", Some('D')),
        ("The correct answer is A", Some('A')),
        ("The correct answer is B. No: The correct answer is (C)", Some('C')),
        ("The correct answer is (E). The correct answer is (A", None),
        ("The correct answer is (E). The correct answer is A", Some('A')),
        ("the correct answer is (A)", None),
        ("The correct answer is not known", None),
        ("The correct answer is", None),
        ("The correct answer is é", None),
        ("(A)", None),
        ("", None),
    ] {
        assert_eq!(choice(text), found, "{text:?}");
    }
    assert_eq!(score(&Expectation::Choice { answer: 'B' }, "The correct answer is (B)"), 1.0);
    assert_eq!(score(&Expectation::Choice { answer: 'B' }, "The correct answer is (A)"), 0.0);
    assert_eq!(score(&Expectation::Choice { answer: 'B' }, "B"), 0.0);
}

#[test]
fn nothing_expected_scores_0() {
    for any in [false, true] {
        assert_eq!(score(&Expectation::Contains { answers: Vec::new(), any }, "all"), 0.0);
    }
}

proptest! {
    #[test]
    fn scores_are_shares_of_the_answers_that_are_told(told in prop::collection::vec(any::<bool>(), 1..12)) {
        let answers: Vec<String> = (0..told.len()).map(|i| format!("Needle{:02}", i)).collect();
        let text: String = answers.iter().zip(&told).filter(|(_, t)| **t).map(|(a, _)| a.to_uppercase()).collect();
        let share = told.iter().filter(|t| **t).count() as f64 / told.len() as f64;
        let contains = |any| Expectation::Contains { answers: answers.clone(), any };
        prop_assert_eq!(score(&contains(false), &text), share);
        prop_assert_eq!(score(&contains(true), &text), if share > 0.0 { 1.0 } else { 0.0 });
    }

    #[test]
    fn no_text_makes_the_search_for_a_choice_panic(text in "(The correct answer is |\\(|[A-E]|\\)|\\*|é){0,8}") {
        let found = choice(&text);
        prop_assert!(found.is_none_or(|c| ('A'..='D').contains(&c)));
    }
}
