//! Solvers that read the text as a person would.

use super::super::draws::Draws;
use super::super::fit::Composition;
use super::super::frequent_words::FrequentWords;
use super::{Quarters, answers, every_sample, generator, text};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The part of a text between two others: after the last `from`, before the first `to` after it.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, tail) = text.rsplit_once(from).unwrap_or_else(|| panic!("no {from:?} in {text:?}"));
    tail.split_once(to).unwrap_or_else(|| panic!("no {to:?} in {tail:?}")).0
}

fn set<S: AsRef<str>>(strings: &[S]) -> BTreeSet<&str> {
    strings.iter().map(AsRef::as_ref).collect()
}

/// Needle sentences: what they hide, key, value.
fn needles(context: &str) -> Vec<(&str, &str, &str)> {
    let mut found = Vec::new();
    for piece in context.split("One of the special magic ").skip(1) {
        let (what, rest) = piece.split_once(" for ").unwrap();
        let (key, rest) = rest.split_once(" is: ").unwrap();
        found.push((what, key, rest.split_once('.').unwrap().0));
    }
    found
}

#[test]
fn needles_are_in_the_haystack_and_what_is_asked_for_is_there_once() {
    every_sample(|task, length, _, _, sample| {
        let Some(kind) = task.strip_prefix("niah_") else { return };
        let text = text(sample);
        let many = matches!(kind, "multivalue" | "multiquery");
        let what = if matches!(kind, "single_3" | "multikey_3") { "uuid" } else { "number" };
        let plural = format!("{what}s");
        let (some, are, are_all, shown) =
            if many { ("Some", "are", "are all", plural.as_str()) } else { ("A", "is", "is", what) };
        let first = format!(
            "{some} special magic {shown} {are} hidden within the following text. Make sure to memorize it. \
             I will quiz you about the {shown} afterwards."
        );
        assert_eq!(text.lines().next(), Some(first.as_str()), "{task}");
        let context = between(text, &format!("{first}\n"), "\nWhat");
        let query = between(text, &format!("\nWhat {are_all} the special magic {shown} for "), " mentioned");
        let last = format!(
            "What {are_all} the special magic {shown} for {query} mentioned in the provided text? \
             The special magic {shown} for {query} mentioned in the provided text {are}"
        );
        assert_eq!(text.lines().last(), Some(last.as_str()), "{task}");

        let keys: Vec<&str> = query.split(", ").map(|key| key.strip_prefix("and ").unwrap_or(key)).collect();
        assert_eq!(keys.len(), if kind == "multiquery" { 4 } else { 1 }, "{query}");
        let values_a_key = if kind == "multivalue" { 4 } else { 1 };
        let all = needles(context);
        assert!(all.iter().all(|&(w, ..)| w == plural), "{task}");
        let mut solved = Vec::new();
        for key in &keys {
            let of_key: Vec<&str> = all.iter().filter(|(_, k, _)| k == key).map(|&(.., v)| v).collect();
            assert_eq!(of_key.len(), values_a_key, "{task} {length} {key}");
            assert_eq!(context.matches(key).count(), values_a_key, "{task} {length} {key}");
            solved.extend(of_key);
        }
        assert_eq!(set(&solved), set(answers(sample)), "{task} {length}");
        for answer in answers(sample) {
            assert_eq!(text.matches(answer.as_str()).count(), 1, "{task} {length} {answer}");
        }
        let (hidden, of_noise) = match kind {
            "single_1" => (1, true),
            "multikey_2" | "multikey_3" => (context.lines().count(), false),
            "multikey_1" | "multivalue" | "multiquery" => (4, false),
            _ => (1, false),
        };
        assert_eq!(all.len(), hidden, "{task} {length}");
        if of_noise {
            let noise =
                "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
            assert_eq!(context.lines().filter(|&l| l == noise).count() + 1, context.lines().count());
            assert_eq!(context.lines().last(), Some(noise), "a needle is before a line");
        } else if !kind.starts_with("multikey_2") && !kind.starts_with("multikey_3") {
            at_depths(task, context, &all);
        }
    });
}

