use crate::dataset::Expectation;

/// The score of an answer, 0 to 1.
///
/// [`Contains`](Expectation::Contains) is RULER's `string_match_all` (the share of the strings that occur
/// in the answer) or, with `any`, its `string_match_part` (whether one of them occurs). Letters are
/// compared in lower case. If nothing is expected, the score is 0. [`Choice`](Expectation::Choice) is 1 if
/// [`choice`] finds the right one.
///
/// ```
/// use pagedraft_workloads::{dataset::Expectation, tasks::score};
/// let expect = Expectation::Contains { answers: vec!["Oak".into(), "elm".into()], any: false };
/// assert_eq!(score(&expect, "An oak."), 0.5);
/// ```
#[must_use]
pub fn score(expect: &Expectation, text: &str) -> f64 {
    match expect {
        Expectation::Contains { answers, .. } if answers.is_empty() => 0.0,
        Expectation::Contains { answers, any } => {
            let text = text.to_lowercase();
            let found = answers.iter().filter(|answer| text.contains(&answer.to_lowercase())).count();
            if *any { f64::from(u8::from(found > 0)) } else { found as f64 / answers.len() as f64 }
        }
        Expectation::Choice { answer } => f64::from(u8::from(choice(text) == Some(*answer))),
    }
}

/// The choice (`A` to `D`) that an answer to LongBench v2 makes: the first "The correct answer is (X)" or,
/// if there is none, the first "The correct answer is X". Asterisks are ignored. This follows LongBench
/// v2's `pred.py`.
#[must_use]
pub fn choice(text: &str) -> Option<char> {
    let text = text.replace('*', "");
    let after = |lead: &str, tail: &str| {
        text.match_indices(lead).find_map(|(at, _)| {
            let rest = &text[at + lead.len()..];
            let letter = rest.chars().next().filter(|c| ('A'..='D').contains(c))?;
            rest[1..].starts_with(tail).then_some(letter)
        })
    };
    after("The correct answer is (", ")").or_else(|| after("The correct answer is ", ""))
}
