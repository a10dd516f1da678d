//! A toy engine that writes traces: an allocator, a budget, chunks, forks with copies, preemptions, verify rows.

use serde_json::{Value, json};

pub(super) const BLOCK: usize = 16;
pub(super) const BLOCKS: usize = 48;

/// splitmix64.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

#[derive(Clone)]
struct Sequence {
    id: String,
    tokens: Vec<u32>,
    prompt: usize,
    output: usize,
    computed: usize,
    table: Vec<usize>,
}

impl Sequence {
    fn decodes(&self) -> bool {
        self.computed + 1 == self.tokens.len() && self.tokens.len() > self.prompt
    }
}

/// What is written of one row.
struct Written {
    plan: Value,
    outcome: Value,
    /// Metadata rows: context, tokens, table.
    rows: Vec<(usize, Vec<u32>, Vec<usize>)>,
}

/// Writes steps until `requests` requests have ended; `expand`: verify rows become rows of one token.
pub(super) fn trace(seed: u64, requests: usize, expand: bool) -> Vec<Value> {
    let mut engine = Engine {
        dice: Dice(seed),
        refs: vec![0; BLOCKS],
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
            let tokens = (0..prompt).map(|_| engine.dice.below(500) as u32).collect();
            let output = 1 + engine.dice.below(25);
            let id = made.to_string();
            engine.running.push(Sequence { id, tokens, prompt, output, computed: 0, table: Vec::new() });
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
    dice: Dice,
    refs: Vec<u32>,
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
        ended.sort_unstable();
        for &s in ended.iter().rev() {
            self.release(s);
            finished.push(self.running.remove(s).id);
        }
        let used = self.refs.iter().filter(|&&r| r > 0).count();
        let mut line = json!({"event": "step", "step": step, "time_us": {}, "mode": "eager", "graph_key": null, "groups": null,
            "rows": written.iter().map(|w| w.plan.clone()).collect::<Vec<_>>(),
            "outcome": written.iter().map(|w| w.outcome.clone()).collect::<Vec<_>>(),
            "preempted": preempted, "finished": finished, "copies": copies,
            "pool": {"num_blocks": BLOCKS, "used": used, "free": BLOCKS - used, "cached": 0}});
        metadata(&mut line, written);
        Some(line)
    }

    /// Sometimes a decoding sequence gets a twin that shares its blocks, and begins at once.
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
            self.refs[block] += 1;
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
            return None;
        }
        let accepted = self.dice.below(drafts + 1);
        let samples = own == left;
        let mut emitted: Vec<u32> =
            if samples { (0..=accepted).map(|_| self.dice.below(500) as u32).collect() } else { Vec::new() };
        let mut input = sequence.tokens[sequence.computed..sequence.computed + own].to_vec();
        input.extend((0..drafts).map(|i| emitted.get(i).filter(|_| i < accepted).copied().unwrap_or(999)));
        let table = self.running[s].table[..end.div_ceil(BLOCK)].to_vec();
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
            rows: if self.expand && kind == "verify" { split(whole) } else { vec![whole] },
        })
    }

    /// Blocks for `end` tokens, with a copy of a shared block that would be written.
    fn reserve(&mut self, s: usize, end: usize, copies: &mut Vec<Value>) -> bool {
        let first = self.running[s].computed / BLOCK;
        let blocks = end.div_ceil(BLOCK);
        let have = self.running[s].table.len();
        let shared = (first..have.min(blocks)).filter(|&i| self.refs[self.running[s].table[i]] > 1).count();
        let free = self.refs.iter().filter(|&&r| r == 0).count();
        if free < blocks.saturating_sub(have) + shared {
            return false;
        }
        for i in first..blocks {
            let old = self.running[s].table.get(i).copied();
            if old.is_some_and(|b| self.refs[b] == 1) {
                continue;
            }
            let start = self.dice.below(BLOCKS);
            let Some(new) = (0..BLOCKS).map(|b| (start + b) % BLOCKS).find(|&b| self.refs[b] == 0) else {
                return false;
            };
            self.refs[new] = 1;
            if let Some(old) = old {
                self.refs[old] -= 1;
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
            self.refs[block] -= 1;
        }
        self.running[s].computed = 0;
    }
}

/// Metadata rows of several tokens first.
fn metadata(line: &mut Value, written: Vec<Written>) {
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
    line["input_tokens"] = json!(tokens);
    line["input_positions"] = json!(positions);
    line["metadata"] = json!({"num_prefills": prefills, "num_prefill_tokens": prefill_tokens, "num_decode_tokens": decodes,
        "slot_mapping": slots, "query_start_loc": query, "seq_start_loc": start,
        "seq_lens": rows.iter().map(|r| r.0 + r.1.len()).collect::<Vec<_>>(),
        "context_lens": rows.iter().map(|r| r.0).collect::<Vec<_>>(),
        "max_query_len": rows.iter().map(|r| r.1.len()).max(), "max_prefill_seq_len": prefill_len, "max_decode_seq_len": decode_len,
        "block_tables": rows.iter().map(|r| r.2.clone()).collect::<Vec<_>>(), "use_cuda_graph": false});
}
