//! A group with rows of its own: what is caught and what is not.

use serde_json::{Value, json};

use super::{BLOCK, Rule, broken_rule, step};

/// Plan row, context, tokens, table.
type OwnRow<'a> = (usize, usize, Vec<u32>, &'a [usize]);

/// The draft model publishes the blocks of `published`, the first block of their requests all of them, under 50 and the
/// block as hashes.
fn with_draft(mut line: Value, rows: &[OwnRow<'_>], published: &[usize]) -> Value {
    let (mut positions, mut slots, mut query) = (vec![], vec![], vec![0]);
    for (_, context, tokens, table) in rows {
        for i in *context..context + tokens.len() {
            positions.push(i);
            slots.push(table[i / BLOCK] * BLOCK + i % BLOCK);
        }
        query.push(positions.len());
    }
    line["groups"] = json!({"draft": {"plan_rows": rows.iter().map(|r| r.0).collect::<Vec<_>>(),
        "input_tokens": rows.iter().flat_map(|r| r.2.clone()).collect::<Vec<_>>(), "input_positions": positions,
        "query_start_loc": query, "slot_mapping": slots, "seq_lens": rows.iter().map(|r| r.1 + r.2.len()).collect::<Vec<_>>(),
        "context_lens": rows.iter().map(|r| r.1).collect::<Vec<_>>(), "block_tables": rows.iter().map(|r| r.3).collect::<Vec<_>>(),
        "kv_index": null}});
    line["kv_events"] = published.iter().map(|&block| own_stored(block)).collect();
    line
}

fn own_stored(block: usize) -> Value {
    json!({"kind": "stored", "group": "draft", "block": block, "hash": 50 + block, "parent": null, "num_tokens": BLOCK})
}

/// Two requests, each with a prompt of 16 and a first token, all tokens 1.
fn begin() -> Value {
    step(0, &[("a", "prefill", 0, &[3], &[1]), ("b", "prefill", 0, &[4], &[1])])
}

/// The `n`th decode step of a request.
fn decode<'a>(
    id: &'a str,
    n: usize,
    table: &'a [usize],
) -> (&'a str, &'a str, usize, &'a [usize], &'a [u32]) {
    (id, "decode", 15 + n, table, &[1])
}

fn known(n: usize, drafts: &[u32]) -> Vec<u32> {
    [vec![1; n], drafts.to_vec()].concat()
}

/// In the first step `a` has two drafts, both wrong; in the second this row. Others hold their blocks meanwhile.
fn second(context: usize, tokens: Vec<u32>, published: &[usize]) -> [Value; 3] {
    let wrong = with_draft(step(1, &[decode("a", 1, &[3, 5])]), &[(0, 0, known(17, &[9, 9]), &[0, 1])], &[]);
    let line = step(2, &[decode("a", 2, &[3, 5])]);
    let line = with_draft(line, &[(0, context, tokens, &[0, 1])], published);
    [begin(), super::with_used(wrong, 3), super::with_used(line, 3)]
}

fn rule(name: &str, lines: &[Value]) -> Option<(Rule, u64)> {
    broken_rule(name, lines).map(|(rule, _, line)| (rule, line))
}

#[test]
fn a_rejected_draft_is_no_context() {
    assert_eq!(rule("fed-again", &second(17, known(1, &[9]), &[])), None);
    assert_eq!(rule("stale", &second(18, vec![], &[])), Some((Rule::Context, 3)));
    assert_eq!(rule("beyond", &second(19, vec![7], &[])), Some((Rule::Context, 3)));
}

#[test]
fn context_that_nobody_wrote_is_found() {
    let never = with_draft(step(1, &[decode("a", 1, &[3, 5])]), &[(0, 5, known(12, &[9]), &[0, 1])], &[]);
    assert_eq!(
        rule("never", &[begin(), super::with_used(never, 3)]),
        Some((Rule::Unwritten, 2)),
        "written by nobody"
    );
    let hit = with_draft(step(1, &[decode("a", 1, &[3, 5])]), &[(0, 16, known(1, &[9]), &[0, 1])], &[]);
    assert_eq!(rule("no-hit", &[begin(), super::with_used(hit, 3)]), Some((Rule::Context, 2)));
}