/// Needles stand between sentences, at some of 40 depths from 0 to 100 percent.
fn at_depths(task: &str, context: &str, needles: &[(&str, &str, &str)]) {
    let mut marked = context.to_owned();
    for (what, key, value) in needles {
        marked = marked.replace(&format!("One of the special magic {what} for {key} is: {value}."), "#");
    }
    let mut sentences = 0;
    let mut open = false;
    let mut before = Vec::new();
    for word in marked.split(' ') {
        if word == "#" {
            // A sentence that is open is the last, which was cut.
            before.push(sentences + usize::from(open));
            sentences += usize::from(std::mem::take(&mut open));
        } else {
            open = !word.ends_with(['.', '?', '!']);
            sentences += usize::from(!open);
        }
    }
    sentences += usize::from(open);
    for place in before {
        let fits = (0..40).any(|i| {
            let depth = (f64::from(i) * 100.0 / 39.0).round();
            (sentences as f64 * (depth / 100.0) + 1e-9) as usize == place
        });
        assert!(fits, "{task}: before sentence {place} of {sentences}");
    }
}

#[test]
fn depths_of_needles_spread_over_the_text() {
    for task in ["niah_single_1", "niah_single_2"] {
        let shares: Vec<f64> = (0..40)
            .map(|index| {
                let sample = generator(task, 4096, 11, Arc::new(Quarters)).sample(index).unwrap();
                let text = text(&sample).to_owned();
                text.find("One of the special magic").unwrap() as f64 / text.len() as f64
            })
            .collect();
        for (from, to) in [(0.0, 0.25), (0.25, 0.5), (0.5, 0.75), (0.75, 1.0)] {
            assert!(shares.iter().any(|s| (from..to).contains(s)), "{task}: none in {from}..{to}");
        }
    }
}

/// Runs the assignments of a text in order: the variables that have a value in the end, by how many hops it took.
fn interpret(text: &str, value: &str) -> BTreeMap<usize, Vec<String>> {
    let mut values: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for line in text.lines() {
        let Some(assignment) = line.strip_prefix("VAR ") else { continue };
        let (variable, source) = assignment.split_once(" = ").unwrap();
        let given = match source.strip_prefix("VAR ") {
            Some(other) => {
                let (value, hops) =
                    values.get(other.trim()).unwrap_or_else(|| panic!("{other} is not set yet"));
                (value.clone(), hops + 1)
            }
            None => (source.to_owned(), 0),
        };
        assert!(values.insert(variable.to_owned(), given).is_none(), "{variable} is set twice");
    }
    let mut by_hops: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for (variable, (_, hops)) in values.into_iter().filter(|(_, (v, _))| v == value) {
        by_hops.entry(hops).or_default().push(variable);
    }
    by_hops
}

#[test]
fn chains_of_variables_resolve_by_running_them() {
    let ask = "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n";
    every_sample(|task, length, _, _, sample| {
        if task != "vt" {
            return;
        }
        let parts: Vec<&str> = text(sample).split(ask).collect();
        // A short text has no example, and may have fewer hops.
        let whole = parts.len() == 3;
        assert!(whole || (length < 1024 && parts.len() == 2), "{length}: an example and a task");
        assert_eq!(parts[0], "");
        let count = answers(sample).len();
        assert!(if whole { count == 5 } else { (2..=5).contains(&count) }, "{length}: {count} variables");
        for (part, told) in parts[1..].iter().rev().zip([false, true]) {
            let (context, question) = part
                .split_once("\nQuestion: Find all variables that are assigned the value ")
                .unwrap_or_else(|| panic!("{part}"));
            let value = question.split_once(' ').unwrap().0;
            assert!((10_000..99_999).contains(&value.parse::<u32>().unwrap()));
            let lead = format!(
                "{value} in the text above. Answer: According to the chain(s) of variable assignment in the text above, \
                 {count} variables are assigned the value {value}, they are: "
            );
            let answer = question.strip_prefix(lead.as_str()).unwrap_or_else(|| panic!("{question}"));
            let by_hops = interpret(context, value);
            let chain: Vec<(usize, usize)> =
                by_hops.iter().map(|(&hops, found)| (hops, found.len())).collect();
            assert_eq!(chain, (0..count).map(|hops| (hops, 1)).collect::<Vec<_>>(), "one chain");
            let solved: Vec<String> = by_hops.into_values().flatten().collect();
            if told {
                assert_eq!(solved, answer.split_whitespace().collect::<Vec<_>>(), "{length}");
                assert!(answer.starts_with(' ') && answer.ends_with("\n\n"), "{answer:?}");
            } else {
                assert_eq!(answer, "");
                assert_eq!(solved, answers(sample), "{length}");
            }
            let noise =
                "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.";
            let lines = context.lines().filter(|&line| line != noise).count();
            assert_eq!(lines, count, "nothing but noise and assignments");
            assert!(context.lines().any(|line| line == noise), "{length}: no noise");
        }
    });
}

