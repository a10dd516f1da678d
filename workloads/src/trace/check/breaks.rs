//! Ways to break a line of a sound trace, and the rule that each breaks.

use serde_json::{Value, json};

use super::Rule;
use super::synthetic::{BLOCK, BLOCKS, Dice};

/// Breaks something in a line of a sound trace; false when the line has nothing of the kind.
pub(super) type Break = fn(&mut Value, &mut Dice) -> bool;

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

fn set(value: &mut Value, n: usize) -> bool {
    *value = json!(n);
    true
}

fn push(list: &mut Value, value: Value) -> bool {
    list.as_array_mut().unwrap().push(value);
    true
}

/// The draft model's part of a line, where it has rows.
fn own(line: &mut Value) -> Option<&mut Value> {
    let group = line.get_mut("groups")?.get_mut("draft")?;
    (group["plan_rows"] != json!([])).then_some(group)
}

/// The input token that is the first draft of a row with such an outcome, and the row.
fn first_draft(line: &Value, such: impl Fn(&Value) -> bool) -> Option<(usize, usize)> {
    let drafted = |o: &Value| o["num_drafts"].as_u64() > Some(0) && such(o);
    let r = line["outcome"].as_array()?.iter().position(drafted)?;
    let m = line["plan_rows"].as_array()?.iter().position(|p| p == &json!(r))?;
    Some((line["metadata"]["query_start_loc"][m].as_u64()? as usize + 1, r))
}

/// Makes the draft behind the accepted ones the token that was emitted there.
pub(super) fn accept_less(line: &mut Value) -> bool {
    let more = |o: &Value| {
        o["num_accepted"].as_u64() < o["num_drafts"].as_u64()
            && o["token_ids"].as_array().unwrap().len() as u64 > o["num_accepted"].as_u64().unwrap()
    };
    let Some((t, r)) = first_draft(line, more) else { return false };
    let accepted = line["outcome"][r]["num_accepted"].as_u64().unwrap() as usize;
    line["input_tokens"][t + accepted] = line["outcome"][r]["token_ids"][accepted].clone();
    true
}

/// A step of one decode row, of a request that isn't a fork (whose first row may start anywhere, with any token).
fn known_decode_alone(line: &Value) -> bool {
    let fork = |row: &Value| row["request_id"].as_str().unwrap().contains('/');
    rows(line).len() == 1 && rows(line)[0]["kind"] == "decode" && !fork(&rows(line)[0])
}