#[test]
fn published_blocks_hold_accepted_tokens_and_are_not_written_again() {
    assert_eq!(rule("publishes", &second(17, known(1, &[9]), &[0])), None);
    assert_eq!(rule("rejected", &second(17, known(1, &[]), &[1])), Some((Rule::Published, 3)));
    let mut rewrites = second(10, known(8, &[]), &[]);
    rewrites[1]["kv_events"] = json!([own_stored(0)]);
    assert_eq!(rule("rewrites", &rewrites), Some((Rule::Published, 3)));
    rewrites[2]["kv_events"] = json!([{"kind": "removed", "group": "draft", "block": 0, "hash": 50}]);
    assert_eq!(rule("taken-back", &rewrites), None);
    rewrites[2]["kv_events"] = json!([{"kind": "cleared"}]);
    assert_eq!(rule("cleared", &rewrites), None);
    assert_eq!(rule("anew", &second(10, known(8, &[]), &[])), None, "what isn't published can be");
}

#[test]
fn a_block_is_shared_when_it_was_published_and_not_otherwise() {
    let both = step(1, &[decode("a", 1, &[3, 5]), decode("b", 1, &[4, 6])]);
    let rows = |table: &'static [usize]| [(0, 0, known(17, &[]), &[0, 1][..]), (1, 0, known(17, &[]), table)];
    let sound = with_draft(both.clone(), &rows(&[2, 3]), &[]);
    assert_eq!(rule("apart", &[begin(), sound]), None);
    let shared = with_draft(both, &rows(&[2, 1]), &[]);
    assert_eq!(broken_rule("shared", &[begin(), shared]), Some((Rule::SharedWrite, Some("b".to_owned()), 2)));

    let [first, second, _] = second(0, vec![], &[]);
    let line = step(2, &[decode("b", 1, &[4, 6])]);
    let hits = with_draft(super::with_used(line, 4), &[(0, 16, known(1, &[]), &[0, 4])], &[]);
    let mut publishes = second.clone();
    publishes["kv_events"] = json!([own_stored(0)]);
    assert_eq!(rule("hit", &[first.clone(), publishes, hits.clone()]), None);
    assert_eq!(rule("unpublished", &[first, second, hits]), Some((Rule::Context, 3)));
}

#[test]
fn a_request_that_lost_its_blocks_begins_again() {
    let [first, second, _] = second(0, vec![], &[]);
    let takes = step(2, &[decode("b", 1, &[4, 6])]);
    let takes = with_draft(super::with_used(takes, 4), &[(0, 0, known(17, &[9]), &[0, 1])], &[]);
    let back = |context, tokens, table| {
        let line = step(3, &[decode("a", 2, &[3, 5])]);
        with_draft(super::with_used(line, 4), &[(0, context, tokens, table)], &[])
    };
    let before = [first, second, takes];
    let again = back(0, known(18, &[]), &[2, 3]);
    assert_eq!(rule("begins", &[&before[..], &[again]].concat()), None);
    let counts_on_it = back(17, known(1, &[]), &[0, 1]);
    assert_eq!(rule("counts", &[&before[..], &[counts_on_it]].concat()), Some((Rule::Context, 4)));
}

#[test]
fn huge_numbers_in_a_group_are_violations_and_not_panics() {
    let fields = [
        "plan_rows",
        "input_tokens",
        "input_positions",
        "query_start_loc",
        "slot_mapping",
        "seq_lens",
        "context_lens",
        "block_tables",
    ];
    for name in fields {
        for value in [json!(u64::MAX), json!(i64::MAX), json!(u32::MAX), json!(-1)] {
            let mut lines = second(17, known(1, &[9]), &[0]);
            let field = &mut lines[2]["groups"]["draft"][name];
            match (name, field.is_array()) {
                ("block_tables", _) => field[0][0] = value,
                (_, true) => field[0] = value,
                (_, false) => *field = value,
            }
            assert_eq!(rule("huge-group", &lines).map(|(_, line)| line), Some(3), "{name}");
        }
    }
}
