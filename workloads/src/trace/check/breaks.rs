//! Ways to break a line of a correct trace, each with the rule that it breaks.

use serde_json::{Value, json};

use super::Rule;
use super::synthetic::{BLOCK, BLOCKS, Dice, recount};

/// Breaks something in a line of a correct trace. Returns false if the line has nothing of the kind.
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

/// The first change of the prefix cache in a line for which `such` holds.
fn event(line: &mut Value, such: impl Fn(&Value) -> bool) -> Option<&mut Value> {
    line.get_mut("kv_events")?.as_array_mut()?.iter_mut().find(|event| such(event))
}

/// Repeats such a change.
fn again(line: &mut Value, such: impl Fn(&Value) -> bool) -> bool {
    let Some(found) = event(line, such).cloned() else { return false };
    let events = line["kv_events"].as_array_mut().unwrap();
    let at = events.iter().position(|event| *event == found).unwrap();
    events.insert(at, found);
    true
}

/// Adds an event that says that a block was published.
fn publish(line: &mut Value, group: &str, block: Value) -> bool {
    let event = json!({"kind": "stored", "group": group, "block": block, "hash": 1, "parent": null, "num_tokens": BLOCK});
    match line.get_mut("kv_events") {
        Some(events) => push(events, event),
        None => {
            line["kv_events"] = json!([event]);
            true
        }
    }
}

/// Changes the number of blocks that a group uses, and recounts everything else. Returns false if the pool
/// has not that many.
fn use_blocks(line: &mut Value, group: &str, other: fn(i64) -> i64) -> bool {
    let used = &mut line["pool"]["by_group"][group]["used"];
    let most = if group == "kv" { BLOCKS as i64 } else { 14 };
    let number = other(used.as_i64().unwrap());
    *used = json!(number);
    if number > most {
        return false;
    }
    recount(&mut line["pool"]);
    line["pool"]["cached"].as_i64() <= line["pool"]["free"].as_i64()
}

/// The draft model's part of a line, if it has rows.
fn own(line: &mut Value) -> Option<&mut Value> {
    let group = line.get_mut("groups")?.get_mut("draft")?;
    (group["plan_rows"] != json!([])).then_some(group)
}

/// The index of the input token that is the first draft of a row whose outcome is `such`, and the row.
fn first_draft(line: &Value, such: impl Fn(&Value) -> bool) -> Option<(usize, usize)> {
    let drafted = |o: &Value| o["num_drafts"].as_u64() > Some(0) && such(o);
    let r = line["outcome"].as_array()?.iter().position(drafted)?;
    let m = line["plan_rows"].as_array()?.iter().position(|p| p == &json!(r))?;
    Some((line["metadata"]["query_start_loc"][m].as_u64()? as usize + 1, r))
}

/// Replaces the draft after the accepted ones by the token that was emitted there.
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

