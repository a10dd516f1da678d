//! The toy engine's blocks, with a prefix cache.

use std::collections::HashMap;

use super::BLOCK;

pub(super) struct Pool {
    refs: Vec<u32>,
    /// Tokens up to the end of a published block, and the block.
    cache: HashMap<Vec<u32>, usize>,
    names: Vec<Option<Vec<u32>>>,
}

impl Pool {
    pub(super) fn new(blocks: usize) -> Self {
        Self { refs: vec![0; blocks], cache: HashMap::new(), names: vec![None; blocks] }
    }

    pub(super) fn refs(&self, block: usize) -> u32 {
        self.refs[block]
    }

    pub(super) fn free(&self) -> usize {
        self.refs.iter().filter(|&&refs| refs == 0).count()
    }

    /// The first free block from `start` on, what was published of it forgotten.
    pub(super) fn take(&mut self, start: usize) -> Option<usize> {
        let blocks = self.refs.len();
        let block = (0..blocks).map(|b| (start + b) % blocks).find(|&b| self.refs[b] == 0)?;
        if let Some(name) = self.names[block].take()
            && self.cache.get(&name) == Some(&block)
        {
            self.cache.remove(&name);
        }
        self.refs[block] = 1;
        Some(block)
    }

    pub(super) fn share(&mut self, block: usize) {
        self.refs[block] += 1;
    }

    pub(super) fn release(&mut self, block: usize) {
        self.refs[block] -= 1;
    }

    /// Blocks of the longest published prefix of `tokens`.
    pub(super) fn hit(&mut self, tokens: &[u32]) -> Vec<usize> {
        let prefixes = (1..=tokens.len() / BLOCK).map(|blocks| &tokens[..blocks * BLOCK]);
        let table: Vec<usize> = prefixes.map_while(|prefix| self.cache.get(prefix).copied()).collect();
        table.iter().for_each(|&block| self.share(block));
        table
    }

    pub(super) fn publish(&mut self, block: usize, tokens: &[u32]) {
        self.names[block] = Some(tokens.to_vec());
        self.cache.entry(tokens.to_vec()).or_insert(block);
    }
}
