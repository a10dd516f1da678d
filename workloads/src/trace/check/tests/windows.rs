//! Groups that share the pool, one of them with a sliding window: what is caught and what is not.

use serde_json::{Value, json};

use super::{BLOCK, Directory, Rule, step};

const WINDOW: usize = 16;

/// The tables of the windowed group beside those of the full one, and what both use after the step.
fn grouped(mut line: Value, tables: &[&[i64]], used: [u64; 2]) -> Value {
    let meta = line["metadata"].clone();
    let number = |list: &Value, i: usize| list[i].as_u64().unwrap() as usize;
    let mut slots = Vec::new();
    for (m, table) in tables.iter().enumerate() {
        for i in number(&meta["context_lens"], m)..number(&meta["seq_lens"], m) {
            slots.push(table[i / BLOCK] * BLOCK as i64 + (i % BLOCK) as i64);
        }
    }
    let part = |slots: &Value, tables: &Value| {
        json!({"slot_mapping": slots, "seq_lens": meta["seq_lens"], "context_lens": meta["context_lens"],
            "block_tables": tables, "kv_index": null})
    };
    let mut windowed = part(&json!(slots), &json!(tables));
    windowed["window"] = json!(WINDOW);
    line["groups"] = json!({"full": part(&meta["slot_mapping"], &meta["block_tables"]), "window": windowed});
    count(line, used)
}

fn count(mut line: Value, used: [u64; 2]) -> Value {
    let all = used[0] + used[1];
    let group = |used: u64| json!({"used": used, "cached": 0, "block_bytes": 64});
    line["pool"] = json!({"num_blocks": 20, "used": all, "free": 20 - all, "cached": 0, "bytes_total": 1280,
        "bytes_used": 64 * all, "bytes_free": 1280 - 64 * all, "bytes_cached": 0,
        "by_group": {"full": group(used[0]), "window": group(used[1])}});
    line
}

fn rule(lines: &[Value]) -> Option<(Rule, u64)> {
    let mut directory = Directory::new("groups");
    directory.1 = json!({"kv_groups": [{"name": "full"}, {"name": "window", "window": WINDOW}]});
    directory.configure(&json!({}));
    directory.check(lines).violation.map(|v| (v.rule, v.line))
}

/// A prompt in three pieces of 16 tokens.
fn pieces() -> [Value; 3] {
    [
        grouped(step(0, &[("a", "prefill", 0, &[3], &[])]), &[&[4]], [1, 1]),
        grouped(step(1, &[("a", "prefill", 16, &[3, 5], &[])]), &[&[4, 6]], [2, 1]),
        grouped(step(2, &[("a", "prefill", 32, &[3, 5, 7], &[])]), &[&[-1, 6, 4]], [3, 1]),
    ]
}

#[test]
fn blocks_behind_the_window_are_given_back_and_used_again() {
    assert_eq!(rule(&pieces()), None);
    let [first, second, third] = pieces();
    let kept = count(second.clone(), [2, 2]);
    assert_eq!(rule(&[first.clone(), kept]), Some((Rule::Pool, 2)), "block 4 is nobody's after the step");
    let mut held = third.clone();
    held["groups"]["window"]["block_tables"][0][0] = json!(4);
    assert_eq!(rule(&[first.clone(), second.clone(), held]), Some((Rule::Window, 3)));
    let mut lost = third;
    lost["groups"]["window"]["block_tables"][0][1] = json!(-1);
    assert_eq!(rule(&[first, second, lost]), Some((Rule::Window, 3)));
}

#[test]
fn the_group_of_the_metadata_is_written_twice_and_both_are_one() {
    let [first, ..] = pieces();
    for (field, value) in [("seq_lens", json!([17])), ("block_tables", json!([[8]])), ("window", json!(5))] {
        let mut other = first.clone();
        other["groups"]["full"][field] = value;
        assert_eq!(rule(&[other]), Some((Rule::Lengths, 1)), "{field}");
    }
    let mut other = first;
    other["groups"]["window"]["window"] = json!(17);
    assert_eq!(rule(&[other]), Some((Rule::Window, 1)));
}

#[test]
fn blocks_of_two_groups_share_no_bytes() {
    let line = step(0, &[("a", "prefill", 0, &[3], &[])]);
    assert_eq!(rule(&[grouped(line.clone(), &[&[4]], [1, 1])]), None);
    assert_eq!(rule(&[grouped(line, &[&[3]], [1, 1])]), Some((Rule::Pool, 1)));
}

