//! ShareGPT conversations: a JSON array or JSON lines with the field `conversations`, a list of `{from,
//! value}`. JSON lines of token ids that were made from such conversations (`input_toks`, `output_toks`,
//! `input_tok_ids`, `arrival_time_ns`) are read too; the fields of each record show which form it has.
//!
//! A prompt is everything that was said before an answer, one line per turn (`User: ..`, `Assistant: ..`,
//! `System: ..`, and other roles by their own names), and then `Assistant:`. The length of the recorded
//! answer is the length of the output.

use std::path::Path;

use super::conversation::{Role, Transcript, Turn, turns_of};
use super::json_items::{JsonItem, JsonItems};
use super::records::{Record, Records, records};
use super::trace_request::TraceRequest;
use super::{DatasetError, Item, OutputLength, Prompt, Sample, SkipReason, Skipped, Turns};

pub(super) fn read(path: &Path, turns: Turns, keep_failed: bool) -> Result<Records, DatasetError> {
    let mut items = JsonItems::open(path, "sharegpt")?;
    let mut open: Option<Conversation> = None;
    Ok(records(move || {
        loop {
            if let Some(record) = open.as_mut().and_then(Conversation::next_request) {
                return Ok(Some(record));
            }
            let Some(item) = items.next_item()? else { return Ok(None) };
            if !item.has("conversations") && item.has("input_toks") {
                return Ok(Some(token_request(&item)?.into_record(keep_failed)));
            }
            open = Some(Conversation::of(&item, turns)?);
        }
    }))
}

/// A record of token ids.
fn token_request(item: &JsonItem) -> Result<TraceRequest, DatasetError> {
    let prompt_tokens = item.tokens("input_toks")?;
    let prompt = if item.has("input_tok_ids") {
        let narrow = |id: u64| {
            u32::try_from(id)
                .map_err(|_| item.error(&format!("`input_tok_ids` has {id}, which is no token id")))
        };
        let ids = item.numbers("input_tok_ids")?.into_iter().map(narrow).collect::<Result<Vec<u32>, _>>()?;
        if ids.len() != prompt_tokens as usize {
            let what =
                format!("`input_toks` is {prompt_tokens}, but there are {} `input_tok_ids`", ids.len());
            return Err(item.error(&what));
        }
        Prompt::Tokens(ids)
    } else {
        Prompt::Length(prompt_tokens)
    };
    Ok(TraceRequest {
        line: item.line,
        time_ns: item.has("arrival_time_ns").then(|| item.time("arrival_time_ns", 1)).transpose()?,
        category: None,
        prompt,
        prompt_tokens,
        output_tokens: item.tokens("output_toks")?,
    })
}

/// A conversation, of which some requests may have been given already.
struct Conversation {
    source_id: Option<String>,
    line: u64,
    turns: std::vec::IntoIter<Turn>,
    said: Transcript,
    per_user_turn: bool,
    /// The number of answers that are left in `turns`.
    answers_left: usize,
    /// The number of requests given so far.
    given: u64,
    over: bool,
}

impl Conversation {
    fn of(item: &JsonItem, turns: Turns) -> Result<Self, DatasetError> {
        let list = turns_of(item)?;
        let answers_left = list.iter().filter(|turn| matches!(turn.role, Role::Assistant)).count();
        Ok(Self {
            source_id: item.name("id").or_else(|| item.name("conversation_id")),
            line: item.line,
            turns: list.into_iter(),
            said: Transcript::default(),
            per_user_turn: turns == Turns::PerUserTurn,
            answers_left,
            given: 0,
            over: false,
        })
    }

    /// The next request. A conversation without any gives a skipped record. An answer with nothing before
    /// it is not a request.
    fn next_request(&mut self) -> Option<Record> {
        for turn in self.turns.by_ref() {
            if matches!(turn.role, Role::Assistant) {
                self.answers_left -= 1;
                if !self.said.is_empty() && (self.per_user_turn || self.answers_left == 0) {
                    let prompt = self.said.prompt();
                    self.said.push(&turn.role, &turn.text);
                    self.given += 1;
                    let number = self.given;
                    let name =
                        |id: &String| if self.per_user_turn { format!("{id}#{number}") } else { id.clone() };
                    let sample = Sample {
                        source_id: self.source_id.as_ref().map(name),
                        line: self.line,
                        arrival_s: None,
                        prompt: Prompt::Text(prompt),
                        output: OutputLength::AsText(turn.text),
                        expect: None,
                        category: None,
                    };
                    return Some(Record { time_ns: None, item: Item::Sample(sample) });
                }
            }
            self.said.push(&turn.role, &turn.text);
        }
        if self.given > 0 || std::mem::replace(&mut self.over, true) {
            return None;
        }
        let skipped = Skipped {
            source_id: self.source_id.take(),
            line: self.line,
            arrival_s: None,
            prompt_tokens: None,
            reason: SkipReason::NoAnswer,
        };
        Some(Record { time_ns: None, item: Item::Skipped(skipped) })
    }
}
