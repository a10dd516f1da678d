//! What requests start with, and which drafts stand.

use serde_json::{Value, json};

use super::{Directory, Rule, broken_rule, step, stored, text, trace, with_cached, with_used};

fn publishing(mut line: Value, row: usize, block: usize) -> Value {
    let mut events = line["kv_events"].as_array().cloned().unwrap_or_default();
    events.push(stored(block, 100 + row as u64, None));
    line["kv_events"] = json!(events);
    line
}

#[test]
fn a_request_starts_with_published_blocks_or_those_of_a_running_parent() {
    let mut first = step(0, &[("a", "prefill", 0, &[4], &[7])]);
    first["outcome"][0]["finish_reason"] = json!("stop");
    first["finished"] = json!(["a"]);
    let first = with_used(first, 0);
    let hit = step(1, &[("b", "prefill", 16, &[4, 3], &[])]);
    let found = broken_rule("unpublished-hit", &[first.clone(), hit.clone()]);
    assert_eq!(found, Some((Rule::Context, Some("b".to_owned()), 2)));
    let published = with_cached(publishing(first, 0, 4), 1);
    assert_eq!(broken_rule("published-hit", &[published, hit.clone()]), None);
    let parent = step(0, &[("a", "prefill", 0, &[4], &[7])]);
    assert_eq!(broken_rule("parent", &[parent, hit]), None);
}

#[test]
fn a_preempted_request_finds_its_own_tokens_again() {
    let mut first = step(0, &[("a", "prefill", 0, &[3], &[]), ("b", "prefill", 0, &[4], &[])]);
    for t in 16..32 {
        first["input_tokens"][t] = json!(2);
    }
    let first = publishing(publishing(first, 0, 3), 1, 4);
    let resumed = |table| {
        let mut line = step(1, &[("a", "prefill", 16, table, &[])]);
        line["preempted"] = json!(["a"]);
        with_used(line, if table[0] == 3 { 3 } else { 2 })
    };
    assert_eq!(broken_rule("own", &[first.clone(), resumed(&[3, 5])]), None);
    let found = broken_rule("others", &[first, resumed(&[4, 5])]);
    assert_eq!(found, Some((Rule::Context, Some("a".to_owned()), 2)));
}

#[test]
fn publications_that_are_not_told_are_missed_when_somebody_hits_them() {
    let mut missed = 0;
    for seed in 0..20 {
        let mut lines = trace(seed, 12, false);
        for line in &mut lines {
            line["kv_events"] = json!([]);
        }
        let violation = Directory::toy("untold", None).check(&lines).violation;
        missed += usize::from(violation.is_some_and(|v| v.rule == Rule::Context));
    }
    assert!(missed > 5, "{missed} of 20");
}

#[test]
fn a_right_draft_may_be_rejected_unless_acceptance_is_coupled() {
    let directory = Directory::toy("rules", None);
    let mut tried = 0;
    for seed in 0..10 {
        let mut lines = trace(seed, 8, false);
        for line in &mut lines {
            line["groups"] = Value::Null;
            if let Some(events) = line.get_mut("kv_events").and_then(Value::as_array_mut) {
                events.retain(|event| event["group"] == "kv");
            }
            tried += usize::from(super::super::breaks::accept_less(line));
        }
        for (config, rule) in [
            (json!({}), Some(Rule::Acceptance)),
            (json!({"acceptance": "coupled"}), Some(Rule::Acceptance)),
            (json!({"acceptance": "rejection"}), None),
            (json!({"acceptance": "typical"}), None),
        ] {
            directory.configure(&config);
            let violation = directory.check_text(text(&lines).as_bytes()).violation;
            assert_eq!(violation.as_ref().map(|v| v.rule), rule, "seed {seed} {config}: {violation:?}");
        }
    }
    assert!(tried > 20);
}

#[test]
fn a_block_is_published_behind_its_parent_and_never_before() {
    let first = step(0, &[("a", "prefill", 0, &[3], &[])]);
    let second = |parent| {
        let mut line = step(1, &[("a", "prefill", 16, &[3, 5], &[])]);
        line["kv_events"] = json!([stored(5, 12, parent)]);
        line
    };
    let published = publishing(first.clone(), 0, 3);
    assert_eq!(broken_rule("behind", &[published.clone(), second(Some(100))]), None);
    let found = Some((Rule::Published, Some("a".to_owned()), 2));
    assert_eq!(broken_rule("before", &[first, second(Some(100))]), found);
    assert_eq!(broken_rule("of-another", &[published.clone(), second(Some(101))]), found);
    assert_eq!(broken_rule("of-none", &[published, second(None)]), found);
}
