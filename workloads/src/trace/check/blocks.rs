//! The checker's own pool: who holds which block, and which tokens were written to it.

use std::collections::HashMap;

use super::chain::Link;
use super::lives::UNKNOWN;
use super::{Fault, Rule};
use crate::trace::record::CopyRecord;

/// What the trace so far says about the blocks of a pool.
#[derive(Default)]
pub(super) struct Blocks {
    block_size: u32,
    holders: HashMap<u32, Holders>,
    contents: HashMap<u32, Content>,
    /// Published blocks that nobody holds.
    cached: u64,
}

/// What a block has had since it was handed out.
#[derive(Clone, Default)]
struct Content {
    /// A bit a slot of the block (blocks have at most 64): set when it was written or copied.
    written: u64,
    /// The token last written to each slot; of no meaning where none was.
    tokens: Vec<u32>,
    /// Whether a prefix can hit it.
    published: bool,
    /// The name of what it holds, once it was published.
    link: Option<Link>,
}

struct Holders {
    /// In how many live tables it is.
    count: u32,
    /// At which place; the same in all of them.
    index: usize,
}

impl Blocks {
    pub(super) fn new(block_size: u32) -> Self {
        Self { block_size, ..Self::default() }
    }

    /// Tokens a block.
    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The entry of the live tables that a block is in.
    pub(super) fn index(&self, block: u32) -> Option<usize> {
        self.holders.get(&block).map(|holders| holders.index)
    }

    /// Distinct blocks in live tables.
    pub(super) fn held(&self) -> u64 {
        self.holders.len() as u64
    }

    /// Published blocks that are in no live table.
    pub(super) fn cached(&self) -> u64 {
        self.cached
    }

    /// How many live tables a block is in.
    pub(super) fn holders(&self, block: u32) -> u32 {
        self.holders.get(&block).map_or(0, |holders| holders.count)
    }

    /// A block enters entry `index` of a live table.
    pub(super) fn hold(&mut self, block: u32, index: usize) -> Result<(), String> {
        let holders = self.holders.entry(block).or_insert(Holders { count: 0, index });
        if holders.index != index {
            return Err(format!(
                "block {block} is entry {index} of its table and entry {} of another request's",
                holders.index
            ));
        }
        holders.count += 1;
        let taken = holders.count == 1 && self.is_published(block);
        self.cached -= u64::from(taken);
        Ok(())
    }

    /// A block leaves a live table.
    pub(super) fn release(&mut self, block: u32) {
        if let Some(holders) = self.holders.get_mut(&block) {
            holders.count -= 1;
            if holders.count == 0 {
                self.holders.remove(&block);
                self.cached += u64::from(self.is_published(block));
            }
        }
    }

    /// A block is handed out to be written: what it had is nobody's. `false` when the cache still has it.
    pub(super) fn hand_out(&mut self, block: u32) -> bool {
        let published = self.contents.remove(&block).is_some_and(|content| content.published);
        self.cached -= u64::from(published && self.holders(block) == 0);
        !published
    }

    /// The KV of `token` is written; `false` when the block is published, so that nobody may.
    pub(super) fn write(&mut self, slot: u64, token: u32) -> bool {
        let (block, at) = self.place(slot);
        let content = self.contents.entry(block).or_default();
        content.tokens.resize(self.block_size as usize, 0);
        content.written |= 1 << at;
        content.tokens[at] = token;
        !content.published
    }

    /// A slot's content is of no use (a rejected draft's).
    pub(super) fn forget(&mut self, slot: u64) {
        let (block, at) = self.place(slot);
        if let Some(content) = self.contents.get_mut(&block) {
            content.written &= !(1 << at);
        }
    }

    fn place(&self, slot: u64) -> (u32, usize) {
        let size = u64::from(self.block_size);
        (u32::try_from(slot / size).unwrap_or(u32::MAX), (slot % size) as usize)
    }

    /// Takes note that a block can be hit from now on; `false` when it could before.
    pub(super) fn publish(&mut self, block: u32, link: Link) -> bool {
        let content = self.contents.entry(block).or_default();
        content.link = Some(link);
        let fresh = !std::mem::replace(&mut content.published, true);
        self.cached += u64::from(fresh && self.holders(block) == 0);
        fresh
    }

    /// The cache forgets a block that it has under `hash`.
    pub(super) fn unpublish(&mut self, block: u32, hash: Option<u64>) -> Result<(), String> {
        match self.contents.get_mut(&block).filter(|content| content.published) {
            None => Err(format!("block {block} leaves the cache, and is not in it")),
            Some(content) => {
                let known = content.link.map(|link| link.hash);
                if known != hash {
                    let text = |hash: Option<u64>| hash.map_or("none".to_owned(), |hash| hash.to_string());
                    return Err(format!(
                        "block {block} leaves the cache under hash {}, and is in it under {}",
                        text(hash),
                        text(known)
                    ));
                }
                content.published = false;
                self.cached -= u64::from(self.holders(block) == 0);
                Ok(())
            }
        }
    }

    /// The cache forgets everything.
    pub(super) fn clear_published(&mut self) {
        self.contents.values_mut().for_each(|content| content.published = false);
        self.cached = 0;
    }

    /// The name of what a block holds, where it was published since it was handed out.
    pub(super) fn link(&self, block: u32) -> Option<Link> {
        self.contents.get(&block)?.link
    }

