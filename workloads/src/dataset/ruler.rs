//! [RULER](https://github.com/NVIDIA/RULER)'s samples: JSON lines of `index`, `input` (the prompt), `outputs` (the answers), and, in newer
//! files, `answer_prefix` (the beginning of the answer, put behind the prompt).
//!
//! Which task it is stands in a field `task`, or is taken from the file's name (`niah_multikey_3_4096.jsonl`) or its directory's
//! (`qa_1/validation.jsonl`). Question answering needs one of the answers, all other tasks need every one. The greatest length of
//! an answer is RULER's own for the task; of a task that is not known, the run's.

use std::path::Path;

use super::json_items::{JsonItem, JsonItems};
use super::records::{Record, Records, records};
use super::{DatasetError, Expectation, Item, OutputLength, Prompt, Sample};

/// How RULER's task names begin, and the tokens an answer may have (`tokens_to_generate` of its tasks).
const TASKS: [(&str, u32); 5] = [("niah", 128), ("vt", 30), ("cwe", 120), ("fwe", 50), ("qa", 32)];

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

/// The family of a task: `niah` of `niah_single_1`.
fn family_of(task: &str) -> Option<(&'static str, u32)> {
    let first = task.split(['_', '-', '.']).next().unwrap_or_default();
    TASKS.into_iter().find(|(name, _)| first.eq_ignore_ascii_case(name))
}

/// The task that a path names; of `niah_multikey_3_4096_rows001-250.jsonl`, `niah_multikey_3`.
fn task_of_path(path: &Path) -> Option<String> {
    let file = path.file_name().and_then(|n| n.to_str());
    let directory = path.parent().and_then(Path::file_name).and_then(|n| n.to_str());
    [file, directory].into_iter().flatten().find_map(|name| {
        family_of(name)?;
        let name = name.split('.').next().unwrap_or_default();
        let mut parts: Vec<&str> = Vec::new();
        for part in name.split('_') {
            let number = part.bytes().all(|b| b.is_ascii_digit());
            // A task's number has one digit and ends its name; what follows is the file's own (a length, a slice).
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
