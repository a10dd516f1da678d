//! What lies in each slot of the draft's KV, as its records tell it, held against what was accepted.

use std::collections::HashSet;

use pagedraft_block_manager::{BlockId, BlockManager, GroupId};
use pagedraft_spec_decode::proposer::GroupStep;

/// The name of a token and all before it.
fn name(before: u64, token: u32) -> u64 {
    (before ^ (u64::from(token) + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

pub fn names(tokens: &[u32]) -> Vec<u64> {
    let step = |at: &mut u64, &token: &u32| {
        *at = name(*at, token);
        Some(*at)
    };
    tokens.iter().scan(1, step).collect()
}

pub struct Shadow {
    size: usize,
    slots: Vec<u64>,
    /// Every prefix that was ever accepted.
    accepted: HashSet<u64>,
}

impl Shadow {
    /// `num_blocks` is the number of block ids that the draft's group has.
    pub fn new(size: u32, num_blocks: u32) -> Self {
        Self { size: size as usize, slots: vec![0; (size * num_blocks) as usize], accepted: HashSet::new() }
    }

    pub fn accept(&mut self, tokens: &[u32]) {
        self.accepted.extend(names(tokens));
    }

    fn block(&self, id: BlockId) -> u64 {
        self.slots[(id.0 as usize + 1) * self.size - 1]
    }

    /// Checks a step's record against what its rows know, and takes over what it wrote. `known`: the tokens of each plan row.
    pub fn step(&mut self, record: &GroupStep, known: &[&[u32]], drafts: &[&[u32]]) {
        assert_eq!(record.query_start_loc.len(), record.plan_rows.len() + 1);
        assert_eq!(record.block_tables.len(), record.plan_rows.len());
        let mut writers = HashSet::new();
        for (i, &row) in record.plan_rows.iter().enumerate() {
            let own = record.query_start_loc[i] as usize..record.query_start_loc[i + 1] as usize;
            let (from, to) = (record.context_lens[i] as usize, record.seq_lens[i] as usize);
            let mut all = known[row as usize].to_vec();
            all.extend_from_slice(drafts[row as usize]);
            assert_eq!(own.len(), to - from);
            assert_eq!(record.input_tokens[own.clone()], all[from..to]);
            assert!(record.input_positions[own.clone()].iter().map(|&p| p as usize).eq(from..to));
            let table = &record.block_tables[i];
            assert_eq!(table.len(), to.div_ceil(self.size));
            let slot = |i: usize| table[i / self.size].0 as usize * self.size + i % self.size;
            let names = names(&all);
            for (i, &name) in names[..from].iter().enumerate() {
                assert_eq!(self.slots[slot(i)], name, "row {row} reads at {i} what it did not write");
            }
            for (i, &said) in (from..to).zip(&record.slot_mapping[own]) {
                assert_eq!(said, slot(i) as i64);
                assert!(writers.insert(said), "slot {said} was written twice");
                self.slots[slot(i)] = names[i];
            }
        }
    }

    /// Checks that every block that can be hit holds accepted tokens only; how many there are.
    pub fn check(&self, blocks: &BlockManager) -> usize {
        let (pool, draft) = (blocks.pool(), GroupId(1));
        let all = blocks.arena().group(draft).unwrap().num_blocks;
        let published = (0..all).map(BlockId).filter(|&id| pool.is_published(draft, id));
        published
            .inspect(|&id| {
                assert!(self.accepted.contains(&self.block(id)), "block {id:?} holds a rejected token")
            })
            .count()
    }
}