    /// The tokens of a block, once all of it was written.
    pub(super) fn tokens(&self, block: u32) -> Option<&[u32]> {
        let content = self.contents.get(&block)?;
        let full = u64::from(content.written.count_ones()) == u64::from(self.block_size);
        full.then_some(&content.tokens[..])
    }

    pub(super) fn is_published(&self, block: u32) -> bool {
        self.contents.get(&block).is_some_and(|content| content.published)
    }

    /// The token last written at a position of a table.
    pub(super) fn token(&self, table: &[u32], position: u64) -> Option<u32> {
        let size = u64::from(self.block_size);
        let block = table.get(usize::try_from(position / size).ok()?)?;
        let content = self.contents.get(block)?;
        let at = (position % size) as usize;
        (content.written >> at & 1 == 1).then(|| content.tokens.get(at).copied()).flatten()
    }

    /// The first position of `from..to` of a table that holds another token than `tokens`, with the two.
    pub(super) fn first_other(
        &self,
        table: &[u32],
        tokens: &[u32],
        from: u64,
        to: u64,
    ) -> Option<(u64, u32, u32)> {
        (from..to.min(tokens.len() as u64)).find_map(|position| {
            let (is, should) = (self.token(table, position)?, tokens[position as usize]);
            (is != should && should != UNKNOWN).then_some((position, is, should))
        })
    }

    /// The first position of `from..to` of a table that nobody wrote.
    pub(super) fn first_unwritten(&self, table: &[u32], from: u64, to: u64) -> Option<u64> {
        let size = u64::from(self.block_size);
        let mut at = from;
        while at < to {
            let index = usize::try_from(at / size).unwrap_or(usize::MAX);
            let end = to.min((at / size + 1) * size);
            let content = table.get(index).and_then(|block| self.contents.get(block));
            let written = content.map_or(0, |content| content.written);
            let behind = written >> (at % size);
            let run = u64::from(behind.trailing_ones());
            if at + run < end {
                return Some(at + run);
            }
            at = end;
        }
        None
    }

    /// The copies of a step in a pool of `num_blocks`, made before the step wrote anything: from a block that somebody
    /// holds to one that nobody holds.
    pub(super) fn copy(&mut self, copies: &[CopyRecord], num_blocks: u64) -> Result<(), Fault> {
        let mut targets: Vec<u32> = Vec::with_capacity(copies.len());
        for &CopyRecord { from, to, .. } in copies {
            let bad =
                |what: String| Err(Fault::new(Rule::Copy, format!("copy of block {from} to {to}: {what}")));
            let in_pool =
                |block: i64| u32::try_from(block).ok().filter(|&block| u64::from(block) < num_blocks);
            let (Some(source), Some(target)) = (in_pool(from), in_pool(to)) else {
                return bad(format!("the pool has {num_blocks} blocks"));
            };
            if self.holders(source) == 0 {
                return bad(format!("block {source} is in no running request's table"));
            }
            if self.holders(target) > 0 {
                return bad(format!("block {target} is in a running request's table already"));
            }
            if targets.contains(&target) {
                return bad("another copy goes there too".to_owned());
            }
            if self.is_published(target) {
                return bad(format!("the prefix cache still has what was in block {target}"));
            }
            targets.push(target);
            let content = self.contents.get(&source).cloned().unwrap_or_default();
            self.contents.insert(target, Content { published: false, link: None, ..content });
        }
        Ok(())
    }

    /// Whether every copy went into the table of somebody.
    pub(super) fn check_copied(&self, copies: &[CopyRecord]) -> Result<(), Fault> {
        let held = |to: i64| u32::try_from(to).is_ok_and(|block| self.holders(block) > 0);
        match copies.iter().find(|copy| !held(copy.to)) {
            None => Ok(()),
            Some(CopyRecord { from, to, .. }) => {
                let what = format!("copy of block {from} to {to}: block {to} is in no row's table");
                Err(Fault::new(Rule::Copy, what))
            }
        }
    }

    /// The blocks that somebody holds.
    pub(super) fn all_held(&self) -> impl Iterator<Item = u32> + '_ {
        self.holders.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::Blocks;

    #[test]
    fn the_first_position_that_nobody_wrote_is_found() {
        for size in [16, 32, 64u32] {
            let mut blocks = Blocks::new(size);
            let table = [5, 2, 9];
            let slot = |i: u64| u64::from(table[(i / u64::from(size)) as usize] * size) + i % u64::from(size);
            let all = u64::from(size) * 3;
            assert_eq!(blocks.first_unwritten(&table, 0, all), Some(0));
            assert!((0..all).all(|i| blocks.write(slot(i), 7)));
            assert_eq!(blocks.first_unwritten(&table, 0, all), None);
            assert_eq!(blocks.first_unwritten(&table, 0, all + 1), Some(all));
            for hole in [0, 1, u64::from(size) - 1, u64::from(size), all - 1] {
                blocks.forget(slot(hole));
                assert_eq!(blocks.first_unwritten(&table, 0, all), Some(hole));
                assert_eq!(blocks.first_unwritten(&table, hole + 1, all), None);
                assert_eq!(blocks.first_unwritten(&table, 0, hole), None);
                blocks.write(slot(hole), 7);
            }
        }
    }
}
