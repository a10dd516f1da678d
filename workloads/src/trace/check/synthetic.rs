//! A toy engine that writes traces. It has an allocator, a budget, chunks, forks with copies, preemptions,
//! verify rows, a prefix cache, a draft model, graphs and a sliding window.

mod dice;
mod draft;
mod pool;

pub(super) use self::dice::Dice;
use self::draft::{DraftModel, OwnRow};
pub(super) use self::pool::BLOCK;
use self::pool::{FREED, Pool};
use serde_json::{Value, json};

pub(super) const BLOCKS: usize = 48;
/// The bytes of a block of the target, and of the draft model.
const BYTES: [usize; 2] = [64, 32];

#[derive(Clone)]
struct Sequence {
    id: String,
    tokens: Vec<u32>,
    prompt: usize,
    output: usize,
    computed: usize,
    table: Vec<usize>,
    /// Whether it has to begin, again or for the first time.
    fresh: bool,
}

impl Sequence {
    fn decodes(&self) -> bool {
        self.computed + 1 == self.tokens.len() && self.tokens.len() > self.prompt
    }
}

/// What is written for one row.
struct Written {
    plan: Value,
    outcome: Value,
    /// The metadata rows: context, tokens, table.
    rows: Vec<(usize, Vec<u32>, Vec<usize>)>,
    own: Option<OwnRow>,
}

/// Writes steps until `requests` requests have ended. With `expand`, verify rows become rows of one token.
pub(super) fn trace(seed: u64, requests: usize, expand: bool) -> Vec<Value> {
    windowed(seed, requests, expand, None)
}

/// What `config.json` says about the engine.
pub(super) fn config(window: Option<usize>) -> Value {
    json!({"kv_groups": [{"name": "kv", "window": window, "lags": false}, {"name": "draft", "window": null, "lags": true}],
        "kv_salt": pagedraft_block_manager::Salt::NONE})
}

/// The same for an engine whose layers have a sliding window.
pub(super) fn windowed(seed: u64, requests: usize, expand: bool, window: Option<usize>) -> Vec<Value> {
    let mut engine = Engine {
        window,
        dice: Dice(seed),
        pool: Pool::new("kv", BLOCKS),
        sealed: Vec::new(),
        draft: DraftModel::new(),
        running: Vec::new(),
        preempted: Vec::new(),
        forks: 0,
        expand,
    };
    let mut lines = Vec::new();
    let mut made = 0;
    while made < requests || !engine.running.is_empty() {
        if made < requests && engine.running.len() < 4 && engine.dice.below(3) == 0 {
            let prompt = 1 + engine.dice.below(60);
            let family = engine.dice.below(4);
            let token = |i, dice: &mut Dice| if family > 0 { family * 100 + i % 9 } else { dice.below(500) };
            let tokens = (0..prompt).map(|i| token(i, &mut engine.dice) as u32).collect();
            let output = 1 + engine.dice.below(25);
            let id = made.to_string();
            engine.running.push(Sequence {
                id,
                tokens,
                prompt,
                output,
                computed: 0,
                table: Vec::new(),
                fresh: true,
            });
            made += 1;
        }
        let step = lines.len() as u64 * 2;
        if let Some(line) = engine.step(step) {
            lines.push(line);
        } else if engine.running.is_empty() && made == requests {
            break;
        }
        assert!(lines.len() < 2000, "seed {seed} goes on for ever");
    }
    lines
}

struct Engine {
    window: Option<usize>,
    dice: Dice,
    pool: Pool,
    /// The blocks that the step filled, and the tokens up to their ends.
    sealed: Vec<(usize, Vec<u32>)>,
    draft: DraftModel,
    running: Vec<Sequence>,
    preempted: Vec<String>,
    forks: usize,
    expand: bool,
}

