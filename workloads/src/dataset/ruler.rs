//! [RULER](https://github.com/NVIDIA/RULER)'s samples: JSON lines with the fields `index`, `input` (the
//! prompt), `outputs` (the answers) and, in newer files, `answer_prefix` (the beginning of the answer,
//! which is appended to the prompt).
//!
//! The task is named by a field `task`, by the file (`niah_multikey_3_4096.jsonl`) or by its directory
//! (`qa_1/validation.jsonl`). Question answering needs one of the answers, all other tasks need every one.
//! The greatest length of an answer is RULER's own for the task; for an unknown task it is the run's.

use std::path::Path;

use super::json_items::{JsonItem, JsonItems};
use super::records::{Record, Records, records};
use super::{DatasetError, Expectation, Item, OutputLength, Prompt, Sample};

/// How RULER's task names begin, and the most tokens of an answer (`tokens_to_generate` of the task).
const TASKS: [(&str, u32); 5] = [("niah", 128), ("vt", 30), ("cwe", 120), ("fwe", 50), ("qa", 32)];

/// The samples of a file of RULER, in their order.
///
/// # Errors
///
/// The file can't be opened; an item: it is not JSON, or lacks a field. Errors name the file and the line.
pub fn ruler_questions(
    path: &Path,
) -> Result<impl Iterator<Item = Result<Sample, DatasetError>>, DatasetError> {
    let mut items = JsonItems::open(path, "ruler")?;
    let from_path = task_of_path(path);
    Ok(std::iter::from_fn(move || {
        let item = items.next_item().transpose()?;
        Some(item.and_then(|item| sample(&item, from_path.as_deref())))
    }))
}

pub(super) fn read(path: &Path) -> Result<Records, DatasetError> {
    let mut items = JsonItems::open(path, "ruler")?;
    let from_path = task_of_path(path);
    Ok(records(move || {
        let Some(item) = items.next_item()? else { return Ok(None) };
        Ok(Some(Record { time_ns: None, item: Item::Sample(sample(&item, from_path.as_deref())?) }))
    }))
}

fn sample(item: &JsonItem, from_path: Option<&str>) -> Result<Sample, DatasetError> {
    let answers = item.texts("outputs")?;
    if answers.is_empty() {
        return Err(item.error("field `outputs` is an empty list; expected the answers"));
    }
    let mut prompt = item.text("input")?.to_owned();
    prompt.push_str(item.optional_text("answer_prefix")?.unwrap_or(""));
    let task = item.optional_text("task")?.or(from_path);
    let family = task.and_then(family_of);
    Ok(Sample {
        source_id: item.name("index"),
        line: item.line,
        arrival_s: None,
        prompt: Prompt::Text(prompt),
        output: OutputLength::UntilStop(family.map(|(_, tokens)| tokens)),
        expect: Some(Expectation::Contains { answers, any: family.is_some_and(|(name, _)| name == "qa") }),
        category: task.map(str::to_owned),
    })
}

/// The family of a task, such as `niah` for `niah_single_1`, and the most tokens of an answer.
fn family_of(task: &str) -> Option<(&'static str, u32)> {
    let first = task.split(['_', '-', '.']).next().unwrap_or_default();
    TASKS.into_iter().find(|(name, _)| first.eq_ignore_ascii_case(name))
}

/// The task that a path names, such as `niah_multikey_3` for `niah_multikey_3_4096_rows001-250.jsonl`.
fn task_of_path(path: &Path) -> Option<String> {
    let file = path.file_name().and_then(|n| n.to_str());
    let directory = path.parent().and_then(Path::file_name).and_then(|n| n.to_str());
    [file, directory].into_iter().flatten().find_map(|name| {
        family_of(name)?;
        let name = name.split('.').next().unwrap_or_default();
        let mut parts: Vec<&str> = Vec::new();
        for part in name.split('_') {
            let number = part.bytes().all(|b| b.is_ascii_digit());
            // A task's number has one digit and ends its name. What follows belongs to the file, such as a
            // length or a slice.
            if number && part.len() > 1 || part.bytes().any(|b| b.is_ascii_digit()) && !number {
                break;
            }
            parts.push(part);
            if number {
                break;
            }
        }
        Some(parts.join("_"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_its_task() {
        for (path, task) in [
            ("a/niah_multikey_3_4096_rows001-250.jsonl", Some("niah_multikey_3")),
            ("qa_1/validation.jsonl", Some("qa_1")),
            ("4096/vt.jsonl.gz", Some("vt")),
            ("4096/cwe_8192.jsonl", Some("cwe")),
            ("4096/validation.jsonl", None),
            ("quality.jsonl", None),
        ] {
            assert_eq!(task_of_path(Path::new(path)).as_deref(), task, "{path}");
        }
        assert_eq!(family_of("QA_2"), Some(("qa", 32)));
    }
}