/// Whether the step has one row, a decode row of a request that isn't a fork. (A fork's first row may start
/// anywhere, with any token.)
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
    (Rule::Positions, "a position is off", |l, d| {
        let n = l["input_positions"].as_array().unwrap().len();
        add(&mut l["input_positions"][d.below(n)], 1)
    }),
    (Rule::BlockTable, "a block beyond the pool", |l, _| {
        l["metadata"]["block_tables"][0][0] = json!(20 * BLOCKS);
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
        // Rows of the same shape could be exchanged without being noticed.
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
        // Only the block of a row that ran before is known to be from an earlier step.
        if d.below(2) == 0 || !known_decode_alone(l) || l["preempted"] != json!([]) {
            return false;
        }
        let from = l["metadata"]["block_tables"][0][0].clone();
        l["copies"].as_array_mut().unwrap().push(json!({"src": from, "dst": to}));
        // A block that another request holds is a wrong target too.
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
    (Rule::Published, "a block is published before it is full of computed tokens", |l, _| {
        let (row, outcome) = (&l["rows"][0], &l["outcome"][0]);
        let number = |value: &Value| value.as_u64().unwrap() as usize;
        let next = number(&row["num_computed"]) + number(&row["num_new"]) - number(&row["num_drafts"])
            + number(&outcome["num_accepted"]);
        let m = l["plan_rows"].as_array().unwrap().iter().position(|p| p == &json!(0)).unwrap();
        let block = l["metadata"]["block_tables"][m].get(next / BLOCK).cloned();
        block.is_some_and(|block| publish(l, "kv", block))
    }),
    (Rule::Published, "somebody else's block is published", |l, _| publish(l, "kv", json!(BLOCKS + 1))),
    (Rule::Published, "a block is published twice", |l, _| again(l, |e| e["kind"] == "stored")),
    (Rule::Published, "a hash is another", |l, _| {
        event(l, |e| e["kind"] == "stored").is_some_and(|e| {
            e["hash"] = json!(e["hash"].as_u64().unwrap() ^ 1);
            true
        })
    }),
    (Rule::Published, "a parent is another", |l, _| {
        event(l, |e| !e["parent"].is_null()).is_some_and(|e| {
            e["parent"] = json!(e["parent"].as_u64().unwrap() ^ 1);
            true
        })
    }),
    (Rule::Published, "a parent is left out", |l, _| {
        event(l, |e| !e["parent"].is_null()).is_some_and(|e| {
            e["parent"] = Value::Null;
            true
        })
    }),
    (Rule::Published, "a block of fewer tokens", |l, _| {
        event(l, |e| e["kind"] == "stored").is_some_and(|e| add(&mut e["num_tokens"], -1))
    }),
    (Rule::Published, "a block leaves the cache twice", |l, _| again(l, |e| e["kind"] == "removed")),
    (Rule::Published, "a block leaves the cache with tokens", |l, _| {
        event(l, |e| e["kind"] == "removed").is_some_and(|e| add(&mut e["num_tokens"], 16))
    }),
    (Rule::Pool, "more is cached than was published", |l, _| {
        let groups = &mut l["pool"]["by_group"];
        let free = groups["kv"]["used"].as_i64() < Some(BLOCKS as i64);
        add(&mut groups["kv"]["cached"], 1);
        recount(&mut l["pool"]);
        free && l["pool"]["cached"].as_i64() <= l["pool"]["free"].as_i64()
    }),
    (Rule::Published, "a block leaves the cache under another hash", |l, _| {
        event(l, |e| e["kind"] == "removed").is_some_and(|e| {
            e["hash"] = json!(e["hash"].as_u64().unwrap() ^ 1);
            true
        })
    }),
    (Rule::Published, "a block is handed out, and did not leave the cache", |l, _| {
        let removed = |e: &Value| e["kind"] == "removed" && e["group"] == "kv";
        let Some(block) = event(l, removed).map(|e| e["block"].clone()) else { return false };
        let tables = l["metadata"]["block_tables"].as_array().unwrap();
        let taken = tables.iter().any(|table| table.as_array().unwrap().contains(&block));
        l["kv_events"].as_array_mut().unwrap().retain(|e| e["block"] != block || e["kind"] != "removed");
        taken && l["copies"] == json!([])
    }),
    (Rule::Published, "an event is of a group that is not there", |l, _| {
        event(l, |_| true).is_some_and(|e| {
            e["group"] = json!("nobody's");
            true
        })
    }),
    (Rule::Published, "a draft model publishes a block that is not full", |l, _| {
        let Some(group) = own(l) else { return false };
        let last = group["block_tables"][0].as_array().unwrap().last().unwrap().clone();
        let full = group["seq_lens"][0].as_u64().unwrap() % BLOCK as u64 == 0;
        !full && publish(l, "draft", last)
    }),
    (Rule::Published, "a draft model publishes a block twice", |l, _| {
        again(l, |e| e["kind"] == "stored" && e["group"] == "draft")
    }),
    (Rule::BlockTable, "a block beyond a group's pool", |l, _| {
        own(l).is_some_and(|g| set(&mut g["block_tables"][0][0], 1000))
    }),
    (Rule::BlockTable, "a block was given back without a window", |l, _| {
        l["metadata"]["block_tables"][0][0] = json!(-1);
        true
    }),
    (Rule::Window, "a window that the configuration does not have", |l, _| {
        set(&mut l["metadata"]["window"], 1000)
    }),
    (Rule::Pool, "a group uses less than its rows have", |l, _| {
        // Requests that end with the step have no blocks after it.
        let goes_on = l["finished"] == json!([]);
        own(l).is_some() && goes_on && use_blocks(l, "draft", |_| 0)
    }),
    (Rule::Pool, "a draft model has more than its target", |l, _| {
        let target = l["pool"]["by_group"]["kv"]["used"].as_i64().unwrap();
        target < 3 && use_blocks(l, "draft", |used| used + 12)
    }),
    (Rule::Pool, "more is used than anybody has", |l, _| {
        // A few blocks may be reserved for drafts, but not as many as this.
        use_blocks(l, "kv", |used| used + 20)
    }),
    (Rule::Pool, "a block is used when nobody runs", |l, _| {
        l["pool"]["used"] == json!(0) && use_blocks(l, "kv", |used| used + 1)
    }),
    (Rule::Pool, "tables hold more than is used", |l, _| {
        l["pool"]["by_group"]["kv"]["used"].as_i64() > Some(0)
            && l["copies"] == json!([])
            && use_blocks(l, "kv", |_| 0)
    }),
    (Rule::Pool, "used + free is another number", |l, _| add(&mut l["pool"]["free"], 1)),
    (Rule::Pool, "more cached than free", |l, _| {
        let free = l["pool"]["free"].as_i64().unwrap();
        set(&mut l["pool"]["cached"], free as usize + 1)
    }),
    (Rule::Pool, "the pool grew", |l, _| {
        l["step"] != json!(0) && add(&mut l["pool"]["free"], 1) && add(&mut l["pool"]["num_blocks"], 1)
    }),
    (Rule::Pool, "bytes are lost", |l, _| add(&mut l["pool"]["bytes_free"], -1)),
    (Rule::Pool, "the arena grew", |l, _| {
        l["step"] != json!(0) && add(&mut l["pool"]["bytes_free"], 1) && add(&mut l["pool"]["bytes_total"], 1)
    }),
    (Rule::Pool, "more bytes are cached than the groups have cached", |l, _| {
        add(&mut l["pool"]["bytes_cached"], 1)
    }),
    (Rule::Pool, "more bytes lie in pages with held blocks than are free", |l, _| {
        let free = l["pool"]["bytes_free"].as_u64();
        free.is_some_and(|free| set(&mut l["pool"]["bytes_fragmented"], free as usize + 1))
    }),
    (Rule::Pool, "more bytes are used than the groups' blocks take", |l, _| {
        add(&mut l["pool"]["bytes_used"], 1) && add(&mut l["pool"]["bytes_free"], -1)
    }),
    (Rule::Pool, "a group's block takes other bytes", |l, _| {
        l["pool"]["by_group"]["kv"]["used"].as_i64() > Some(0)
            && add(&mut l["pool"]["by_group"]["kv"]["block_bytes"], 1)
    }),
    (Rule::Pool, "bytes are not told", |l, _| {
        l["pool"].as_object_mut().unwrap().remove("bytes_used").is_some()
    }),
    (Rule::Pool, "a group is not told", |l, _| {
        let unused = l["pool"]["by_group"]["draft"]["used"] == json!(0);
        let cached = l["pool"]["by_group"]["draft"]["cached"] != json!(0);
        unused && !cached && l["pool"]["by_group"].as_object_mut().unwrap().remove("draft").is_some()
    }),
];

/// Ways to break a trace of a model with a sliding window.
pub(super) const WINDOW_BREAKS: &[(Rule, &str, Break)] = &[
    (Rule::Window, "a block that is seen was given back", |l, _| {
        let table = l["metadata"]["block_tables"][0].as_array_mut().unwrap();
        let seen = table.iter().position(|block| block != &json!(-1));
        // If no block lies behind the window, the window changes nothing.
        seen.is_some_and(|seen| {
            table[seen] = json!(-1);
            seen > 0
        })
    }),
    (Rule::Window, "a block behind the window is kept", |l, _| {
        let tables = l["metadata"]["block_tables"].as_array_mut().unwrap();
        let table = tables.iter_mut().find(|table| table[0] == json!(-1));
        table.is_some_and(|table| set(&mut table[0], 0))
    }),
    (Rule::Window, "the window is another", |l, _| add(&mut l["metadata"]["window"], 1)),
    (Rule::Window, "the window is not told", |l, _| {
        l["metadata"].as_object_mut().unwrap().remove("window").is_some()
    }),
    (Rule::BlockTable, "a block of less than nothing", |l, _| {
        let tables = l["metadata"]["block_tables"].as_array_mut().unwrap();
        tables[0].as_array_mut().unwrap().last_mut().is_some_and(|block| {
            *block = json!(-2);
            true
        })
    }),
    (Rule::Pool, "a block behind the window is still used", |l, _| {
        // A few blocks may be reserved for drafts, but not as many as this.
        let tables = l["metadata"]["block_tables"].to_string();
        tables.contains("-1") && use_blocks(l, "kv", |used| used + 20)
    }),
    (Rule::Published, "a hash is another", |l, _| {
        event(l, |e| e["kind"] == "stored").is_some_and(|e| {
            e["hash"] = json!(e["hash"].as_u64().unwrap() ^ 1);
            true
        })
    }),
    (Rule::Published, "a parent is another", |l, _| {
        event(l, |e| !e["parent"].is_null()).is_some_and(|e| {
            e["parent"] = json!(e["parent"].as_u64().unwrap() ^ 1);
            true
        })
    }),
];