impl Engine {
    fn step(&mut self, step: u64) -> Option<Value> {
        if self.running.len() > 1 && self.dice.below(12) == 0 {
            let victim = self.running.len() - 1;
            if !self.running[victim].table.is_empty() {
                self.preempted.push(self.running[victim].id.clone());
                self.release(victim);
            }
        }
        let mut copies = Vec::new();
        let mut written = Vec::new();
        let mut ended = Vec::new();
        let before = self.running.len();
        written.extend(self.fork(&mut copies, &mut ended));
        for s in 0..before {
            if self.dice.below(5) > 0 {
                written.extend(self.row(s, &mut copies, &mut ended));
            }
        }
        if written.is_empty() {
            return None;
        }
        let preempted = std::mem::take(&mut self.preempted);
        let mut finished = Vec::new();
        for (block, tokens) in self.sealed.drain(..) {
            self.pool.publish(block, &tokens);
        }
        if let Some(window) = self.window {
            for sequence in &mut self.running {
                let behind = (sequence.computed + 1).saturating_sub(window) / BLOCK;
                for block in sequence.table.iter_mut().take(behind) {
                    self.pool.release(std::mem::replace(block, FREED));
                }
            }
        }
        let own: Vec<(usize, OwnRow)> =
            written.iter_mut().enumerate().filter_map(|(p, w)| Some((p, w.own.take()?))).collect();
        let record = self.draft.record(&own);
        self.draft.publish();
        let groups = if own.is_empty() { Value::Null } else { json!({"draft": record}) };
        ended.sort_unstable();
        for &s in ended.iter().rev() {
            self.release(s);
            finished.push(self.running.remove(s).id);
        }
        let (mut events, stored) = self.pool.events();
        let (removed, own_stored) = self.draft.pool.events();
        events.extend(removed.into_iter().chain(stored).chain(own_stored));
        let mut line = json!({"event": "step", "step": step, "time_us": {"schedule": 1.0, "metadata": 1.0, "propose": 0.0, "execute": 1.0, "sample": 1.0}, "mode": "eager", "graph_key": null, "groups": groups,
            "rows": written.iter().map(|w| w.plan.clone()).collect::<Vec<_>>(),
            "outcome": written.iter().map(|w| w.outcome.clone()).collect::<Vec<_>>(),
            "preempted": preempted, "finished": finished, "copies": copies,
            "pool": self.pool_counts()});
        if !events.is_empty() {
            line["kv_events"] = json!(events);
        }
        metadata(&mut line, written, self.window);
        if self.dice.below(3) == 0 {
            let (tokens, rows) = (line["input_tokens"].as_array(), line["plan_rows"].as_array());
            line["graph_key"] = json!({"token_rows": tokens.map(|t| t.len().next_power_of_two()),
                "max_query_len": line["metadata"]["max_query_len"], "sequences": rows.map(|r| r.len().next_multiple_of(2))});
            line["mode"] = json!("graph");
            line["metadata"]["use_cuda_graph"] = json!(true);
        }
        Some(line)
    }

    fn pool_counts(&self) -> Value {
        let used = [BLOCKS - self.pool.free(), draft::BLOCKS - self.draft.pool.free()];
        let cached = [self.pool.cached(), self.draft.pool.cached()];
        let group = |i: usize| json!({"used": used[i], "cached": cached[i], "block_bytes": BYTES[i]});
        let mut pool = json!({"by_group": {"kv": group(0), "draft": group(1)}});
        recount(&mut pool);
        pool
    }

    /// Sometimes gives a decoding sequence a twin that shares its blocks and begins at once.
    fn fork(&mut self, copies: &mut Vec<Value>, ended: &mut Vec<usize>) -> Option<Written> {
        if self.running.is_empty() || self.running.len() > 5 || self.dice.below(10) > 0 {
            return None;
        }
        let parent = self.dice.below(self.running.len());
        let mut child = self.running[parent].clone();
        if !child.decodes() || child.id.contains('/') {
            return None;
        }
        self.forks += 1;
        child.id = format!("{}/{}", child.id, self.forks);
        child.prompt = child.tokens.len();
        child.table.truncate(child.computed.div_ceil(BLOCK));
        for &block in &child.table {
            self.pool.share(block);
        }
        self.running.push(child);
        let s = self.running.len() - 1;
        let written = self.row(s, copies, ended);
        if written.is_none() {
            self.release(s);
            self.running.pop();
        }
        written
    }

