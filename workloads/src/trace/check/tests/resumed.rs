//! Runs that were stopped and gone on with, and traces that are stored otherwise.

use serde_json::{Value, json};

use super::super::synthetic::trace;
use super::super::{Rule, check_dir};
use super::{Directory, text};
use crate::run::{LineFormat, LineReader, convert_lines};

/// The steps of one engine stopped after `stop` of them, and then all of another's, under the same names.
fn resumed(seed: u64, stop: usize) -> Vec<Value> {
    let lines = trace(seed, 8, false);
    let first = lines[stop - 1]["step"].as_u64().unwrap() + 1;
    let again = lines.iter().cloned().map(|mut line| {
        line["step"] = json!(line["step"].as_u64().unwrap() + first);
        line
    });
    let resume = json!({"event": "resume", "step": first});
    lines[..stop].iter().cloned().chain([resume]).chain(again).collect()
}

#[test]
fn a_resumed_run_begins_with_nothing_and_its_steps_go_on() {
    let directory = Directory::toy("resumed", None);
    for seed in 0..20 {
        let whole = directory.check(&trace(seed, 8, false));
        let stop = 3 + seed as usize % 7;
        let lines = resumed(seed, stop);
        let report = directory.check(&lines);
        assert_eq!(report.violation, None, "seed {seed}");
        assert_eq!(report.steps, whole.steps + stop as u64, "seed {seed}");
        assert_eq!((report.resumed, report.requests), (1, whole.requests), "seed {seed}");
        // Without a word of it, the second engine breaks what the first one left.
        let mut silent = lines.clone();
        silent.remove(stop);
        assert!(directory.check(&silent).violation.is_some(), "seed {seed}");
        // Numbers that do not go on.
        let mut back = lines;
        back[stop]["step"] = json!(0);
        let found = directory.check(&back).violation.map(|v| (v.rule, v.line));
        assert_eq!(found, Some((Rule::StepOrder, stop as u64 + 1)), "seed {seed}");
        back[stop]["step"] = json!("none");
        let found = directory.check(&back).violation.map(|v| (v.rule, v.line));
        assert_eq!(found, Some((Rule::Line, stop as u64 + 1)), "seed {seed}");
    }
}

#[test]
fn a_graph_is_one_that_was_captured() {
    let directory = Directory::toy("sizes", None);
    let mut graphs = 0;
    for seed in 0..20 {
        let lines = trace(seed, 8, false);
        let Some(at) = lines.iter().position(|line| line["mode"] == "graph") else { continue };
        graphs += 1;
        let size = lines[at]["graph_key"]["token_rows"].clone();
        directory.configure(&json!({"graph_sizes": (0..12).map(|i| 1 << i).collect::<Vec<u64>>()}));
        assert_eq!(directory.check(&lines).violation, None, "seed {seed}");
        directory.configure(&json!({"graph_sizes": [3, 7]}));
        let violation = directory.check(&lines).violation.unwrap();
        assert_eq!((violation.rule, violation.line), (Rule::Graph, at as u64 + 1), "seed {seed}");
        assert!(
            violation.what.contains(&size.to_string()) && violation.what.contains("[3, 7]"),
            "{violation}"
        );
    }
    assert!(graphs > 3, "{graphs}");
    directory.configure(&json!({"graph_sizes": "many"}));
    let error = check_dir(&directory.0).unwrap_err().to_string();
    assert!(error.contains("graph_sizes"), "{error}");
}

#[test]
fn a_trace_is_checked_in_whatever_format_it_is() {
    let directory = Directory::toy("formats", None);
    let mut lines = trace(5, 12, false);
    for broken in [false, true] {
        if broken {
            lines[9]["metadata"]["slot_mapping"][0] = json!(1 << 20);
        }
        let plain = directory.check(&lines);
        assert_eq!(plain.violation.is_some(), broken);
        let from = directory.0.join("trace_steps.jsonl");
        for format in LineFormat::ALL.into_iter().skip(1).filter(|format| format.check().is_ok()) {
            std::fs::write(&from, text(&lines)).unwrap();
            let to = format.file(&directory.0, "trace_steps");
            convert_lines(&mut LineReader::open(&from, LineFormat::Jsonl).unwrap(), &to, format).unwrap();
            std::fs::remove_file(&from).unwrap();
            assert_eq!(check_dir(&directory.0).unwrap(), plain, "{format}");
            if format == LineFormat::JsonlZst {
                let bytes = std::fs::read(&to).unwrap();
                std::fs::write(&to, &bytes[..bytes.len() - 3]).unwrap();
                assert!(broken || check_dir(&directory.0).unwrap().cut_last_line);
            }
            std::fs::remove_file(&to).unwrap();
        }
    }
}
