use std::path::PathBuf;

use serde_json::{Value, json};

use super::synthetic::{BLOCK, BLOCKS, Dice, trace};
use super::{CheckReport, Rule, check_dir};

struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pagedraft-check-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::write(
            path.join("config.json"),
            format!("{{\"schema_version\": 1, \"block_size\": {BLOCK}}}"),
        )
        .unwrap();
        Self(path)
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
    let directory = Directory::new("sound");
    for seed in 0..60 {
        for expand in [false, true] {
            let lines = trace(seed, 12, expand);
            let report = directory.check(&lines);
            assert_eq!(report.violation, None, "seed {seed} expand {expand}");
            assert_eq!(report.steps, lines.len() as u64);
            assert!(report.finished >= 12 && report.requests == report.finished);
        }
    }
}

#[test]
fn tables_left_out_are_those_written_before() {
    let directory = Directory::new("delta");
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
    assert_eq!(directory.check(&lines).violation, None);
}

/// Breaks something in a line of a sound trace; false when the line has nothing of the kind.
type Break = fn(&mut Value, &mut Dice) -> bool;

fn rows(line: &Value) -> &Vec<Value> {
    line["rows"].as_array().unwrap()
}

fn add(value: &mut Value, n: i64) -> bool {
    *value = json!(value.as_i64().unwrap() + n);
    true
}

fn row_of_kind(line: &Value, kind: &str) -> Option<usize> {
    rows(line).iter().position(|r| r["kind"] == kind)
}

/// A step of one decode row, of a request that isn't a fork (whose first row may start anywhere, with any token).
fn known_decode_alone(line: &Value) -> bool {
    let fork = |row: &Value| row["request_id"].as_str().unwrap().contains('/');
    rows(line).len() == 1 && rows(line)[0]["kind"] == "decode" && !fork(&rows(line)[0])
}

const BREAKS: &[(Rule, &str, Break)] = &[
    (Rule::Line, "a field is gone", |l, _| {
        l["metadata"].as_object_mut().unwrap().remove("seq_lens").is_some()
    }),
    (Rule::StepOrder, "a step number comes again", |l, _| {
        l["step"].as_u64() > Some(1) && add(&mut l["step"], -2)
    }),
    (Rule::PlanRows, "a request has two rows", |l, _| {
        let (rows, outcome) = (l["rows"][0].clone(), l["outcome"][0].clone());
        l["rows"].as_array_mut().unwrap().push(rows);
        l["outcome"].as_array_mut().unwrap().push(outcome);
        true
    }),
    (Rule::Outcome, "an outcome is missing", |l, _| l["outcome"].as_array_mut().unwrap().pop().is_some()),
    (Rule::Outcome, "more accepted than drafted", |l, _| {
        l["outcome"][0]["num_accepted"] = json!(9);
        true
    }),
    (Rule::Outcome, "outcomes in another order", |l, _| {
        let outcome = l["outcome"].as_array_mut().unwrap();
        outcome.reverse();
        outcome.len() > 1
    }),
    (Rule::MetadataRows, "a plan row says another length", |l, _| {
        row_of_kind(l, "prefill").is_some_and(|r| add(&mut l["rows"][r]["num_new"], 1))
    }),
    (Rule::Lengths, "a seq_len is off", |l, _| add(&mut l["metadata"]["seq_lens"][0], 1)),
    (Rule::Lengths, "a seq_start_loc is off", |l, _| add(&mut l["metadata"]["seq_start_loc"][1], 1)),
    (Rule::Lengths, "a slot too few", |l, _| {
        l["metadata"]["slot_mapping"].as_array_mut().unwrap().pop().is_some()
    }),
    (Rule::Counts, "num_prefills", |l, _| add(&mut l["metadata"]["num_prefills"], 1)),
    (Rule::Counts, "num_prefill_tokens", |l, _| add(&mut l["metadata"]["num_prefill_tokens"], 1)),
    (Rule::Counts, "num_decode_tokens", |l, _| add(&mut l["metadata"]["num_decode_tokens"], 1)),
    (Rule::Counts, "max_query_len", |l, _| add(&mut l["metadata"]["max_query_len"], 1)),
    (Rule::Counts, "max_prefill_seq_len", |l, _| add(&mut l["metadata"]["max_prefill_seq_len"], 1)),
    (Rule::Counts, "max_decode_seq_len", |l, _| add(&mut l["metadata"]["max_decode_seq_len"], 1)),
    (Rule::Counts, "a graph in an eager step", |l, _| {
        l["metadata"]["use_cuda_graph"] = json!(true);
        true
    }),
    (Rule::Positions, "a position is off", |l, d| {
        let n = l["input_positions"].as_array().unwrap().len();
        add(&mut l["input_positions"][d.below(n)], 1)
    }),
    (Rule::BlockTable, "a block beyond the pool", |l, _| {
        l["metadata"]["block_tables"][0][0] = json!(BLOCKS);
        true
    }),
    (Rule::BlockTable, "a table too short", |l, _| {
        l["metadata"]["block_tables"][0].as_array_mut().unwrap().pop().is_some()
            && l["metadata"]["block_tables"][0] != json!([])
    }),
    (Rule::Slot, "a slot is off", |l, d| {
        let n = l["input_positions"].as_array().unwrap().len();
        add(&mut l["metadata"]["slot_mapping"][d.below(n)], 1)
    }),
    (Rule::Slot, "a slot is nowhere", |l, _| {
        l["metadata"]["slot_mapping"][0] = json!(-1);
        true
    }),
    (Rule::Growth, "a row starts too late", |l, _| {
        let fits = known_decode_alone(l) && l["preempted"] == json!([]);
        let m = &l["metadata"];
        let context = m["context_lens"][0].as_i64().unwrap();
        if !fits || (context + 1) % BLOCK as i64 == 0 {
            return false;
        }
        for path in [
            "/rows/0/num_computed",
            "/input_positions/0",
            "/metadata/slot_mapping/0",
            "/metadata/seq_lens/0",
            "/metadata/context_lens/0",
            "/metadata/seq_start_loc/1",
            "/metadata/max_decode_seq_len",
        ] {
            add(l.pointer_mut(path).unwrap(), 1);
        }
        true
    }),
    (Rule::Tokens, "a decode row feeds another token", |l, _| {
        known_decode_alone(l) && add(&mut l["input_tokens"][0], 1)
    }),
    (Rule::Tokens, "a decode row gives nothing and goes on", |l, _| {
        let Some(r) = row_of_kind(l, "decode") else { return false };
        l["outcome"][r]["token_ids"] = json!([]);
        l["outcome"][r]["finish_reason"] == Value::Null
    }),
    (Rule::Tokens, "a verify row gives less than it accepted", |l, _| {
        let Some(r) = row_of_kind(l, "verify") else { return false };
        let popped = l["outcome"][r]["token_ids"].as_array_mut().unwrap().pop();
        popped.is_some() && l["outcome"][r]["finish_reason"] == Value::Null
    }),
    (Rule::Pool, "used + free is another number", |l, _| add(&mut l["pool"]["free"], 1)),
    (Rule::Pool, "more cached than free", |l, _| {
        l["pool"]["cached"] = json!(BLOCKS + 1);
        true
    }),
    (Rule::Pool, "the pool grew", |l, _| {
        l["step"] != json!(0) && add(&mut l["pool"]["free"], 1) && add(&mut l["pool"]["num_blocks"], 1)
    }),
    (Rule::Pool, "tables hold more than is used", |l, _| {
        let used = l["pool"]["used"].as_i64().unwrap();
        used > 0
            && l["copies"] == json!([])
            && add(&mut l["pool"]["free"], used)
            && add(&mut l["pool"]["used"], -used)
    }),
];