    fn row(&mut self, s: usize, copies: &mut Vec<Value>, ended: &mut Vec<usize>) -> Option<Written> {
        if self.running[s].table.is_empty() {
            let tokens = &self.running[s].tokens;
            let table = self.pool.hit(&tokens[..tokens.len() - 1], self.window);
            self.running[s].computed = table.len() * BLOCK;
            self.running[s].table = table;
        }
        let sequence = self.running[s].clone();
        let left = sequence.tokens.len() - sequence.computed;
        let kind = if !sequence.decodes() {
            "prefill"
        } else if self.dice.below(3) == 0 {
            "verify"
        } else {
            "decode"
        };
        let own = left.min(1 + self.dice.below(20));
        let drafts = if kind == "verify" { self.dice.below(4) } else { 0 };
        let end = sequence.computed + own + drafts;
        if !self.reserve(s, end, copies) {
            if sequence.fresh {
                self.release(s);
            }
            return None;
        }
        self.running[s].fresh = false;
        let accepted = self.dice.below(drafts + 1);
        let samples = own == left;
        let mut emitted: Vec<u32> =
            if samples { (0..=accepted).map(|_| self.dice.below(500) as u32).collect() } else { Vec::new() };
        let mut input = sequence.tokens[sequence.computed..sequence.computed + own].to_vec();
        input.extend((0..drafts).map(|i| emitted.get(i).filter(|_| i < accepted).copied().unwrap_or(999)));
        let table = self.running[s].table[..end.div_ceil(BLOCK)].to_vec();
        let drafted = &input[own..];
        let own_row = match drafted.len() {
            0 => None,
            _ => self.draft.propose(&sequence.id, &sequence.tokens, drafted, &mut self.dice),
        };
        let generated = sequence.tokens.len() - sequence.prompt;
        let mut reason = None;
        if samples && generated + emitted.len() >= sequence.output {
            emitted.truncate(sequence.output - generated);
            reason = Some("length");
            ended.push(s);
        }
        let sequence = &mut self.running[s];
        let start = sequence.computed;
        sequence.computed += own + accepted;
        sequence.tokens.extend(&emitted);
        let full = start / BLOCK..sequence.computed.min(sequence.tokens.len()) / BLOCK;
        self.sealed.extend(full.map(|i| (sequence.table[i], sequence.tokens[..(i + 1) * BLOCK].to_vec())));
        if own_row.is_some() {
            self.draft.verified(&sequence.id, &sequence.tokens, accepted.min(drafts - 1));
        }
        let whole = (start, input, table);
        let split = |(start, input, table): (usize, Vec<u32>, Vec<usize>)| {
            let one = |(j, token): (usize, u32)| {
                (start + j, vec![token], table[..(start + j + 1).div_ceil(BLOCK)].to_vec())
            };
            input.into_iter().enumerate().map(one).collect()
        };
        Some(Written {
            plan: json!({"request_id": sequence.id, "kind": kind, "num_computed": start, "num_new": own + drafts, "num_drafts": drafts}),
            outcome: json!({"request_id": sequence.id, "token_ids": emitted, "num_drafts": drafts, "num_accepted": accepted, "finish_reason": reason}),
            own: own_row,
            rows: if self.expand && kind == "verify" { split(whole) } else { vec![whole] },
        })
    }

    /// Reserves blocks for `end` tokens. A shared block that would be written is copied.
    fn reserve(&mut self, s: usize, end: usize, copies: &mut Vec<Value>) -> bool {
        let first = self.running[s].computed / BLOCK;
        let blocks = end.div_ceil(BLOCK);
        let have = self.running[s].table.len();
        let shared =
            (first..have.min(blocks)).filter(|&i| self.pool.refs(self.running[s].table[i]) > 1).count();
        if self.pool.free() < blocks.saturating_sub(have) + shared {
            return false;
        }
        for i in first..blocks {
            let old = self.running[s].table.get(i).copied();
            if old.is_some_and(|b| self.pool.refs(b) == 1) {
                continue;
            }
            let start = self.dice.below(BLOCKS);
            let Some(new) = self.pool.take(start) else { return false };
            if let Some(old) = old {
                self.pool.release(old);
                self.running[s].table[i] = new;
                copies.push(json!({"src": old, "dst": new}));
            } else {
                self.running[s].table.push(new);
            }
        }
        true
    }

