//! [LongBench](https://github.com/THUDM/LongBench) v1: JSON lines with the fields `context`, `input` (a
//! question, which may be empty), `answers` and `dataset`.
//!
//! A prompt is the context, an empty line, the input, and a line that says what kind of answer the task
//! wants (`Summary:`, `Answer:`). Code is given as it is, to be continued. These are plain prompts, not the
//! wording that the paper has for each of the 21 datasets. The greatest length of an answer is the paper's.
//!
//! An answer is right if it contains one of `answers`. The paper measures summaries and code by likeness,
//! which this crate does not do, so they have no score.

use std::path::Path;

use super::json_items::{JsonItem, JsonItems};
use super::records::{Record, Records, records};
use super::{DatasetError, Expectation, Item, OutputLength, Prompt, Sample};

/// The kind of answer that a task wants.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Answer,
    Summary,
    Code,
}

/// The datasets of LongBench v1: the kind of answer that each wants, and the most tokens of an answer
/// (`dataset2maxlen`).
const DATASETS: [(&str, Kind, u32); 21] = [
    ("narrativeqa", Kind::Answer, 128),
    ("qasper", Kind::Answer, 128),
    ("multifieldqa_en", Kind::Answer, 64),
    ("multifieldqa_zh", Kind::Answer, 64),
    ("hotpotqa", Kind::Answer, 32),
    ("2wikimqa", Kind::Answer, 32),
    ("musique", Kind::Answer, 32),
    ("dureader", Kind::Answer, 128),
    ("gov_report", Kind::Summary, 512),
    ("qmsum", Kind::Summary, 512),
    ("multi_news", Kind::Summary, 512),
    ("vcsum", Kind::Summary, 512),
    ("trec", Kind::Answer, 64),
    ("triviaqa", Kind::Answer, 32),
    ("samsum", Kind::Summary, 128),
    ("lsht", Kind::Answer, 64),
    ("passage_count", Kind::Answer, 32),
    ("passage_retrieval_en", Kind::Answer, 32),
    ("passage_retrieval_zh", Kind::Answer, 32),
    ("lcc", Kind::Code, 64),
    ("repobench-p", Kind::Code, 64),
];

/// A question of LongBench, with the answers that its authors give.
#[derive(Clone, Debug, PartialEq)]
pub struct LongbenchQuestion {
    /// Its prompt, what is expected of an answer, and the most tokens of one. Its category is the dataset's name.
    pub sample: Sample,
    /// The answers.
    pub answers: Vec<String>,
}

/// The questions of a file of LongBench v1, in their order.
///
/// # Errors
///
/// The file can't be opened; an item: it is not JSON, or lacks a field. Errors name the file and the line.
pub fn longbench_questions(
    path: &Path,
) -> Result<impl Iterator<Item = Result<LongbenchQuestion, DatasetError>>, DatasetError> {
    let mut items = JsonItems::open(path, "longbench")?;
    Ok(std::iter::from_fn(move || {
        let item = items.next_item().transpose()?;
        Some(item.and_then(|item| {
            Ok(LongbenchQuestion { answers: item.texts("answers")?, sample: sample(&item)? })
        }))
    }))
}

pub(super) fn read(path: &Path) -> Result<Records, DatasetError> {
    let mut items = JsonItems::open(path, "longbench")?;
    Ok(records(move || {
        let Some(item) = items.next_item()? else { return Ok(None) };
        Ok(Some(Record { time_ns: None, item: Item::Sample(sample(&item)?) }))
    }))
}

fn sample(item: &JsonItem) -> Result<Sample, DatasetError> {
    let context = item.text("context")?;
    let input = item.text("input")?;
    let answers = item.texts("answers")?;
    let dataset = item.optional_text("dataset")?;
    // LongBench-E has the same datasets, with `_e` at the end of their names.
    let plain = dataset.map(|name| name.strip_suffix("_e").unwrap_or(name));
    let known = plain.and_then(|name| DATASETS.iter().find(|(known, ..)| *known == name));
    let kind = known.map_or(Kind::Answer, |(_, kind, _)| *kind);
    let scored = kind == Kind::Answer && !answers.is_empty();
    Ok(Sample {
        source_id: item.name("_id"),
        line: item.line,
        arrival_s: None,
        prompt: Prompt::Text(prompt(context, input, kind)),
        output: OutputLength::UntilStop(known.map(|(_, _, tokens)| *tokens)),
        expect: scored.then_some(Expectation::Contains { answers, any: true }),
        category: dataset.map(str::to_owned),
    })
}

fn prompt(context: &str, input: &str, kind: Kind) -> String {
    let question = if input.is_empty() { String::new() } else { format!("\n\n{input}") };
    match kind {
        Kind::Code => format!("{context}{input}"),
        Kind::Summary => format!("{context}{question}\n\nSummary:"),
        Kind::Answer => format!("{context}{question}\nAnswer:"),
    }
}