pub(super) const BREAKS: &[(Rule, &str, Break)] = &[
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
    (Rule::Graph, "a graph in an eager step", |l, _| {
        let graph = l["mode"] == "graph";
        l["metadata"]["use_cuda_graph"] = json!(!graph);
        true
    }),
    (Rule::Graph, "a graph without a key, or a key without a graph", |l, _| {
        let key =
            json!({"token_rows": 4096, "max_query_len": l["metadata"]["max_query_len"], "sequences": 64});
        l["graph_key"] = if l["mode"] == "graph" { Value::Null } else { key };
        true
    }),
    (Rule::Graph, "a graph of fewer token rows", |l, _| {
        let tokens = l["input_tokens"].as_array().unwrap().len();
        l["mode"] == "graph" && set(&mut l["graph_key"]["token_rows"], tokens - 1)
    }),
    (Rule::Graph, "a graph of fewer sequences", |l, _| {
        let rows = l["plan_rows"].as_array().unwrap().len();
        l["mode"] == "graph" && set(&mut l["graph_key"]["sequences"], rows - 1)
    }),
    (Rule::Graph, "a graph of another query length", |l, d| {
        l["mode"] == "graph" && add(&mut l["graph_key"]["max_query_len"], [-1, 1][d.below(2)])
    }),
    (Rule::Acceptance, "an accepted draft is not what was emitted", |l, _| {
        let draft = first_draft(l, |o| o["num_accepted"].as_u64() > Some(0));
        draft.is_some_and(|(t, _)| add(&mut l["input_tokens"][t], 500))
    }),
    (Rule::Acceptance, "a draft that is right is not accepted", |l, _| accept_less(l)),
    (Rule::Published, "a block is published before it is full of computed tokens", |l, _| {
        let (row, outcome) = (&l["rows"][0], &l["outcome"][0]);
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let next = number(&row["num_computed"]) + number(&row["num_new"]) - number(&row["num_drafts"])
            + number(&outcome["num_accepted"]);
        let m = l["plan_rows"].as_array().unwrap().iter().position(|p| p == &json!(0)).unwrap();
        let block = l["metadata"]["block_tables"][m].get(next / BLOCK).cloned();
        block.is_some_and(|block| push(&mut l["outcome"][0]["published"], block))
    }),
    (Rule::Published, "a block is published twice", |l, _| {
        let outcomes = l["outcome"].as_array_mut().unwrap();
        let published = outcomes.iter_mut().map(|o| &mut o["published"]).find(|p| **p != json!([]));
        published.is_some_and(|published| {
            let again = published[0].clone();
            push(published, again)
        })
    }),
    (Rule::Published, "somebody else's block is published", |l, _| {
        push(&mut l["outcome"][0]["published"], json!(BLOCKS + 1))
    }),
    (Rule::Lengths, "a group's rows don't add up", |l, d| {
        let field = ["seq_lens", "context_lens", "query_start_loc"][d.below(3)];
        own(l).is_some_and(|g| add(&mut g[field][0], 1))
    }),
    (Rule::Lengths, "a group lacks a position", |l, _| {
        own(l).is_some_and(|g| g["input_positions"].as_array_mut().unwrap().pop().is_some())
    }),
    (Rule::MetadataRows, "a group's row is of no plan row", |l, _| {
        own(l).is_some_and(|g| set(&mut g["plan_rows"][0], 99))
    }),
    (Rule::MetadataRows, "two rows of a group are of one plan row", |l, _| {
        own(l).is_some_and(|g| {
            g["plan_rows"][0] = g["plan_rows"][1].clone();
            !g["plan_rows"][0].is_null()
        })
    }),
    (Rule::Positions, "a position of a group is off", |l, _| {
        own(l).is_some_and(|g| add(&mut g["input_positions"][0], 1))
    }),
    (Rule::BlockTable, "a block beyond a group's pool", |l, _| {
        own(l).is_some_and(|g| {
            let blocks = g["num_blocks"].clone();
            g["block_tables"][0][0] = blocks;
            true
        })
    }),
    (Rule::BlockTable, "a block twice in a group's table", |l, _| {
        own(l).is_some_and(|g| {
            g["block_tables"][0][0] = g["block_tables"][0][1].clone();
            !g["block_tables"][0][0].is_null()
        })
    }),
    (Rule::Slot, "a slot of a group is off", |l, _| {
        own(l).is_some_and(|g| add(&mut g["slot_mapping"][0], 1))
    }),
    (Rule::Tokens, "a draft model is fed another token", |l, _| {
        own(l).is_some_and(|g| add(&mut g["input_tokens"][0], 1000))
    }),
    (Rule::Tokens, "a draft is another than the one verified", |l, _| {
        own(l).is_some_and(|g| {
            let row = g["seq_lens"][0].as_u64().unwrap() - g["context_lens"][0].as_u64().unwrap() - 1;
            add(&mut g["input_tokens"][row as usize], 1000)
        })
    }),
    (Rule::Pool, "a group uses less than its rows have", |l, _| {
        own(l).is_some_and(|g| set(&mut g["used"], 0))
    }),
    (Rule::Published, "a group publishes a block that is not full", |l, _| {
        own(l).is_some_and(|g| {
            let last = g["block_tables"][0].as_array().unwrap().last().unwrap().clone();
            let full = g["seq_lens"][0].as_u64().unwrap() % BLOCK as u64 == 0;
            !full && push(&mut g["published"], last)
        })
    }),
    (Rule::Published, "a group publishes a block twice", |l, _| {
        let group = &mut l["groups"]["draft"];
        group["published"].get(0).cloned().is_some_and(|again| push(&mut group["published"], again))
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
    }),
    (Rule::BlockTable, "a table is left out", |l, d| {
        l["metadata"]["block_tables"][0] = if d.below(2) == 0 { json!([]) } else { Value::Null };
        true
    }),
    (Rule::MetadataRows, "metadata rows are said to be of other plan rows", |l, _| {
        // Rows of one shape could be each other's.
        let contexts = l["metadata"]["context_lens"].as_array().unwrap();
        let apart = contexts.first() != contexts.last();
        l["plan_rows"].as_array_mut().unwrap().reverse();
        apart
    }),
    (Rule::MetadataRows, "a metadata row of a plan row that isn't there", |l, _| {
        l["plan_rows"][0] = json!(99);
        true
    }),
    (Rule::MetadataRows, "plan_rows is too long", |l, _| {
        l["plan_rows"].as_array_mut().unwrap().push(json!(0));
        true
    }),
    (Rule::Copy, "a copy from nobody's block", |l, _| {
        let found = !l["copies"].as_array().unwrap().is_empty();
        found && {
            l["copies"][0]["src"] = l["copies"][0]["dst"].clone();
            true
        }
    }),
    (Rule::Copy, "a copy to a block that nobody has then", |l, d| {
        let tables = l["metadata"]["block_tables"].to_string();
        let Some(to) = (0..BLOCKS).find(|b| !tables.contains(&b.to_string())) else { return false };
        // Only a row that ran before surely has its block from before.
        if d.below(2) == 0 || !known_decode_alone(l) || l["preempted"] != json!([]) {
            return false;
        }
        let from = l["metadata"]["block_tables"][0][0].clone();
        l["copies"].as_array_mut().unwrap().push(json!({"src": from, "dst": to}));
        // A block that another request holds is as wrong a target.
        true
    }),
    (Rule::Kind, "a decode row is called a prefill", |l, _| {
        row_of_kind(l, "decode").is_some_and(|r| {
            l["rows"][r]["kind"] = json!("prefill");
            true
        })
    }),
    (Rule::Kind, "a prefill row is called a verify row", |l, _| {
        row_of_kind(l, "prefill").is_some_and(|r| {
            l["rows"][r]["kind"] = json!("verify");
            true
        })
    }),
    (Rule::Preempted, "somebody unknown is preempted", |l, _| {
        l["preempted"].as_array_mut().unwrap().push(json!("nobody"));
        true
    }),
    (Rule::Preempted, "a request is preempted twice", |l, _| {
        let preempted = l["preempted"].as_array_mut().unwrap();
        let again = preempted.first().cloned();
        again.is_some_and(|again| {
            preempted.push(again);
            true
        })
    }),
    (Rule::Finished, "somebody unknown is finished", |l, _| {
        l["finished"].as_array_mut().unwrap().push(json!("nobody"));
        true
    }),
    (Rule::Finished, "an end is not told", |l, _| l["finished"].as_array_mut().unwrap().pop().is_some()),
    (Rule::Finished, "an end is told twice", |l, _| {
        let finished = l["finished"].as_array_mut().unwrap();
        let again = finished.first().cloned();
        again.is_some_and(|again| {
            finished.push(again);
            true
        })
    }),
    (Rule::Finished, "a request that goes on is finished", |l, _| {
        let goes_on = |o: &&Value| o["finish_reason"].is_null();
        let id = l["outcome"].as_array().unwrap().iter().find(goes_on).map(|o| o["request_id"].clone());
        id.is_some_and(|id| {
            l["finished"].as_array_mut().unwrap().push(id);
            true
        })
    }),
    (Rule::Finished, "an end for a reason that is none", |l, _| {
        let outcomes = l["outcome"].as_array_mut().unwrap();
        let ended = outcomes.iter_mut().find(|o| !o["finish_reason"].is_null());
        ended.is_some_and(|o| {
            o["finish_reason"] = json!("bored");
            true
        })
    }),
    (Rule::Pool, "more is used than anybody has", |l, _| {
        // A block or two may be in reserve for drafts; not so many.
        l["pool"]["free"].as_i64() > Some(20)
            && add(&mut l["pool"]["free"], -20)
            && add(&mut l["pool"]["used"], 20)
    }),
    (Rule::Pool, "a block is used when nobody runs", |l, _| {
        l["pool"]["used"] == json!(0) && add(&mut l["pool"]["free"], -1) && add(&mut l["pool"]["used"], 1)
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