    fn release(&mut self, s: usize) {
        for block in self.running[s].table.drain(..) {
            self.pool.release(block);
        }
        self.running[s].computed = 0;
        self.running[s].fresh = true;
        let id = self.running[s].id.clone();
        self.draft.forget(&id);
    }
}

/// Recomputes the pool's counts from those of its groups.
pub(super) fn recount(pool: &mut Value) {
    let total = BLOCKS * BYTES[0] + draft::BLOCKS * BYTES[1];
    let sum = |what: &str| -> usize {
        let groups = pool["by_group"].as_object().unwrap().values();
        groups.map(|g| (g[what].as_u64().unwrap() * g["block_bytes"].as_u64().unwrap()) as usize).sum()
    };
    let (used, cached) = (sum("used"), sum("cached"));
    let (num_blocks, used_blocks) = (total / BYTES[1], used.div_ceil(BYTES[1]));
    pool["bytes_total"] = json!(total);
    pool["bytes_used"] = json!(used);
    pool["bytes_free"] = json!(total - used);
    pool["bytes_cached"] = json!(cached);
    pool["num_blocks"] = json!(num_blocks);
    pool["used"] = json!(used_blocks);
    pool["free"] = json!(num_blocks - used_blocks);
    pool["cached"] = json!(cached / BYTES[1]);
}

/// Writes the metadata. Rows of several tokens come first.
fn metadata(line: &mut Value, written: Vec<Written>, window: Option<usize>) {
    let numbered = written.into_iter().enumerate().flat_map(|(p, w)| w.rows.into_iter().map(move |r| (p, r)));
    let (mut several, single): (Vec<_>, Vec<_>) = numbered.partition(|(_, r)| r.1.len() > 1);
    line["plan_rows"] = several.iter().chain(&single).map(|(p, _)| *p).collect();
    let mut rows: Vec<_> = several.drain(..).map(|(_, r)| r).collect();
    let singles: Vec<_> = single.into_iter().map(|(_, r)| r).collect();
    let (prefills, prefill_tokens) = (rows.len(), rows.iter().map(|r| r.1.len()).sum::<usize>());
    let longest =
        |rows: &[(usize, Vec<u32>, Vec<usize>)]| rows.iter().map(|r| r.0 + r.1.len()).max().unwrap_or(0);
    let (prefill_len, decode_len, decodes) = (longest(&rows), longest(&singles), singles.len());
    rows.extend(singles);
    let (mut tokens, mut positions, mut slots) = (Vec::new(), Vec::new(), Vec::new());
    let (mut query, mut start) = (vec![0], vec![0]);
    for (context, input, table) in &rows {
        for (j, &token) in input.iter().enumerate() {
            let i = context + j;
            tokens.push(token);
            positions.push(i);
            slots.push(table[i / BLOCK] * BLOCK + i % BLOCK);
        }
        query.push(tokens.len());
        start.push(start[start.len() - 1] + context + input.len());
    }
    let table = |blocks: &[usize]| -> Vec<i64> {
        blocks.iter().map(|&block| if block == FREED { -1 } else { block as i64 }).collect()
    };
    line["input_tokens"] = json!(tokens);
    line["input_positions"] = json!(positions);
    line["metadata"] = json!({"num_prefills": prefills, "num_prefill_tokens": prefill_tokens, "num_decode_tokens": decodes,
        "slot_mapping": slots, "query_start_loc": query, "seq_start_loc": start,
        "seq_lens": rows.iter().map(|r| r.0 + r.1.len()).collect::<Vec<_>>(),
        "context_lens": rows.iter().map(|r| r.0).collect::<Vec<_>>(),
        "max_query_len": rows.iter().map(|r| r.1.len()).max(), "max_prefill_seq_len": prefill_len, "max_decode_seq_len": decode_len,
        "block_tables": rows.iter().map(|r| table(&r.2)).collect::<Vec<_>>(), "use_cuda_graph": false});
    if let Some(window) = window {
        line["metadata"]["window"] = json!(window);
    }
}
