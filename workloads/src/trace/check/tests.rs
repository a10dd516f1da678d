mod contexts;
mod own_groups;
mod replicas;
mod resumed;
mod windows;

use std::path::PathBuf;

use serde_json::{Value, json};

use super::breaks::{BREAKS, Break, WINDOW_BREAKS};
use super::synthetic::{self, BLOCK, Dice, trace, windowed};
use super::{CheckReport, Rule, check_dir};
use crate::trace::SCHEMA_VERSION;

struct Directory(PathBuf, Value);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pagedraft-check-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        let directory = Self(path, json!({}));
        directory.configure(&json!({}));
        directory
    }

    /// One for traces of the toy engine.
    fn toy(name: &str, window: Option<usize>) -> Self {
        let mut directory = Self::new(name);
        directory.1 = synthetic::config(window);
        directory.configure(&json!({}));
        directory
    }

    fn configure(&self, more: &Value) {
        let mut config = json!({"schema_version": SCHEMA_VERSION, "block_size": BLOCK});
        for part in [&self.1, more] {
            config.as_object_mut().unwrap().extend(part.as_object().unwrap().clone());
        }
        std::fs::write(self.0.join("config.json"), config.to_string()).unwrap();
    }

    fn check_text(&self, text: &[u8]) -> CheckReport {
        std::fs::write(self.0.join("trace_steps.jsonl"), text).unwrap();
        check_dir(&self.0).unwrap()
    }

    fn check(&self, lines: &[Value]) -> CheckReport {
        self.check_text(text(lines).as_bytes())
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn random_traces_of_a_sound_engine_pass() {
    for (seed, expand) in (0..60).flat_map(|seed| [(seed, false), (seed, true)]) {
        for window in [None, Some(1), Some(16), Some(20), Some(33)] {
            let directory = Directory::toy("sound", window);
            let lines = windowed(seed, 12, expand, window);
            let report = directory.check(&lines);
            assert_eq!(report.violation, None, "seed {seed} expand {expand} window {window:?}");
            assert_eq!(report.steps, lines.len() as u64);
            assert!(report.finished >= 12 && report.requests == report.finished);
        }
    }
}

#[test]
fn tables_left_out_are_those_written_before() {
    let directory = Directory::toy("delta", None);
    let mut lines = trace(3, 10, false);
    let mut known = std::collections::HashMap::<String, Value>::new();
    let mut left_out = 0;
    for line in &mut lines {
        for id in line["preempted"].as_array().unwrap() {
            known.remove(id.as_str().unwrap());
        }
        // Rows of several tokens come first in the metadata.
        let (mut several, single): (Vec<&Value>, Vec<&Value>) =
            line["rows"].as_array().unwrap().iter().partition(|r| r["num_new"].as_u64() > Some(1));
        several.extend(single);
        let ids: Vec<String> = several.iter().map(|r| r["request_id"].as_str().unwrap().to_owned()).collect();
        for (m, id) in ids.into_iter().enumerate() {
            let table = &mut line["metadata"]["block_tables"][m];
            let before = known.insert(id, table.clone());
            if before.as_ref() == Some(table) {
                *table = if m % 2 == 0 { json!([]) } else { Value::Null };
                left_out += 1;
            }
        }
    }
    assert!(left_out > 10);
    let violation = directory.check(&lines).violation.unwrap();
    assert_eq!(violation.rule, Rule::BlockTable, "a full trace has every table: {violation}");
    directory.configure(&json!({"trace_tables": "full"}));
    assert_eq!(directory.check(&lines).violation, Some(violation));
    directory.configure(&json!({"trace_tables": "delta"}));
    assert_eq!(directory.check(&lines).violation, None);
    lines[0]["metadata"]["block_tables"][0] = json!([]);
    assert_eq!(directory.check(&lines).violation.map(|v| (v.rule, v.line)), Some((Rule::BlockTable, 1)));
}

#[test]
fn every_broken_rule_is_found_at_its_line_and_named() {
    breaks(None, BREAKS);
}

#[test]
fn every_broken_rule_of_windows_is_found_at_its_line_and_named() {
    breaks(Some(20), WINDOW_BREAKS);
}

fn breaks(window: Option<usize>, all: &[(Rule, &str, Break)]) {
    let directory = Directory::toy(&format!("broken-{window:?}"), window);
    let traces: Vec<Vec<Value>> = (0..40).map(|seed| windowed(seed, 8, false, window)).collect();
    for (i, (rule, what, apply)) in all.iter().enumerate() {
        let mut tried = 0;
        for (seed, lines) in (0..).zip(&traces) {
            let mut dice = Dice(seed + 1000 * i as u64);
            let start = dice.below(lines.len());
            let found = (start..lines.len()).find_map(|at| {
                let mut line = lines[at].clone();
                apply(&mut line, &mut dice).then_some((at, line))
            });
            let Some((at, line)) = found else { continue };
            let mut lines = lines[..=at].to_vec();
            lines[at] = line;
            let violation = directory
                .check(&lines)
                .violation
                .unwrap_or_else(|| panic!("{what}: not found, seed {seed} line {at}"));
            assert_eq!(
                (violation.rule, violation.line),
                (*rule, at as u64 + 1),
                "{what}, seed {seed}: {violation}"
            );
            assert!(violation.to_string().contains(&format!("rule `{rule}` broken at line {}", at + 1)));
            tried += 1;
        }
        assert!(tried > 5, "{what} was tried {tried} times");
    }
}

/// Request, kind (`single`: a prefill of one token), context, table, tokens emitted.
type ToyRow<'a> = (&'a str, &'a str, usize, &'a [usize], &'a [u32]);

fn step(number: u64, rows: &[ToyRow<'_>]) -> Value {
    let (mut prefills, mut prefill_len, mut decodes, mut decode_len) = (0, 0, 0, 0);
    let (mut slots, mut positions, mut query, mut start, mut lengths) =
        (vec![], vec![], vec![0], vec![0], vec![]);
    let (mut query_len, mut prefill_tokens) = (0, 0);
    let held: std::collections::HashSet<usize> = rows.iter().flat_map(|r| r.3).copied().collect();
    for (_, kind, context, table, _) in rows {
        let n = if *kind == "prefill" { BLOCK } else { 1 };
        let length = context + n;
        if n == 1 {
            decodes += 1;
            decode_len = decode_len.max(length);
        } else {
            prefills += 1;
            prefill_tokens += n;
            prefill_len = prefill_len.max(length);
        }
        query_len = query_len.max(n);
        for i in *context..length {
            positions.push(i);
            slots.push(table[i / BLOCK] * BLOCK + i % BLOCK);
        }
        query.push(positions.len());
        start.push(start[start.len() - 1] + length);
        lengths.push(length);
    }
    json!({"event": "step", "step": number, "mode": "eager",
        "rows": rows.iter().map(|r| json!({"request_id": r.0, "kind": if r.1 == "single" { "prefill" } else { r.1 }, "num_computed": r.2, "num_new": if r.1 == "prefill" { BLOCK } else { 1 }, "num_drafts": 0})).collect::<Vec<_>>(),
        "outcome": rows.iter().map(|r| json!({"request_id": r.0, "token_ids": r.4, "finish_reason": null})).collect::<Vec<_>>(),
        "input_tokens": vec![1; positions.len()], "input_positions": positions, "preempted": [], "finished": [],
        "metadata": {"num_prefills": prefills, "num_prefill_tokens": prefill_tokens, "num_decode_tokens": decodes, "slot_mapping": slots,
            "seq_lens": lengths, "context_lens": rows.iter().map(|r| r.2).collect::<Vec<_>>(), "query_start_loc": query, "seq_start_loc": start,
            "max_query_len": query_len, "max_prefill_seq_len": prefill_len, "max_decode_seq_len": decode_len,
            "block_tables": rows.iter().map(|r| r.3).collect::<Vec<_>>(), "use_cuda_graph": false},
        "pool": {"num_blocks": 10, "used": held.len(), "free": 10 - held.len(), "cached": 0}})
}

/// A first block is published, or one behind another.
fn stored(block: usize, hash: u64, parent: Option<u64>) -> Value {
    json!({"kind": "stored", "group": "kv", "block": block, "hash": hash, "parent": parent, "num_tokens": BLOCK})
}

/// A published block is forgotten.
fn removed(block: usize, hash: u64) -> Value {
    json!({"kind": "removed", "group": "kv", "block": block, "hash": hash, "parent": null, "num_tokens": 0})
}

/// Other blocks are held too, by requests without a row.
fn with_used(mut line: Value, used: u64) -> Value {
    line["pool"] = json!({"num_blocks": 10, "used": used, "free": 10 - used, "cached": 0});
    line
}

/// Free blocks are published.
fn with_cached(mut line: Value, cached: u64) -> Value {
    line["pool"]["cached"] = json!(cached);
    line
}

fn broken_rule(name: &str, lines: &[Value]) -> Option<(Rule, Option<String>, u64)> {
    let found = Directory::new(name).check(lines).violation;
    found.map(|v| (v.rule, v.request, v.line))
}

#[test]
fn a_block_of_another_request_is_not_written_even_while_that_one_rests() {
    let first = step(0, &[("a", "prefill", 0, &[3], &[]), ("b", "prefill", 0, &[4], &[])]);
    let shared = step(1, &[("c", "prefill", 0, &[3], &[])]);
    assert_eq!(
        broken_rule("rests", &[first.clone(), shared]),
        Some((Rule::SharedWrite, Some("c".to_owned()), 2))
    );
    let elsewhere = step(1, &[("b", "prefill", 16, &[4, 3], &[])]);
    assert_eq!(broken_rule("moves", &[first, elsewhere]), Some((Rule::Alias, Some("b".to_owned()), 2)));
}

#[test]
fn a_shared_prefix_is_read_but_not_written() {
    let first = step(0, &[("a", "prefill", 0, &[3], &[])]);
    let reads = step(1, &[("b", "prefill", 16, &[3, 5], &[])]);
    assert_eq!(broken_rule("reads", &[first.clone(), reads]), None);
    let elsewhere = step(1, &[("b", "prefill", 32, &[4, 3, 5], &[])]);
    assert_eq!(
        broken_rule("elsewhere", &[first.clone(), elsewhere]),
        Some((Rule::Alias, Some("b".to_owned()), 2))
    );
    let writes = step(1, &[("b", "prefill", 0, &[3], &[])]);
    assert_eq!(broken_rule("writes", &[first, writes]), Some((Rule::SharedWrite, Some("b".to_owned()), 2)));
}

#[test]
fn two_rows_that_write_one_slot_are_found() {
    let twice = step(0, &[("a", "single", 0, &[5], &[1]), ("b", "single", 0, &[5], &[1])]);
    assert_eq!(broken_rule("twice", &[twice]), Some((Rule::SlotTwice, Some("b".to_owned()), 1)));
}

#[test]
fn a_running_requests_table_changes_by_a_copy_only() {
    let first = step(0, &[("a", "prefill", 0, &[3], &[])]);
    let mut second = step(1, &[("a", "prefill", 16, &[7, 5], &[])]);
    assert_eq!(
        broken_rule("change", &[first.clone(), second.clone()]),
        Some((Rule::TableChange, Some("a".to_owned()), 2))
    );
    second["copies"] = json!([{"src": 3, "dst": 7}]);
    assert_eq!(broken_rule("copy", &[first.clone(), second.clone()]), None);
    let copies = [
        (json!([{"src": 3, "dst": 7}, {"src": 3, "dst": 7}]), "twice"),
        (json!([{"src": 3, "dst": 7}, {"src": 4, "dst": 8}]), "from nobody"),
        (json!([{"src": 3, "dst": 7}, {"src": 3, "dst": 8}]), "to nobody"),
        (json!([{"src": 3, "dst": 7}, {"src": 3, "dst": 10}]), "beyond the pool"),
        (json!([{"src": 3, "dst": 7}, {"src": 3, "dst": 3}]), "to a live block"),
    ];
    for (copies, what) in copies {
        second["copies"] = copies;
        assert_eq!(
            broken_rule("copies", &[first.clone(), second.clone()]),
            Some((Rule::Copy, None, 2)),
            "{what}"
        );
    }
    // Taken back, it has to begin again: what was in block 3 is not in block 7.
    second["copies"] = json!([]);
    second["preempted"] = json!(["a"]);
    let unwritten = Some((Rule::Unwritten, Some("a".to_owned()), 2));
    assert_eq!(broken_rule("unwritten", &[first.clone(), second]), unwritten);
    let mut again = step(1, &[("a", "prefill", 0, &[7], &[])]);
    again["preempted"] = json!(["a"]);
    assert_eq!(broken_rule("preempted", &[first, again]), None);
}

#[test]
fn what_is_read_was_written_or_copied_before() {
    let b = Some("b".to_owned());
    // A fresh request that claims tokens of a block nobody wrote; then one whose writer wrote a part of it only.
    let claims = step(0, &[("b", "prefill", 16, &[4, 3], &[])]);
    assert_eq!(broken_rule("claims", &[claims]), Some((Rule::Unwritten, b.clone(), 1)));
    let part = step(0, &[("a", "single", 0, &[4], &[])]);
    let whole = step(1, &[("b", "prefill", 16, &[4, 3], &[])]);
    assert_eq!(broken_rule("part", &[part, whole]), Some((Rule::Unwritten, b.clone(), 2)));
    // After its writer's end a full block can be hit; handed out again, it has nothing of before.
    let mut first = step(0, &[("a", "prefill", 0, &[4], &[7])]);
    first["outcome"][0]["finish_reason"] = json!("stop");
    first["kv_events"] = json!([stored(4, 11, None)]);
    first["finished"] = json!(["a"]);
    let first = with_cached(with_used(first, 0), 1);
    let hit = step(1, &[("b", "prefill", 16, &[4, 3], &[])]);
    assert_eq!(broken_rule("hit", &[first.clone(), hit.clone()]), None);
    let mut overwritten = step(1, &[("c", "single", 0, &[4], &[])]);
    let kept = Some((Rule::Published, Some("c".to_owned()), 2));
    assert_eq!(broken_rule("kept", &[first.clone(), overwritten.clone()]), kept);
    overwritten["kv_events"] = json!([removed(4, 11)]);
    let mut late = with_used(hit, 2);
    late["step"] = json!(2);
    assert_eq!(broken_rule("late", &[first, overwritten, late]), Some((Rule::Unwritten, b, 3)));
}

#[test]
fn the_pool_is_the_configurations_and_empty_when_nobody_runs() {
    let mut line = step(0, &[("a", "prefill", 0, &[4], &[7])]);
    let directory = Directory::new("pool");
    directory.configure(&json!({"num_blocks": 10, "trace_tables": null}));
    let report = directory.check(std::slice::from_ref(&line));
    assert_eq!((report.violation, report.blocks_held), (None, 1));
    directory.configure(&json!({"num_blocks": 11}));
    assert_eq!(directory.check(std::slice::from_ref(&line)).violation.unwrap().rule, Rule::Pool);
    directory.configure(&json!({}));
    line["outcome"][0]["finish_reason"] = json!("length");
    line["finished"] = json!(["a"]);
    let violation = directory.check(std::slice::from_ref(&line)).violation.unwrap();
    assert_eq!((violation.rule, violation.line), (Rule::Pool, 1));
    let report = directory.check(&[with_used(line, 0)]);
    assert_eq!((report.violation, report.blocks_held), (None, 0));
}

#[test]
fn requests_that_ended_stay_away() {
    let mut first = step(0, &[("a", "prefill", 0, &[3], &[])]);
    let second = step(1, &[("a", "prefill", 16, &[3, 5], &[])]);
    let going_on = first.clone();
    first["outcome"][0]["finish_reason"] = json!("stop");
    first["finished"] = json!(["a"]);
    let first = with_used(first, 0);
    assert_eq!(
        broken_rule("ended", &[first.clone(), second.clone()]),
        Some((Rule::FinishedAgain, Some("a".to_owned()), 2))
    );
    let mut aborted = step(1, &[("b", "prefill", 0, &[3], &[])]);
    aborted["finished"] = json!(["a"]);
    let mut third = second;
    third["step"] = json!(2);
    assert_eq!(
        broken_rule("aborted", &[going_on, aborted, third]),
        Some((Rule::FinishedAgain, Some("a".to_owned()), 3))
    );
}

#[test]
fn further_groups_are_derived_from_their_own_tables_and_indices() {
    let mut line = step(0, &[("a", "single", 0, &[3], &[1]), ("b", "single", 0, &[4], &[1])]);
    line["groups"] = json!({"pruned": {"slot_mapping": [9 * BLOCK + 2, -1], "seq_lens": [3, 2], "context_lens": [2, 2],
        "block_tables": [[9], [8]], "kv_index": [2, -1]}});
    assert_eq!(broken_rule("groups", std::slice::from_ref(&line)), None);
    line["groups"]["pruned"]["slot_mapping"][0] = json!(9 * BLOCK + 3);
    assert_eq!(broken_rule("groups", &[line]), Some((Rule::Slot, Some("a".to_owned()), 1)));
}

#[test]
fn a_killed_process_leaves_a_trace_that_passes() {
    let directory = Directory::toy("killed", None);
    let lines = trace(5, 6, false);
    let text = text(&lines);
    let ends: Vec<usize> = text.match_indices('\n').map(|(i, _)| i + 1).collect();
    let mut dice = Dice(7);
    for _ in 0..40 {
        let cut = dice.below(text.len());
        let report = directory.check_text(&text.as_bytes()[..cut]);
        assert_eq!(report.violation, None, "cut at {cut}");
        assert_eq!(report.steps, ends.iter().filter(|&&end| end <= cut).count() as u64);
        assert_eq!(report.cut_last_line, cut > 0 && !ends.contains(&cut));
    }
}

#[test]
fn a_malformed_line_in_the_middle_is_named_by_its_number() {
    let directory = Directory::toy("malformed", None);
    let mut text = text(&trace(5, 3, false));
    let second = text.find('\n').unwrap() + 1;
    text.insert_str(second, "{\"event\": \"step\", \"step\": 7,\n");
    let violation = directory.check_text(text.as_bytes()).violation.unwrap();
    assert_eq!((violation.rule, violation.line), (Rule::Line, 2));
    let violation = directory.check_text(b"\xff\xfe\n").violation.unwrap();
    assert_eq!((violation.rule, violation.line), (Rule::Line, 1));
}

#[test]
fn other_events_are_counted_and_left_alone() {
    let directory = Directory::toy("others", None);
    let mut lines = trace(5, 3, false);
    lines.insert(1, json!({"event": "dsa_topk", "step": 0, "layer": 3}));
    let report = directory.check(&lines);
    assert_eq!((report.violation, report.other_events), (None, 1));
}

#[test]
fn huge_numbers_are_violations_and_not_panics() {
    let directory = Directory::toy("huge", None);
    let sound = trace(5, 2, false);
    let numbers =
        ["context_lens", "seq_lens", "query_start_loc", "seq_start_loc", "slot_mapping", "num_prefills"];
    for name in numbers {
        for value in [json!(u64::MAX), json!(i64::MAX), json!(u64::MAX / 2), json!(-1)] {
            let mut lines = sound.clone();
            let field = &mut lines[0]["metadata"][name];
            if field.is_array() {
                field[0] = value
            } else {
                *field = value
            }
            assert!(directory.check(&lines).violation.is_some(), "{name}");
        }
    }
    for name in ["num_computed", "num_new", "num_drafts"] {
        let mut lines = sound.clone();
        lines[0]["rows"][0][name] = json!(u32::MAX);
        assert!(directory.check(&lines).violation.is_some(), "{name}");
    }
    let mut lines = sound;
    lines[0]["pool"] = json!({"num_blocks": 1, "used": u64::MAX, "free": 2, "cached": 0});
    assert_eq!(directory.check(&lines).violation.unwrap().rule, Rule::Pool);
}

#[test]
fn a_directory_without_a_trace_is_an_error_that_names_the_file() {
    let directory = Directory::new("none");
    assert!(check_dir(&directory.0).unwrap_err().to_string().contains("trace_steps.jsonl"));
    for (config, what) in [
        ("{}", "block_size"),
        ("[", "not JSON"),
        ("{\"block_size\": 17}", "block_size is 17"),
        ("{\"block_size\": 16, \"num_blocks\": \"x\"}", "num_blocks"),
        ("{\"block_size\": 16, \"trace_tables\": \"some\"}", "trace_tables"),
        ("{\"schema_version\": 99, \"block_size\": 16}", "schema_version"),
    ] {
        std::fs::write(directory.0.join("config.json"), config).unwrap();
        let error = check_dir(&directory.0).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains(what), "{error}");
    }
    assert!(check_dir(&directory.0.join("nowhere")).unwrap_err().to_string().contains("nowhere"));
}