/// Words of a numbered list and how often they come.
fn tally(list: &str) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    let words: Vec<&str> = list.split(' ').collect();
    for (i, pair) in words.chunks(2).enumerate() {
        assert_eq!(pair[0], format!("{}.", i + 1));
        *counts.entry(pair[1]).or_default() += 1;
    }
    counts
}

#[test]
fn common_words_are_those_a_count_finds() {
    every_sample(|task, length, _, _, sample| {
        if task != "cwe" {
            return;
        }
        let text = text(sample);
        let count = answers(sample).len();
        let lead = "Below is a numbered list of words. In these words, some appear more often than others. \
                    Memorize the ones that appear most often.\n";
        let tail = format!(
            "\nQuestion: What are the {count} most common words in the above list? \
             Answer: The top {count} words that appear most often in the list are:"
        );
        let (example, asked) = text.split_at(text.rfind(lead).unwrap());
        let (of_example, others, times) = match (example, length < 4096) {
            ("", true) => ((0, 0, 0), 1, 3),
            (_, true) => ((20, 3, 1), 1, 6),
            (_, false) => ((40, 10, 3), 3, 30),
        };
        let list = asked
            .strip_prefix(lead)
            .and_then(|a| a.strip_suffix(tail.as_str()))
            .unwrap_or_else(|| panic!("{asked}"));
        let counts = tally(list);
        let common: BTreeSet<&str> = counts.iter().filter(|(_, n)| **n == times).map(|(w, _)| *w).collect();
        assert_eq!(common, set(answers(sample)), "{length}");
        assert!(counts.values().all(|&n| n == times || n == others), "{length}");
        if example.is_empty() {
            assert!(length < 1024 && [3, 5, 10].contains(&count), "{length}: {count} words and no example");
            assert!(counts.len() > count, "{length}: nothing but common words");
            return;
        }
        assert_eq!(count, 10, "{length}");
        let (list, told) = example.strip_prefix(lead).unwrap().split_once(tail.as_str()).unwrap();
        let counts = tally(list);
        assert_eq!(counts.len(), of_example.0);
        let common: BTreeSet<&str> =
            counts.iter().filter(|(_, n)| **n == of_example.1).map(|(w, _)| *w).collect();
        assert_eq!(counts.values().filter(|&&n| n == of_example.2).count(), of_example.0 - 10);
        assert_eq!(common, tally(told.trim()).into_keys().collect());
    });
}

#[test]
fn frequent_words_are_those_a_count_finds_and_none_ties() {
    every_sample(|task, length, _, _, sample| {
        if task != "fwe" {
            return;
        }
        let text = text(sample);
        let coded = text
            .strip_prefix(
                "Read the following coded text and track the frequency of each coded word. \
                 Find the three most frequently appeared coded words. ",
            )
            .and_then(|t| {
                t.strip_suffix(
                    "\nQuestion: Do not provide any explanation. Please ignore the dots '....'. \
                     What are the three most frequently appeared words in the above coded text? \
                     Answer: According to the coded text above, the three most frequently appeared words are:",
                )
            })
            .unwrap_or_else(|| panic!("{text}"));
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for word in coded.split(' ') {
            *counts.entry(word).or_default() += 1;
        }
        let mut ranked: Vec<(&str, usize)> = counts.into_iter().collect();
        ranked.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
        assert_eq!(ranked[0].0, "...", "{length}");
        let top: Vec<&str> = ranked[1..4].iter().map(|&(w, _)| w).collect();
        assert_eq!(top, answers(sample).iter().map(String::as_str).collect::<Vec<_>>(), "{length}");
        assert!(ranked.get(4).is_none_or(|&(_, n)| n < ranked[3].1), "{length}: {ranked:?}");
        assert!(ranked[1..].iter().all(|(w, _)| w.len() == 6 && w.bytes().all(|b| b.is_ascii_lowercase())));
        // Zipf's law: the word at rank k comes a k-th squared as often as the first.
        for (k, &(_, n)) in ranked.iter().enumerate().take(4) {
            let share = ranked[0].1 as f64 / ((k + 1) * (k + 1)) as f64;
            assert!((n as f64 - share).abs() <= 1.0, "{length}: rank {}: {n} and not {share}", k + 1);
        }
    });
}

