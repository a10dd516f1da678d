//! What is recomputed from tables and from the journal after each operation.
use std::collections::{BTreeMap, BTreeSet};

use pagedraft_block_manager::{BlockHash, BlockId, GroupId, KvEventKind, KvIndex, Salt};

use crate::{FREED, SIZE, World};

impl World {
    /// The journal says that these blocks, and no others, were published.
    pub(crate) fn published_by(
        &mut self,
        s: usize,
        group: usize,
        sealed: std::ops::Range<u32>,
        pruned: bool,
    ) {
        self.replay();
        let seq = &self.seqs[s];
        for index in sealed {
            let key = (group, seq.tables[group].ids[index as usize]);
            let stored = self.published.get(&key);
            if pruned || self.groups[group].is_scratch() {
                assert_eq!(stored, None);
                continue;
            }
            let (_, salt, tokens) = stored.unwrap();
            assert_eq!((salt, &tokens[..]), (&seq.salt, &seq.tokens[..(index as usize + 1) * SIZE as usize]));
        }
    }

    /// Brings `published` up to date, by the journal alone.
    pub(crate) fn replay(&mut self) {
        let mut journal = std::mem::take(&mut self.journal);
        self.real.drain_journal(&mut journal);
        for event in &journal.events {
            let key = (usize::from(event.group.0), event.block.0);
            match event.kind {
                KvEventKind::Cleared => {
                    self.published.clear();
                    self.order.clear();
                }
                KvEventKind::Removed | KvEventKind::Lost => {
                    assert_eq!(self.published.remove(&key).unwrap().0, event.hash);
                    self.order.retain(|other| *other != key);
                }
                KvEventKind::Kept => unreachable!("no sequence of this world has a kept prompt"),
                KvEventKind::Stored | KvEventKind::Restored => {
                    let tokens = &journal.tokens[event.tokens.start as usize..event.tokens.end as usize];
                    let (salt, whole) = self.who_has(event.parent, tokens, event.hash);
                    let before = self.published.insert(key, (event.hash, salt, whole));
                    assert_eq!(before, None, "published twice");
                    self.order.push(key);
                }
            }
        }
        self.journal = journal;
    }

    /// The salt and tokens that `hash` is the name of, from a sequence that has them.
    pub(crate) fn who_has(
        &self,
        parent: Option<BlockHash>,
        block: &[u32],
        hash: BlockHash,
    ) -> (Salt, Vec<u32>) {
        for seq in self.seqs.iter().filter(|seq| seq.alive) {
            let mut before = None;
            for (index, tokens) in seq.tokens.chunks_exact(SIZE as usize).enumerate() {
                let name = BlockHash::of(&before.unwrap_or(BlockHash::ROOT), tokens, &seq.salt);
                if name == hash {
                    assert_eq!((parent, block), (before, tokens));
                    return (seq.salt, seq.tokens[..(index + 1) * SIZE as usize].to_vec());
                }
                before = Some(name);
            }
        }
        unreachable!("a block was published whose tokens nobody has");
    }

    /// The blocks that somebody holds.
    pub(crate) fn held(&self) -> BTreeSet<(usize, u32)> {
        let tables = self.seqs.iter().flat_map(|seq| seq.tables.iter().enumerate());
        let ids = tables.flat_map(|(group, table)| table.ids.iter().map(move |&id| (group, id)));
        ids.filter(|(_, id)| *id != FREED).collect()
    }

    /// By page: its owner, held blocks and cached ones.
    pub(crate) fn pages(&mut self) -> BTreeMap<u32, (usize, u32, u32)> {
        self.replay();
        let held = self.held();
        let mut pages = BTreeMap::new();
        let cached = self.published.keys().filter(|key| !held.contains(key));
        for (is_held, &(group, id)) in
            held.iter().map(|key| (true, key)).chain(cached.map(|key| (false, key)))
        {
            let page = id / self.real.arena().groups()[group].per_page;
            let (owner, held, cached) = pages.entry(page).or_insert((group, 0, 0));
            assert_eq!(*owner, group, "page {page} belongs to two groups");
            *held += u32::from(is_held);
            *cached += u32::from(!is_held);
        }
        pages
    }