#[test]
fn what_a_windowed_group_reads_was_written_in_that_group() {
    let [first, second, third] = pieces();
    let mut elsewhere = third.clone();
    elsewhere["groups"]["window"]["block_tables"][0][1] = json!(9);
    assert_eq!(rule(&[first.clone(), second.clone(), elsewhere]), Some((Rule::TableChange, 3)));
    let mut anew = third;
    anew["preempted"] = json!(["a"]);
    assert_eq!(
        rule(&[first, second, anew]),
        Some((Rule::Context, 3)),
        "it lost what it had, and nothing was published"
    );
}

fn stored(group: &str, block: usize, hash: u64, parent: Option<u64>) -> Value {
    json!({"kind": "stored", "group": group, "block": block, "hash": hash, "parent": parent, "num_tokens": BLOCK})
}

/// `a` has published all it computed; then `b`, of the same tokens, hits 32 of them in the full group and 16 in the other,
/// of which the second block was lost since. Its tokens 16 to 31 are computed again and stored in that group alone.
fn more_in_one_group() -> Vec<Value> {
    let [mut first, mut second, _] = pieces();
    first["kv_events"] = json!([stored("full", 3, 11, None), stored("window", 4, 11, None)]);
    second["kv_events"] = json!([stored("full", 5, 12, Some(11)), stored("window", 6, 12, Some(11))]);
    let mut b = grouped(step(2, &[("b", "prefill", 16, &[3, 5], &[])]), &[&[4, 8]], [2, 2]);
    for slots in ["/metadata/slot_mapping", "/groups/full/slot_mapping"] {
        *b.pointer_mut(slots).unwrap() = json!(vec![-1; BLOCK]);
    }
    b["kv_events"] = json!([stored("window", 8, 12, Some(11))]);
    // Block 4 of the windowed group is behind the window of both, and can be hit.
    for line in [&mut second, &mut b] {
        line["pool"]["by_group"]["window"]["cached"] = json!(1);
        line["pool"]["cached"] = json!(1);
        line["pool"]["bytes_cached"] = json!(64);
    }
    vec![first, second, b]
}

#[test]
fn a_group_may_hit_more_than_the_others_and_is_not_written_there() {
    assert_eq!(rule(&more_in_one_group()), None);
    let mut unpublished = more_in_one_group();
    unpublished[2]["kv_events"] = json!([{"kind": "removed", "group": "full", "block": 5, "hash": 12}]);
    assert_eq!(rule(&unpublished), None, "it is a running request's still");
    let mut lost = more_in_one_group();
    lost[1]["kv_events"].as_array_mut().unwrap().remove(0);
    lost[2]["preempted"] = json!(["a"]);
    assert_eq!(rule(&lost), Some((Rule::Context, 3)));
    let mut other = more_in_one_group();
    other[2]["input_tokens"][3] = json!(9);
    assert_eq!(rule(&other), Some((Rule::Tokens, 3)));
    let mut written = more_in_one_group();
    for slots in ["/metadata/slot_mapping", "/groups/full/slot_mapping"] {
        *written[2].pointer_mut(slots).unwrap() = json!((80..96).collect::<Vec<_>>());
    }
    assert_eq!(rule(&written), Some((Rule::SharedWrite, 3)));
}

#[test]
fn tenants_do_not_find_each_others_blocks() {
    let publish = |salt: Value| {
        let mut line = step(0, &[("a", "prefill", 0, &[4], &[])]);
        line["kv_events"] = json!([super::stored(4, 11, None)]);
        line["rows"][0]["kv_salt"] = salt;
        line
    };
    let hit = |salt: Value| {
        let mut line = step(1, &[("b", "prefill", 16, &[4, 3], &[])]);
        line["rows"][0]["kv_salt"] = salt;
        line
    };
    let tenant = |name: &str| json!(pagedraft_block_manager::Salt::of(&[("tenant", name)]));
    let hash = |name: &str| {
        let salt = pagedraft_block_manager::Salt::of(&[("tenant", name)]);
        pagedraft_block_manager::BlockHash::of(&pagedraft_block_manager::BlockHash::ROOT, &[1; BLOCK], &salt)
            .as_u64()
    };
    let mut first = publish(tenant("a"));
    assert_eq!(
        super::broken_rule("hash", &[first.clone()]),
        Some((Rule::Published, Some("a".to_owned()), 1))
    );
    first["kv_events"][0]["hash"] = json!(hash("a"));
    assert_eq!(super::broken_rule("own", &[first.clone(), hit(tenant("a"))]), None);
    let b = Some((Rule::Context, Some("b".to_owned()), 2));
    assert_eq!(super::broken_rule("others", &[first.clone(), hit(tenant("b"))]), b);
    let found = super::broken_rule("no-salt", &[first, hit(json!("xyz"))]);
    assert_eq!(found, Some((Rule::Line, Some("b".to_owned()), 2)));
}
