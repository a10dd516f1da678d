//! The toy engine's draft model. Its KV group drops idle requests when it needs room.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::dice::Dice;
use super::pool::{BLOCK, Pool};

pub(super) const BLOCKS: usize = 14;

#[derive(Default)]
struct Held {
    table: Vec<usize>,
    len: usize,
    sealed: usize,
}

/// What a row wrote: context, tokens, table.
pub(super) type OwnRow = (usize, Vec<u32>, Vec<usize>);

pub(super) struct DraftModel {
    pub(super) pool: Pool,
    held: HashMap<String, Held>,
    /// The requests that have a row in the step.
    busy: Vec<String>,
    /// The blocks that are published at the step's end, and their tokens.
    sealed: Vec<(usize, Vec<u32>)>,
}

impl DraftModel {
    pub(super) fn new() -> Self {
        Self { pool: Pool::new("draft", BLOCKS), held: HashMap::new(), busy: Vec::new(), sealed: Vec::new() }
    }

    /// Writes what it lacks of `tokens`, and all drafts but the last. It writes nothing if there is no
    /// room.
    pub(super) fn propose(
        &mut self,
        id: &str,
        tokens: &[u32],
        drafts: &[u32],
        dice: &mut Dice,
    ) -> Option<OwnRow> {
        let mut held = self.held.remove(id).unwrap_or_default();
        if held.table.is_empty() {
            held.table = self.pool.hit(&tokens[..tokens.len() - 1], None);
            held.sealed = held.table.len();
            held.len = held.sealed * BLOCK;
        }
        let context = held.len.min(tokens.len() - 1);
        let end = tokens.len() + drafts.len() - 1;
        while held.table.len() < end.div_ceil(BLOCK) {
            let block = self.pool.take(dice.below(BLOCKS));
            if let Some(block) = block {
                held.table.push(block);
                continue;
            }
            let mut idle: Vec<&String> = self.held.keys().filter(|id| !self.busy.contains(id)).collect();
            idle.sort();
            let Some(idle) = idle.first().map(|id| (*id).clone()) else {
                held.table.into_iter().for_each(|block| self.pool.release(block));
                return None;
            };
            self.forget(&idle);
        }
        let table = held.table[..end.div_ceil(BLOCK)].to_vec();
        let input = tokens[context..].iter().chain(&drafts[..drafts.len() - 1]).copied().collect();
        self.busy.push(id.to_owned());
        held.len = tokens.len();
        self.held.insert(id.to_owned(), held);
        Some((context, input, table))
    }

    /// Takes note of how many drafts were accepted. `tokens` contains them.
    pub(super) fn verified(&mut self, id: &str, tokens: &[u32], accepted: usize) {
        let Some(held) = self.held.get_mut(id).filter(|_| self.busy.iter().any(|busy| busy == id)) else {
            return;
        };
        held.len = (held.len + accepted).min(tokens.len());
        while (held.sealed + 1) * BLOCK <= held.len {
            let end = (held.sealed + 1) * BLOCK;
            self.sealed.push((held.table[held.sealed], tokens[..end].to_vec()));
            held.sealed += 1;
        }
    }

    pub(super) fn forget(&mut self, id: &str) {
        for block in self.held.remove(id).map(|held| held.table).unwrap_or_default() {
            self.pool.release(block);
        }
    }

    /// The step's record. `rows` are its rows, with their plan rows.
    pub(super) fn record(&mut self, rows: &[(usize, OwnRow)]) -> Value {
        let (mut tokens, mut positions, mut slots, mut query) = (vec![], vec![], vec![], vec![0]);
        for (_, (context, input, table)) in rows {
            for (j, &token) in input.iter().enumerate() {
                let i = context + j;
                tokens.push(token);
                positions.push(i);
                slots.push(table[i / BLOCK] * BLOCK + i % BLOCK);
            }
            query.push(tokens.len());
        }
        let record = json!({"plan_rows": rows.iter().map(|r| r.0).collect::<Vec<_>>(), "input_tokens": tokens,
            "input_positions": positions, "query_start_loc": query, "slot_mapping": slots,
            "seq_lens": rows.iter().map(|r| r.1.0 + r.1.1.len()).collect::<Vec<_>>(),
            "context_lens": rows.iter().map(|r| r.1.0).collect::<Vec<_>>(),
            "block_tables": rows.iter().map(|r| r.1.2.clone()).collect::<Vec<_>>(), "kv_index": null});
        self.busy.clear();
        record
    }

    /// Publishes the blocks that the step has filled.
    pub(super) fn publish(&mut self) {
        for (block, tokens) in self.sealed.drain(..) {
            self.pool.publish(block, &tokens);
        }
    }
}