    /// Whether so many more blocks can be had, by counting pages.
    pub(crate) fn naive_room(&mut self, want: &[u32]) -> bool {
        let pages = self.pages();
        let arena = self.real.arena().clone();
        let (mut owned, mut reclaimable, mut need, mut lagging_need) = (0, 0, 0, 0);
        for (index, group) in self.groups.iter().enumerate() {
            let per_page = arena.groups()[index].per_page;
            let own: Vec<_> = pages.values().filter(|page| page.0 == index).collect();
            let free_in = |held: bool| -> u32 {
                own.iter().filter(|page| !held || page.1 > 0).map(|page| per_page - page.1).sum()
            };
            let more = |free: u32| want[index].saturating_sub(free).div_ceil(per_page);
            if group.lags {
                lagging_need += more(free_in(false));
                continue;
            }
            owned += own.len() as u32;
            reclaimable += own.iter().filter(|page| page.1 == 0).count() as u32;
            need += more(free_in(true));
        }
        let empty = arena.num_pages() - pages.len() as u32;
        need <= arena.primary_pages() - owned + reclaimable && lagging_need <= empty
    }

    pub(crate) fn check(&mut self) {
        self.drops();
        let pages = self.pages();
        let held = self.held();
        let arena = self.real.arena().clone();
        // No two blocks overlap, and all lie in the arena.
        let range = |&(group, id): &(usize, u32)| {
            let cut = &arena.groups()[group];
            let start = id as usize * cut.stride;
            (start, start + cut.block_bytes)
        };
        let mut ranges: Vec<(usize, usize)> = held.iter().map(range).collect();
        ranges.sort_unstable();
        assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0), "blocks overlap: {ranges:?}");
        assert!(ranges.last().is_none_or(|last| last.1 <= arena.bytes()));
        // Bytes are conserved.
        let stats = self.real.stats();
        let stride = |group: usize| arena.groups()[group].stride as u64;
        let used: u64 = held.iter().map(|key| stride(key.0)).sum();
        let cached = self.published.keys().filter(|key| !held.contains(key));
        let cached: u64 = cached.map(|key| stride(key.0)).sum();
        let page_bytes = arena.page_bytes() as u64;
        let loose = pages.values().filter(|page| page.1 > 0);
        let loose: u64 = loose.map(|page| page_bytes - u64::from(page.1) * stride(page.0)).sum();
        assert_eq!(
            (
                stats.bytes_used,
                stats.bytes_cached,
                stats.bytes_fragmented,
                stats.bytes_used + stats.bytes_free
            ),
            (used, cached, loose, arena.bytes() as u64)
        );
        assert_eq!(stats.used + stats.free, stats.num_blocks);
        let primary = pages.values().filter(|page| !self.groups[page.0].lags).count();
        assert!(primary as u32 <= arena.primary_pages());
        // Every block is held as often as tables say, and published if the journal says so.
        for (group, cut) in arena.groups().iter().enumerate() {
            let kv = GroupId(group as u8);
            for id in 0..cut.num_blocks.min(200) {
                let tables = self.seqs.iter().map(|seq| &seq.tables[group]);
                let holders = tables.filter(|table| table.ids.contains(&id)).count();
                assert_eq!(self.real.pool().holders(kv, BlockId(id)) as usize, holders);
                let published = self.published.contains_key(&(group, id));
                assert_eq!(self.real.pool().is_published(kv, BlockId(id)), published);
            }
            let used = held.iter().filter(|key| key.0 == group).count();
            assert_eq!(self.real.group_stats(kv).used as usize, used);
            if let Some(twin) = self.twin.as_ref().filter(|_| !self.groups[group].lags) {
                assert_eq!(
                    twin.group_stats(kv),
                    self.real.group_stats(kv),
                    "a lagging group made a difference"
                );
            }
        }
        for seq in self.seqs.iter().filter(|seq| seq.alive) {
            for (group, table) in seq.tables.iter().enumerate() {
                let kv = GroupId(group as u8);
                let lengths = self.real.lengths(seq.id, kv).unwrap();
                assert_eq!((lengths.physical, lengths.logical), (table.physical, table.logical));
                let index = table.positions.as_deref().map_or(KvIndex::Position, KvIndex::Explicit);
                assert_eq!(self.real.index(seq.id, kv), index);
            }
        }
    }

    /// Everything was freed: each group alone can have all that it may ever have.
    pub(crate) fn check_whole(&mut self) {
        assert_eq!(self.real.stats().bytes_used, 0);
        let arena = self.real.arena().clone();
        for index in 0..self.groups.len() {
            let (lags, kv) = (self.groups[index].lags, GroupId(index as u8));
            if lags {
                self.real.clear_cache();
            }
            let pages = if lags { arena.num_pages() } else { arena.primary_pages() };
            let all = pages * arena.groups()[index].per_page;
            assert_eq!(self.real.room(kv), all);
            let sequence = self.real.open(Salt::NONE);
            assert_eq!(self.real.reserve_group(sequence, kv, all * SIZE + 1), Ok(None));
            assert_eq!(self.real.reserve_group(sequence, kv, all * SIZE), Ok(Some(())));
            self.real.free(sequence).unwrap();
        }
    }
}
