//! Haystacks and questions of files.

use super::super::{RulerGenerator, RulerOptions, ruler_samples};
use super::{Blanks, Quarters, answers, options, text};
use crate::dataset::DatasetError;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

/// A file that goes when it is dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("pagedraft-tasks-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn with_haystack(task: &str, path: &std::path::Path) -> RulerOptions {
    RulerOptions { haystack: Some(path.to_owned()), ..options(task, 2048) }
}

fn with_squad(path: &std::path::Path) -> RulerOptions {
    RulerOptions { squad: Some(path.to_owned()), samples: 2, ..options("qa_1", 2048) }
}

fn error(options: &RulerOptions) -> DatasetError {
    ruler_samples(options, 1, Arc::new(Blanks)).err().unwrap()
}

#[test]
fn a_haystack_file_is_hidden_in_and_repeated() {
    let story = "Once there was a mill. It ground\n\n corn, and   \"nobody knew why.\" Did they? They did!";
    let file = Scratch::new("story", story.as_bytes());
    for task in ["niah_single_2", "niah_multivalue"] {
        let generator = RulerGenerator::new(&with_haystack(task, &file.0), 3, Arc::new(Blanks)).unwrap();
        let sample = generator.sample(0).unwrap();
        let mut prose = text(&sample).lines().nth(1).unwrap().to_owned();
        for answer in answers(&sample) {
            let to = prose.find(answer.as_str()).unwrap() + answer.len() + 1;
            let from = prose[..to].rfind("One of").unwrap();
            prose.replace_range(from..to, "");
        }
        let words: Vec<&str> = prose.split_whitespace().collect();
        let told: Vec<&str> = story.split_whitespace().cycle().take(words.len()).collect();
        assert_eq!(words, told, "{task}");
        assert!(words.len() > 1_800);
    }
}

#[test]
fn a_haystack_that_has_a_key_or_a_value_already_gets_another_needle() {
    let plain = RulerGenerator::new(&options("niah_single_2", 2048), 3, Arc::new(Blanks)).unwrap();
    let first = plain.sample(0).unwrap();
    let file = Scratch::new("spoilt", format!("It is {} they say.", answers(&first)[0]).as_bytes());
    let other = RulerGenerator::new(&with_haystack("niah_single_2", &file.0), 3, Arc::new(Blanks))
        .unwrap()
        .sample(0)
        .unwrap();
    assert_ne!(answers(&first), answers(&other));
}

#[test]
fn haystack_files_that_are_none_are_errors_that_name_them() {
    let empty = Scratch::new("empty", b" \n ");
    let latin = Scratch::new("latin", b"caf\xe9 au lait");
    for (file, what) in [(&empty, "no words"), (&latin, "not UTF-8 (byte 3)")] {
        let error = error(&with_haystack("niah_single_3", &file.0)).to_string();
        assert!(error.contains(what) && error.contains(file.0.to_str().unwrap()), "{error}");
    }
    let missing = std::env::temp_dir().join("pagedraft-no-such-haystack");
    assert!(matches!(error(&with_haystack("niah_single_2", &missing)), DatasetError::Read { .. }));
    for task in ["niah_single_1", "vt", "qa_1"] {
        let refused = error(&with_haystack(task, &latin.0)).to_string();
        assert!(refused.contains(task) && refused.contains("no haystack file"), "{refused}");
    }
    let refused = error(&RulerOptions { squad: Some(latin.0.clone()), ..options("qa_2", 2048) }).to_string();
    assert!(refused.contains("qa_1 does"), "{refused}");
}

fn squad_file() -> serde_json::Value {
    let filler = "and much more could be said about it by those who were there at the time";
    let paragraph = |i: usize, impossible: bool| {
        json!({
            "context": format!("Paragraph {i} tells that the colour of house {i} is shade-{i} {filler}."),
            "qas": [{
                "question": format!("What is the colour of house {i}?"),
                "id": "x",
                "answers": [{"text": format!("shade-{i}"), "answer_start": 1}, {"text": format!("house {i}"), "answer_start": 2}],
                "is_impossible": impossible,
            }],
        })
    };
    json!({"version": "v2.0", "data": [
        {"title": "a", "paragraphs": [paragraph(100, true), paragraph(101, false), paragraph(102, false)]},
        {"title": "b", "paragraphs": (200..260).map(|i| paragraph(i, false)).collect::<Vec<_>>()},
    ]})
}

#[test]
fn a_squad_file_gives_questions_in_its_order_among_paragraphs_of_the_same_article_first() {
    let file = Scratch::new("squad", squad_file().to_string().as_bytes());
    let samples: Vec<_> =
        ruler_samples(&with_squad(&file.0), 1, Arc::new(Quarters)).unwrap().map(Result::unwrap).collect();
    for (sample, house) in samples.iter().zip([101, 102]) {
        let text = text(sample);
        assert!(text.ends_with(&format!("Question: What is the colour of house {house}? Answer:")), "{text}");
        assert_eq!(answers(sample), [format!("shade-{house}"), format!("house {house}")]);
        for near in [100, 101, 102] {
            assert_eq!(text.matches(&format!("shade-{near} ")).count(), 1, "{text}");
        }
        assert!(text.contains("Document 20:\nParagraph "), "{text}");
    }
    // More than the file has: others repeat, the right one does not.
    let long = RulerOptions { length: 8192, ..with_squad(&file.0) };
    let sample = ruler_samples(&long, 1, Arc::new(Quarters)).unwrap().next().unwrap().unwrap();
    assert_eq!(text(&sample).matches("shade-101 ").count(), 1);
    assert!(text(&sample).matches("shade-102 ").count() > 1);
    let many = RulerOptions { samples: 63, ..with_squad(&file.0) };
    assert!(error(&many).to_string().contains("62 questions"), "{}", error(&many));
}

#[test]
fn squad_files_that_are_none_are_errors_with_a_line() {
    let cut = Scratch::new("cut", b"{\"data\": [\n{\"paragraphs\": [");
    let other = Scratch::new("other", b"{\"data\": [{\"paragraphs\": 3}]}");
    let none = Scratch::new("none", b"{\"data\": []}");
    for (file, line) in [(&cut, 2), (&other, 1)] {
        match error(&with_squad(&file.0)) {
            DatasetError::Line { line: said, what, .. } => {
                assert!(said == line && what.contains("not a SQuAD file"), "{said} {what}");
            }
            other => panic!("{other}"),
        }
    }
    assert!(error(&with_squad(&none.0)).to_string().contains("no question"));
}

#[test]
fn a_file_of_one_paragraph_has_no_haystack_and_says_all_it_has() {
    let mut one = squad_file();
    one["data"] = json!([{"paragraphs": [one["data"][0]["paragraphs"][1]]}]);
    let file = Scratch::new("one", one.to_string().as_bytes());
    let options = RulerOptions { samples: 1, ..with_squad(&file.0) };
    let sample = ruler_samples(&options, 1, Arc::new(Quarters)).unwrap().next().unwrap().unwrap();
    assert!(text(&sample).contains("Document 1:") && !text(&sample).contains("Document 2:"));
}
