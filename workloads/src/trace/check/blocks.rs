//! The checker's own view of a pool: who holds which block, and which tokens were written to it.

use std::collections::HashMap;

use super::fault::Fault;
use super::link::Link;
use super::rule::Rule;
use super::window::UNKNOWN;
use crate::trace::record::CopyRecord;

/// What the trace has shown of the blocks of a pool.
#[derive(Default)]
pub(super) struct Blocks {
    block_size: u32,
    holders: HashMap<u32, Holders>,
    contents: HashMap<u32, Content>,
    /// What the cache has forgotten, by its hash: it may come back.
    forgotten: HashMap<u64, Content>,
    /// The number of published blocks that nobody holds.
    cached: u64,
}

/// What has happened to a block since it was handed out.
#[derive(Clone, Default)]
struct Content {
    /// One bit per slot of the block (blocks have at most 64), set when the slot was written or copied.
    written: u64,
    /// The token last written to each slot. It has no meaning if the slot was never written.
    tokens: Vec<u32>,
    /// Whether a prefix can hit the block.
    published: bool,
    /// The hash of its contents, once it was published.
    link: Option<Link>,
}

struct Holders {
    /// The number of live tables that contain it.
    count: u32,
    /// The entry of the table in which it is, which is the same in all of them.
    index: usize,
}

impl Blocks {
    pub(super) fn new(block_size: u32) -> Self {
        Self { block_size, ..Self::default() }
    }

    /// How many tokens a block holds.
    pub(super) fn block_size(&self) -> u32 {
        self.block_size
    }

    /// The entry at which a block is in the live tables.
    pub(super) fn index(&self, block: u32) -> Option<usize> {
        self.holders.get(&block).map(|holders| holders.index)
    }

    /// The number of different blocks in live tables.
    pub(super) fn held(&self) -> u64 {
        self.holders.len() as u64
    }

    /// The number of published blocks that are in no live table.
    pub(super) fn cached(&self) -> u64 {
        self.cached
    }

    /// The number of live tables that contain a block.
    pub(super) fn holders(&self, block: u32) -> u32 {
        self.holders.get(&block).map_or(0, |holders| holders.count)
    }

    /// Notes that a block enters a live table at entry `index`.
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

    /// Notes that a block leaves a live table.
    pub(super) fn release(&mut self, block: u32) {
        if let Some(holders) = self.holders.get_mut(&block) {
            holders.count -= 1;
            if holders.count == 0 {
                self.holders.remove(&block);
                self.cached += u64::from(self.is_published(block));
            }
        }
    }

    /// Notes that a block is handed out to be written, so that its old contents are gone. Returns `false`
    /// if the cache still has them.
    pub(super) fn hand_out(&mut self, block: u32) -> bool {
        let published = self.contents.remove(&block).is_some_and(|content| content.published);
        self.cached -= u64::from(published && self.holders(block) == 0);
        !published
    }

    /// Notes that the KV of `token` is written. Returns `false` if the block is published, in which case
    /// nobody may write it.
    pub(super) fn write(&mut self, slot: u64, token: u32) -> bool {
        let (block, at) = self.place(slot);
        let content = self.contents.entry(block).or_default();
        content.tokens.resize(self.block_size as usize, 0);
        content.written |= 1 << at;
        content.tokens[at] = token;
        !content.published
    }

    /// Notes that a slot's contents are void, as those of a rejected draft are.
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

    /// Notes that a block can be hit from now on. Returns `false` if it could be hit before.
    pub(super) fn publish(&mut self, block: u32, link: Link) -> bool {
        let content = self.contents.entry(block).or_default();
        content.link = Some(link);
        let fresh = !std::mem::replace(&mut content.published, true);
        self.cached += u64::from(fresh && self.holders(block) == 0);
        fresh
    }

    /// Notes that the cache forgets a block, which it has under `hash`.
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
                if let Some(hash) = hash {
                    self.forgotten.insert(hash, content.clone());
                }
                self.cached -= u64::from(self.holders(block) == 0);
                Ok(())
            }
        }
    }

    /// Notes that a block, which nobody holds, has contents again that the cache has forgotten.
    pub(super) fn restore(&mut self, block: u32, hash: Option<u64>) -> Result<(), String> {
        let Some(content) = hash.and_then(|hash| self.forgotten.get(&hash)) else {
            return Err(format!("block {block} is restored, and the cache never had its contents"));
        };
        if self.holders(block) > 0 || self.is_published(block) {
            return Err(format!("block {block} is restored, and it is in use"));
        }
        self.contents.insert(block, Content { published: true, ..content.clone() });
        self.cached += 1;
        Ok(())
    }

    /// Notes that the cache forgets everything.
    pub(super) fn clear_published(&mut self) {
        self.contents.values_mut().for_each(|content| content.published = false);
        self.cached = 0;
    }

    /// The hash of a block's contents, if it was published since it was handed out.
    pub(super) fn link(&self, block: u32) -> Option<Link> {
        self.contents.get(&block)?.link
    }

    /// The tokens of a block, if all of its slots were written.
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

    /// The first position of `from..to` at which a table holds another token than `tokens` does, with both
    /// tokens.
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

    /// The first position of `from..to` of a table that was never written.
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

    /// Applies the copies of a step in a pool of `num_blocks` blocks, before the step has written anything.
    /// A copy goes from a block that somebody holds to one that nobody holds.
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

    /// Checks that every copied block is in somebody's table now.
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
