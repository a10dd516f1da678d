//! [LongBench v2](https://github.com/THUDM/LongBench): a JSON array or JSON lines with the fields `_id,
//! domain, sub_domain, difficulty, length, question, choice_A, choice_B, choice_C, choice_D, answer,
//! context`. The prompt and the greatest length of an answer are those of the authors' zero-shot setting.

use std::path::Path;

use super::json_items::{JsonItem, JsonItems};
use super::records::{Record, Records, records};
use super::{DatasetError, Expectation, Item, OutputLength, Prompt, Sample};

/// The most tokens of an answer.
const ANSWER_TOKENS: u32 = 128;

pub(super) fn read(path: &Path) -> Result<Records, DatasetError> {
    let mut items = JsonItems::open(path, "longbench-v2")?;
    Ok(records(move || {
        let Some(item) = items.next_item()? else { return Ok(None) };
        Ok(Some(Record { time_ns: None, item: Item::Sample(sample(&item)?) }))
    }))
}

fn sample(item: &JsonItem) -> Result<Sample, DatasetError> {
    let part = |field| item.text(field).map(str::trim);
    let prompt = format!(
        "Please read the following text and answer the question below.\n\n<text>\n{}\n</text>\n\n\
         What is the correct answer to this question: {}\nChoices:\n(A) {}\n(B) {}\n(C) {}\n(D) {}\n\n\
         Format your response as follows: \"The correct answer is (insert answer here)\".",
        part("context")?,
        part("question")?,
        part("choice_A")?,
        part("choice_B")?,
        part("choice_C")?,
        part("choice_D")?,
    );
    let answer = match part("answer")? {
        "A" => 'A',
        "B" => 'B',
        "C" => 'C',
        "D" => 'D',
        _ => return Err(item.wrong("answer", item.field("answer")?, "A, B, C or D")),
    };
    Ok(Sample {
        source_id: item.name("_id"),
        line: item.line,
        arrival_s: None,
        prompt: Prompt::Text(prompt),
        output: OutputLength::UntilStop(Some(ANSWER_TOKENS)),
        expect: Some(Expectation::Choice { answer }),
        category: item.optional_text("domain")?.map(str::to_owned),
    })
}
