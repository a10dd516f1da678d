//! [Spec-Bench](https://github.com/hemingkx/Spec-Bench)'s questions: JSON lines with the fields
//! `question_id`, `category` and `turns`, which are the one or two things that a user says.
//!
//! The file has no answers, so a question is one request, made from its first turn. With
//! [`Turns::PerUserTurn`] each further turn is a request too, whose prompt holds all user turns so far
//! without answers between them. Prompts have the form of ShareGPT's: `User: ..`, and then `Assistant:`.

use std::path::Path;

use super::conversation::{Role, Transcript};
use super::json_items::JsonItems;
use super::records::{Record, Records, records};
use super::{DatasetError, Item, OutputLength, Prompt, Sample, Turns};

pub(super) fn read(path: &Path, turns: Turns) -> Result<Records, DatasetError> {
    let mut items = JsonItems::open(path, "spec-bench")?;
    let mut open: Option<Question> = None;
    Ok(records(move || {
        loop {
            if let Some(record) = open.as_mut().and_then(Question::next_request) {
                return Ok(Some(record));
            }
            let Some(item) = items.next_item()? else { return Ok(None) };
            let mut texts = item.texts("turns")?;
            if texts.is_empty() {
                return Err(item.error("field `turns` is an empty list; expected what the user says"));
            }
            if turns == Turns::Full {
                texts.truncate(1);
            }
            open = Some(Question {
                source_id: item.name("question_id"),
                line: item.line,
                category: item.optional_text("category")?.map(str::to_owned),
                turns: texts.into_iter(),
                said: Transcript::default(),
                per_user_turn: turns == Turns::PerUserTurn,
                given: 0,
            });
        }
    }))
}

/// A question, of which some requests may have been given already.
struct Question {
    source_id: Option<String>,
    line: u64,
    category: Option<String>,
    turns: std::vec::IntoIter<String>,
    said: Transcript,
    per_user_turn: bool,
    given: u64,
}

impl Question {
    fn next_request(&mut self) -> Option<Record> {
        self.said.push(&Role::User, &self.turns.next()?);
        self.given += 1;
        let name = |id: &String| if self.per_user_turn { format!("{id}#{}", self.given) } else { id.clone() };
        let sample = Sample {
            source_id: self.source_id.as_ref().map(name),
            line: self.line,
            arrival_s: None,
            prompt: Prompt::Text(self.said.prompt()),
            output: OutputLength::UntilStop(None),
            expect: None,
            category: self.category.clone(),
        };
        Some(Record { time_ns: None, item: Item::Sample(sample) })
    }
}
