//! The toy engine's blocks, with a prefix cache.

use std::collections::HashMap;

use pagedraft_block_manager::{BlockHash, Salt};
use serde_json::{Value, json};

/// The number of tokens of a block.
pub(in super::super) const BLOCK: usize = 16;
/// Stands in a table for a block that was given back behind the window.
pub(super) const FREED: usize = usize::MAX;

pub(super) struct Pool {
    /// The name of the KV group.
    name: &'static str,
    refs: Vec<u32>,
    /// The tokens up to the end of a published block, and the block.
    cache: HashMap<Vec<u32>, usize>,
    names: Vec<Option<Vec<u32>>>,
    /// What left the cache and what entered it since the last line.
    removed: Vec<Value>,
    stored: Vec<Value>,
}

/// The hashes of all blocks of `tokens`.
fn hashes(tokens: &[u32]) -> Vec<BlockHash> {
    let mut hashes = Vec::new();
    for block in tokens.chunks_exact(BLOCK) {
        hashes.push(BlockHash::of(hashes.last().unwrap_or(&BlockHash::ROOT), block, &Salt::NONE));
    }
    hashes
}

impl Pool {
    pub(super) fn new(name: &'static str, blocks: usize) -> Self {
        Self {
            name,
            refs: vec![0; blocks],
            cache: HashMap::new(),
            names: vec![None; blocks],
            removed: Vec::new(),
            stored: Vec::new(),
        }
    }

    pub(super) fn refs(&self, block: usize) -> u32 {
        self.refs[block]
    }

    pub(super) fn free(&self) -> usize {
        self.refs.iter().filter(|&&refs| refs == 0).count()
    }

    /// The number of free blocks with contents that can be hit.
    pub(super) fn cached(&self) -> usize {
        self.refs.iter().zip(&self.names).filter(|(refs, name)| **refs == 0 && name.is_some()).count()
    }

    /// Takes the first free block from `start` on. If it was published, that is undone.
    pub(super) fn take(&mut self, start: usize) -> Option<usize> {
        let blocks = self.refs.len();
        let block = (0..blocks).map(|b| (start + b) % blocks).find(|&b| self.refs[b] == 0)?;
        if let Some(name) = self.names[block].take() {
            let hash = hashes(&name).last().map(BlockHash::as_u64);
            self.removed.push(json!({"kind": "removed", "group": self.name, "block": block, "hash": hash,
                "parent": null, "num_tokens": 0}));
            if self.cache.get(&name) == Some(&block) {
                self.cache.remove(&name);
            }
        }
        self.refs[block] = 1;
        Some(block)
    }

    pub(super) fn share(&mut self, block: usize) {
        if block != FREED {
            self.refs[block] += 1;
        }
    }

    pub(super) fn release(&mut self, block: usize) {
        if block != FREED {
            self.refs[block] -= 1;
        }
    }

    /// The blocks of the longest published prefix of `tokens` that has all blocks which `window` lets the
    /// next query see.
    pub(super) fn hit(&mut self, tokens: &[u32], window: Option<usize>) -> Vec<usize> {
        let find = |block: usize| self.cache.get(&tokens[..(block + 1) * BLOCK]).copied();
        let first =
            |blocks: usize| window.map_or(0, |window| (blocks * BLOCK + 1).saturating_sub(window) / BLOCK);
        let whole = |blocks: &usize| (first(*blocks)..*blocks).all(|block| find(block).is_some());
        let blocks = (0..=tokens.len() / BLOCK).rev().find(whole).unwrap_or(0);
        let seen = first(blocks);
        let entry = |block: usize| if block < seen { FREED } else { find(block).unwrap_or(FREED) };
        let table: Vec<usize> = (0..blocks).map(entry).collect();
        table.iter().for_each(|&block| self.share(block));
        table
    }

    pub(super) fn publish(&mut self, block: usize, tokens: &[u32]) {
        let hashes = hashes(tokens);
        let at = |back: usize| hashes.len().checked_sub(back).map(|at| hashes[at].as_u64());
        self.stored.push(
            json!({"kind": "stored", "group": self.name, "block": block, "hash": at(1), "parent": at(2),
            "num_tokens": BLOCK}),
        );
        self.names[block] = Some(tokens.to_vec());
        self.cache.entry(tokens.to_vec()).or_insert(block);
    }

    /// What left and what entered the cache since the last call.
    pub(super) fn events(&mut self) -> (Vec<Value>, Vec<Value>) {
        (std::mem::take(&mut self.removed), std::mem::take(&mut self.stored))
    }
}
