//! Every task, by readers of its text that know nothing of the generator.

mod files;
mod fitting;
mod lengths;
mod published;
mod recall;
mod texts;
mod word_lists;

use super::generator::Fitted;
use super::{RULER_TASKS, RulerGenerator, RulerOptions, ruler_samples, score};
use crate::dataset::{DatasetError, Expectation, OutputLength, Prompt, Sample};
use crate::prompt::TextTokens;
use std::sync::Arc;

/// A token a word between blanks.
struct Blanks;

impl TextTokens for Blanks {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        Ok(text.split_whitespace().map(|word| word.len() as u32).collect())
    }
}

/// A token four bytes.
struct Quarters;

impl TextTokens for Quarters {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        Ok(text.as_bytes().chunks(4).map(|bytes| u32::from(bytes[0])).collect())
    }
}

/// One that knows no letters.
struct Refuses;

impl TextTokens for Refuses {
    fn encode(&self, _text: &str) -> Result<Vec<u32>, String> {
        Err("no letters".to_owned())
    }
}

fn tokenizers() -> [(&'static str, Arc<dyn TextTokens>); 2] {
    [("blanks", Arc::new(Blanks)), ("quarters", Arc::new(Quarters))]
}

fn options(task: &str, length: u32) -> RulerOptions {
    RulerOptions { task: task.to_owned(), length, samples: 3, ..RulerOptions::default() }
}

fn generator(task: &str, length: u32, seed: u64, tokenizer: Arc<dyn TextTokens>) -> RulerGenerator {
    RulerGenerator::new(&options(task, length), seed, tokenizer).unwrap()
}

fn text(sample: &Sample) -> &str {
    match &sample.prompt {
        Prompt::Text(text) => text,
        other => panic!("{other:?}"),
    }
}

fn answers(sample: &Sample) -> &[String] {
    match &sample.expect {
        Some(Expectation::Contains { answers, .. }) => answers,
        other => panic!("{other:?}"),
    }
}

fn budgeted(sample: &Sample) -> u64 {
    match sample.output {
        OutputLength::UntilStop(Some(tokens)) => u64::from(tokens),
        ref other => panic!("{other:?}"),
    }
}

/// The length an error says would do.
fn least_length(error: &DatasetError) -> u32 {
    let text = error.to_string();
    let (_, tail) = text.split_once("give a length of ").unwrap_or_else(|| panic!("{text}"));
    tail.split(' ').next().unwrap().parse().unwrap()
}

/// Samples of every task at several lengths by both tokenizers; a length that is too small is replaced by the least.
fn every_sample(mut see: impl FnMut(&str, u32, &RulerGenerator, u64, &Sample)) {
    for task in RULER_TASKS {
        for (name, tokenizer) in tokenizers() {
            for length in [128, 256, 400, 512, 1024, 4096, 32_768] {
                for index in 0..2 {
                    let seed = 7 + index;
                    let whole = generator(task, length, seed, tokenizer.clone());
                    match whole.sample(index) {
                        Ok(sample) => see(task, length, &whole, index, &sample),
                        Err(error) => {
                            assert_eq!(length, 128, "{task} {name}: {error}");
                            let least = least_length(&error);
                            assert!((128..256).contains(&least), "{task} {name}: {error}");
                            let small = generator(task, least, seed, tokenizer.clone());
                            see(task, least, &small, index, &small.sample(index).unwrap());
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_perfect_answer_scores_1_a_wrong_one_0_and_half_of_several_a_half() {
    every_sample(|task, length, _, index, sample| {
        let expect = sample.expect.as_ref().unwrap();
        let answers = answers(sample);
        let told = answers.join(", ");
        assert_eq!(score(expect, &told), 1.0, "{task} {length} {index}");
        assert_eq!(
            score(expect, &format!("THEY ARE {}.", told.to_uppercase())),
            1.0,
            "{task} {length} {index}"
        );
        assert_eq!(score(expect, "I do not know."), 0.0, "{task} {length} {index}: {told}");
        assert_eq!(score(expect, ""), 0.0, "{task} {length} {index}");
        let any = task.starts_with("qa");
        for (i, answer) in answers.iter().enumerate() {
            let one = score(expect, answer);
            let wanted = if any { 1.0 } else { 1.0 / answers.len() as f64 };
            assert_eq!(one, wanted, "{task} {length} {index}: answer {i} of {answers:?}");
        }
        if !any {
            let count = match task {
                "vt" => 5,
                "cwe" => 10,
                "fwe" => 3,
                "niah_multivalue" | "niah_multiquery" => 4,
                _ => 1,
            };
            if length >= 1024 || !matches!(task, "vt" | "cwe") {
                assert_eq!(answers.len(), count, "{task}");
            }
            let count = answers.len();
            let half = &answers[..count / 2];
            assert_eq!(score(expect, &half.join(" ")), half.len() as f64 / count as f64, "{task}");
        }
        // The answer of another sample is no answer.
        let other = generator(task, length.max(1024), 99, Arc::new(Blanks)).sample(5).unwrap();
        if task != "cwe" {
            assert_eq!(score(expect, &self::answers(&other).join(" ")), 0.0, "{task} {length} {index}");
        }
    });
}

#[test]
fn prompt_and_answer_fit_and_one_unit_more_would_not() {
    every_sample(|task, length, generator, index, sample| {
        let tokens = |prompt: &str| generator.tokens(prompt) + budgeted(sample);
        let whole = tokens(text(sample));
        assert!(whole <= u64::from(length), "{task} {length} {index}: {whole}");
        let Fitted { composition, fit, .. } = generator.fitted(index).unwrap();
        assert_eq!(fit.prompt, text(sample), "{task} {length} {index}");
        assert!(fit.units < composition.most());
        let more = tokens(&composition.prompt(fit.units + 1));
        assert!(more > u64::from(length), "{task} {length} {index}: {} units, {more}", fit.units);
    });
}

#[test]
fn every_task_has_the_answer_length_of_its_original() {
    for (task, tokens) in RULER_TASKS.iter().zip([128; 8].into_iter().chain([30, 120, 50, 32, 32])) {
        let sample = generator(task, 2048, 1, Arc::new(Quarters)).sample(0).unwrap();
        assert_eq!(budgeted(&sample), tokens, "{task}");
        assert_eq!(sample.category.as_deref(), Some(*task));
        assert_eq!((sample.line, sample.arrival_s, sample.source_id.as_deref()), (0, None, Some("0")));
    }
}

#[test]
fn a_sample_is_the_same_alone_and_in_its_row_and_others_are_others() {
    for task in RULER_TASKS {
        let row: Vec<Sample> =
            ruler_samples(&options(task, 2048), 3, Arc::new(Quarters)).unwrap().map(Result::unwrap).collect();
        assert_eq!(row.len(), 3);
        let alone = generator(task, 2048, 3, Arc::new(Quarters));
        for index in [2, 0, 1] {
            assert_eq!(alone.sample(index).unwrap(), row[index as usize], "{task} {index}");
        }
        assert_ne!(row[0].prompt, row[1].prompt, "{task}");
        assert_ne!(answers(&row[0]), answers(&row[1]), "{task}");
        let seeded = generator(task, 2048, 4, Arc::new(Quarters)).sample(0).unwrap();
        assert_ne!(seeded.prompt, row[0].prompt, "{task}");
        // Far indices are as good.
        assert!(alone.sample(u64::MAX).is_ok(), "{task}");
    }
}

#[test]
fn a_longer_text_asks_for_the_same_needles() {
    for task in RULER_TASKS.iter().filter(|task| task.starts_with("niah") || **task == "vt") {
        let at =
            |length| answers(&generator(task, length, 3, Arc::new(Quarters)).sample(1).unwrap()).to_vec();
        assert_eq!(at(1024), at(16_384), "{task}");
    }
}

#[test]
fn an_unknown_task_is_told_the_thirteen() {
    let error =
        ruler_samples(&options("niah_single_4", 4096), 0, Arc::new(Blanks)).err().unwrap().to_string();
    assert!(error.contains("niah_single_4"), "{error}");
    assert!(RULER_TASKS.iter().all(|task| error.contains(task)), "{error}");
}

#[test]
fn a_length_that_is_too_small_is_told_the_least_and_the_least_will_do() {
    for task in RULER_TASKS {
        for (name, tokenizer) in tokenizers() {
            for length in [0, 1, 40] {
                let error = ruler_samples(&options(task, length), 5, tokenizer.clone()).err().unwrap();
                let least = least_length(&error);
                let at = |length| ruler_samples(&options(task, length), 5, tokenizer.clone());
                assert!(at(least).is_ok(), "{task} {name}: {least}");
                let below = at(least - 1).err().unwrap();
                assert_eq!(least_length(&below), least, "{task} {name}");
            }
        }
    }
}

#[test]
fn no_samples_are_none_and_a_refusing_tokenizer_and_an_enormous_length_are_errors() {
    let none = RulerOptions { samples: 0, ..options("vt", 1024) };
    assert_eq!(ruler_samples(&none, 0, Arc::new(Blanks)).unwrap().count(), 0);
    for task in RULER_TASKS {
        let refused = ruler_samples(&options(task, 1024), 0, Arc::new(Refuses)).err().unwrap().to_string();
        assert!(refused.contains("no letters") && refused.contains(task), "{refused}");
        let long = ruler_samples(&options(task, u32::MAX), 0, Arc::new(Blanks)).err().unwrap().to_string();
        assert!(long.contains("4294967295") && long.contains("4194304"), "{long}");
    }
    let many = RulerOptions { samples: u64::MAX, ..options("fwe", 1024) };
    assert_eq!(ruler_samples(&many, 0, Arc::new(Blanks)).unwrap().take(3).count(), 3);
}