#[test]
fn every_broken_rule_is_found_at_its_line_and_named() {
    let directory = Directory::new("broken");
    for (i, (rule, what, apply)) in BREAKS.iter().enumerate() {
        let mut tried = 0;
        for seed in 0..40 {
            let lines = trace(seed, 8, false);
            let mut dice = Dice(seed + 1000 * i as u64);
            let start = dice.below(lines.len());
            let found = (start..lines.len()).find_map(|at| {
                let mut line = lines[at].clone();
                apply(&mut line, &mut dice).then_some((at, line))
            });
            let Some((at, line)) = found else { continue };
            let mut lines = lines;
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

/// Request, kind, context, table, tokens emitted.
type ToyRow<'a> = (&'a str, &'a str, usize, &'a [usize], &'a [u32]);

fn step(number: u64, rows: &[ToyRow<'_>]) -> Value {
    let (mut prefills, mut prefill_len, mut decodes, mut decode_len) = (0, 0, 0, 0);
    let (mut slots, mut positions, mut query, mut start, mut lengths) =
        (vec![], vec![], vec![0], vec![0], vec![]);
    let (mut query_len, mut prefill_tokens) = (0, 0);
    for (_, kind, context, table, _) in rows {
        let n = if *kind == "decode" { 1 } else { BLOCK };
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
        "rows": rows.iter().map(|r| json!({"request_id": r.0, "kind": r.1, "num_computed": r.2, "num_new": if r.1 == "decode" { 1 } else { BLOCK }, "num_drafts": 0})).collect::<Vec<_>>(),
        "outcome": rows.iter().map(|r| json!({"request_id": r.0, "token_ids": r.4, "finish_reason": null})).collect::<Vec<_>>(),
        "input_tokens": vec![1; positions.len()], "input_positions": positions, "preempted": [], "finished": [],
        "metadata": {"num_prefills": prefills, "num_prefill_tokens": prefill_tokens, "num_decode_tokens": decodes, "slot_mapping": slots,
            "seq_lens": lengths, "context_lens": rows.iter().map(|r| r.2).collect::<Vec<_>>(), "query_start_loc": query, "seq_start_loc": start,
            "max_query_len": query_len, "max_prefill_seq_len": prefill_len, "max_decode_seq_len": decode_len,
            "block_tables": rows.iter().map(|r| r.3).collect::<Vec<_>>(), "use_cuda_graph": false},
        "pool": {"num_blocks": 10, "used": 6, "free": 4, "cached": 0}})
}

fn broken_rule(name: &str, lines: &[Value]) -> Option<(Rule, Option<String>, u64)> {
    let found = Directory::new(name).check(lines).violation;
    found.map(|v| (v.rule, v.request, v.line))
}

#[test]
fn a_block_of_another_request_is_not_written_even_while_that_one_rests() {
    let first = step(0, &[("a", "prefill", 0, &[3], &[]), ("b", "prefill", 0, &[4], &[])]);
    let shared = step(1, &[("b", "prefill", 16, &[4, 3], &[])]);
    assert_eq!(broken_rule("rests", &[first, shared]), Some((Rule::SharedWrite, Some("b".to_owned()), 2)));
}

#[test]
fn a_shared_prefix_is_read_but_not_written() {
    let first = step(0, &[("a", "prefill", 0, &[3], &[])]);
    let reads = step(1, &[("b", "prefill", 16, &[3, 5], &[])]);
    assert_eq!(broken_rule("reads", &[first.clone(), reads]), None);
    let writes = step(1, &[("b", "prefill", 0, &[3], &[])]);
    assert_eq!(broken_rule("writes", &[first, writes]), Some((Rule::SharedWrite, Some("b".to_owned()), 2)));
}

#[test]
fn two_rows_that_write_one_slot_are_found() {
    let twice = step(0, &[("a", "decode", 16, &[3, 5], &[1]), ("b", "decode", 16, &[4, 5], &[1])]);
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
    second["copies"] = json!([]);
    second["preempted"] = json!(["a"]);
    assert_eq!(broken_rule("preempted", &[first, second]), None);
}

#[test]
fn requests_that_ended_stay_away() {
    let mut first = step(0, &[("a", "prefill", 0, &[3], &[])]);
    let second = step(1, &[("a", "prefill", 16, &[3, 5], &[])]);
    first["outcome"][0]["finish_reason"] = json!("stop");
    assert_eq!(
        broken_rule("ended", &[first.clone(), second.clone()]),
        Some((Rule::FinishedAgain, Some("a".to_owned()), 2))
    );
    first["outcome"][0]["finish_reason"] = Value::Null;
    let mut aborted = step(1, &[("b", "prefill", 0, &[3], &[])]);
    aborted["finished"] = json!(["a"]);
    let mut third = second;
    third["step"] = json!(2);
    assert_eq!(
        broken_rule("aborted", &[first, aborted, third]),
        Some((Rule::FinishedAgain, Some("a".to_owned()), 3))
    );
}

#[test]
fn further_groups_are_derived_from_their_own_tables_and_indices() {
    let mut line = step(0, &[("a", "decode", 16, &[3, 5], &[1]), ("b", "decode", 16, &[4, 6], &[1])]);
    line["groups"] = json!({"pruned": {"slot_mapping": [9 * BLOCK + 2, -1], "seq_lens": [3, 2], "context_lens": [2, 2],
        "block_tables": [[9], [8]], "kv_index": [2, -1]}});
    assert_eq!(broken_rule("groups", std::slice::from_ref(&line)), None);
    line["groups"]["pruned"]["slot_mapping"][0] = json!(9 * BLOCK + 3);
    assert_eq!(broken_rule("groups", &[line]), Some((Rule::Slot, Some("a".to_owned()), 1)));
}

#[test]
fn a_killed_process_leaves_a_trace_that_passes() {
    let directory = Directory::new("killed");
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
    let directory = Directory::new("malformed");
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
    let directory = Directory::new("others");
    let mut lines = trace(5, 3, false);
    lines.insert(1, json!({"event": "dsa_topk", "step": 0, "layer": 3}));
    let report = directory.check(&lines);
    assert_eq!((report.violation, report.other_events), (None, 1));
}

#[test]
fn huge_numbers_are_violations_and_not_panics() {
    let directory = Directory::new("huge");
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
        ("[", "no JSON"),
        ("{\"schema_version\": 99, \"block_size\": 16}", "schema_version"),
    ] {
        std::fs::write(directory.0.join("config.json"), config).unwrap();
        let error = check_dir(&directory.0).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains(what), "{error}");
    }
    assert!(check_dir(&directory.0.join("nowhere")).unwrap_err().to_string().contains("nowhere"));
}