#[test]
fn third_and_fourth_frequent_words_tie_below_the_least_text_and_never_from_there_on() {
    let ties = |words: &FrequentWords, units: u64| {
        let (prompt, asked) = (words.prompt(units), words.answers());
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for word in between(&prompt, "coded words. ", "\n").split(' ') {
            *counts.entry(word).or_default() += 1;
        }
        let mut ranked: Vec<(&str, usize)> = counts.into_iter().filter(|(word, _)| *word != "...").collect();
        ranked.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
        let tied = ranked.len() > 3 && ranked[2].1 == ranked[3].1;
        assert!(
            tied || ranked.len() < 3 || set(&asked) == ranked[..3].iter().map(|&(w, _)| w).collect(),
            "{units}"
        );
        tied
    };
    let draws = Draws { task: 0, seed: 1, index: 0 };
    let words = FrequentWords::new(draws, 4096);
    assert!((1..words.least()).any(|units| ties(&words, units)));
    assert!(!(words.least()..2_000).any(|units| ties(&words, units)));
    // Short texts leave those out.
    let short = FrequentWords::short(draws, 4096);
    let longest = short.prompt(short.most());
    assert!(longest.len() <= words.prompt(words.least()).len(), "{longest}");
    for units in short.least()..=short.most() {
        assert!(!ties(&short, units), "{units}");
        assert_eq!(set(&short.answers()).iter().filter(|w| short.prompt(units).contains(**w)).count(), 3);
    }
}

#[test]
fn questions_are_answered_by_the_documents_they_need_and_by_no_other() {
    const ASK: &str = "Answer the question based on the given documents. Only give me the answer and do not output any \
                       other words.";
    every_sample(|task, length, _, _, sample| {
        let Some(hops) = task.strip_prefix("qa_") else { return };
        let text = text(sample);
        let lead = format!("{ASK}\n\nThe following are given documents.\n\nDocument 1:\n");
        let rest = text.strip_prefix(lead.as_str()).unwrap_or_else(|| panic!("{text}"));
        let (context, question) = rest.split_once(format!("\n\n{ASK}\n\nQuestion: ").as_str()).unwrap();
        let question = question.strip_suffix(" Answer:").unwrap();
        let mut documents = Vec::new();
        let mut left = context;
        while let Some((document, more)) =
            left.split_once(format!("\n\nDocument {}:\n", documents.len() + 2).as_str())
        {
            documents.push(document);
            left = more;
        }
        documents.push(left);
        assert!(!context.contains("Document 1:"), "numbered from 1");
        assert!(length < 1024 || documents.len() > 5, "{length}: {}", documents.len());

        // The work's name begins with the only word of the question with a capital after the first.
        let name = question
            .split([' ', '?'])
            .skip(1)
            .find(|w| w.starts_with(|c: char| c.is_ascii_uppercase()))
            .unwrap_or_else(|| panic!("{question}"));
        let with =
            |part: &str| -> Vec<&str> { documents.iter().copied().filter(|d| d.contains(part)).collect() };
        let of_name = with(name);
        assert_eq!(of_name.len(), 1, "{length}: {name}");
        if hops == "1" {
            for answer in answers(sample) {
                assert_eq!(with(answer), of_name, "{length}: {question} {answer}");
            }
        } else {
            let architect = between(of_name[0], "architect ", " and paid");
            let article: Vec<&str> =
                documents.iter().copied().filter(|d| d.starts_with(&format!("{architect}\n"))).collect();
            assert_eq!(article.len(), 1, "{length}: {architect}");
            for answer in answers(sample) {
                assert!(!of_name[0].contains(answer.as_str()), "one hop is not enough: {question} {answer}");
                assert_eq!(with(answer), article, "{length}: {question} {answer}");
            }
        }
    });
}
