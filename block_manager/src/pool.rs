use std::collections::HashMap;

use crate::journal::{Contents, KvEventKind, KvJournal};
use crate::list::{Links, List, NONE, Put};
use crate::page::Pages;
use crate::prefix_cache::{CacheKey, PrefixCache};
use crate::{
    Arena, BlockHash, BlockId, BlockSize, Error, GroupId, GroupStats, KvGroup, Lease, MAX_GROUPS, PoolStats,
    Sealed, Writable,
};

/// The blocks of an arena, and who may do what with each.
///
/// A block's life: free -> writable ([`BlockPool::allocate`], one owner) -> sealed ([`BlockPool::seal`]) ->
/// shared ([`BlockPool::share`], [`BlockPool::hit`]) -> free, and evictable if it was published. All operations
/// are O(1) and allocate nothing.
///
/// Blocks are kept by *place*: page times the most blocks of a page, and the block's index in its page. With one
/// group the place of a block is its id.
#[derive(Debug)]
pub struct BlockPool {
    pub(crate) arena: Arena,
    /// The most blocks that a group cuts a page into.
    pub(crate) most_per_page: u32,
    pub(crate) pages: Pages,
    /// How many hold each block; 0 is free.
    pub(crate) holders: Vec<u32>,
    /// When each free published block was released. Not kept for blocks that are whole pages.
    pub(crate) stamps: Vec<u64>,
    /// Links of the free blocks: published ones in the list of their group, others in the stack of their page. Empty where
    /// there is one group, whose blocks are whole pages.
    pub(crate) links: Links,
    /// By group, the free published blocks, the least recently released first. Empty for a group whose blocks are whole
    /// pages: there the list of reclaimable pages says the same.
    pub(crate) cached: [List; MAX_GROUPS],
    pub(crate) cache: PrefixCache,
    /// For each published block that does not hold a prefix, the positions of its tokens, by its place.
    pub(crate) kept: HashMap<u32, Box<[u32]>>,
    /// Counts releases.
    pub(crate) clock: u64,
    pub(crate) journal: Option<KvJournal>,
    /// Whether what is published comes from elsewhere.
    pub(crate) restoring: bool,
}

impl BlockPool {
    /// A pool of `num_blocks` free blocks of one group, to be handed out as 0, 1, 2, ...
    ///
    /// # Errors
    ///
    /// [`Error::NoBlocks`] when `num_blocks` is 0.
    pub fn new(num_blocks: u32) -> Result<Self, Error> {
        let groups = [KvGroup::dense(1, 1)];
        let size = BlockSize::new(BlockSize::ALLOWED[0])?;
        Ok(Self::over(Arena::plan(size, num_blocks, &groups)?, &groups))
    }

    /// A pool of the blocks of `arena`, which was planned for `groups`. All pages are empty.
    #[must_use]
    pub fn over(arena: Arena, groups: &[KvGroup]) -> Self {
        let most_per_page = arena.groups().iter().map(|group| group.per_page).max().unwrap_or(1);
        let places = arena.num_pages() as usize * most_per_page as usize;
        Self {
            most_per_page,
            pages: Pages::new(&arena, groups),
            holders: vec![0; places],
            stamps: vec![0; places],
            links: Links::new(if groups.len() > 1 { places } else { 0 }),
            cached: [List::EMPTY; MAX_GROUPS],
            cache: PrefixCache::new(places),
            kept: HashMap::new(),
            clock: 0,
            journal: None,
            restoring: false,
            arena,
        }
    }

    /// The plan of the memory.
    #[must_use]
    pub fn arena(&self) -> &Arena {
        &self.arena
    }

    /// How full it is.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        let mut stats = PoolStats { bytes_total: self.arena.bytes() as u64, ..PoolStats::default() };
        let blocks = |bytes: u64| u32::try_from(bytes).unwrap_or(u32::MAX);
        // One group's blocks are pages: nothing has to be divided.
        if let [share] = &self.pages.shares[..] {
            let stride = share.stride as u64;
            (stats.num_blocks, stats.used, stats.cached) = (self.pages.len(), share.used, share.cached);
            stats.free = stats.num_blocks - stats.used;
            stats.bytes_used = u64::from(share.used) * stride;
            stats.bytes_free = stats.bytes_total - stats.bytes_used;
            stats.bytes_cached = u64::from(share.cached) * stride;
            return stats;
        }
        let mut smallest = u64::MAX;
        for share in &self.pages.shares {
            let stride = share.stride as u64;
            smallest = smallest.min(stride);
            stats.bytes_used += u64::from(share.used) * stride;
            stats.bytes_cached += u64::from(share.cached) * stride;
            stats.bytes_fragmented += u64::from(share.loose) * stride;
        }
        stats.bytes_free = stats.bytes_total - stats.bytes_used;
        stats.num_blocks = blocks(stats.bytes_total / smallest);
        stats.used = blocks(stats.bytes_used.div_ceil(smallest));
        stats.cached = blocks(stats.bytes_cached / smallest);
        stats.free = stats.num_blocks - stats.used;
        stats
    }

    /// What one group has of the arena; nothing for a group that does not exist.
    #[must_use]
    pub fn group_stats(&self, group: GroupId) -> GroupStats {
        let Some(cut) = self.arena.group(group) else {
            return GroupStats::default();
        };
        let share = self.pages.share(group.0);
        GroupStats { used: share.used, cached: share.cached, block_bytes: cut.block_bytes }
    }

    /// All blocks, free or not, as [`PoolStats`] counts them.
    #[must_use]
    pub fn num_blocks(&self) -> u32 {
        self.stats().num_blocks
    }

    /// Blocks nobody holds, as [`PoolStats`] counts them.
    #[must_use]
    pub fn num_free(&self) -> u32 {
        self.stats().free
    }

    /// How many hold block `id` of `group`; 0 for a free block, or for no block of this pool.
    #[must_use]
    pub fn holders(&self, group: GroupId, id: BlockId) -> u32 {
        self.owned_place(group, id).map_or(0, |place| self.holders[place as usize])
    }

    /// Whether block `id` of `group` is published, that is, can be hit.
    #[must_use]
    pub fn is_published(&self, group: GroupId, id: BlockId) -> bool {
        self.owned_place(group, id).is_some_and(|place| self.cache.contains(place))
    }

    /// The free blocks that `group` could get without taking another group's page, in the order in which they
    /// will be handed out to it: those of its open pages, those of empty pages, those that can be hit.
    pub fn free_order(&self, group: GroupId) -> impl Iterator<Item = BlockId> + '_ {
        let per_page = self.per_page(group);
        let unpublished = self.pages.to_be_used(group.0).flat_map(move |at| {
            let (empty, page) = (self.pages.is_empty(at), self.pages.page(at));
            let (mut top, fresh) = if empty { (NONE, 0) } else { (page.top, page.fresh) };
            let freed = std::iter::from_fn(move || {
                let place = (top != NONE).then_some(top)?;
                top = self.links.under(place);
                Some(self.id(group, place))
            });
            freed.chain((fresh..per_page).map(move |index| BlockId(at * per_page + index)))
        });
        unpublished.chain(self.cached_places(group).map(move |place| self.id(group, place)))
    }

    /// Ends writing: every slot of the block holds an accepted token. With `contents` the block is published.
    pub fn seal(&mut self, lease: Writable, contents: Option<Contents<'_>>) -> Sealed {
        match contents {
            Some(contents) => self.seal_as(lease, contents.hash, || contents),
            None => {
                let (group, id) = lease.into_parts();
                Sealed::new(group, id)
            }
        }
    }

    /// The same of a block that is published under `hash`. The rest is asked for only where changes are noted.
    #[inline]
    pub(crate) fn seal_as<'a>(
        &mut self,
        lease: Writable,
        hash: BlockHash,
        contents: impl FnOnce() -> Contents<'a>,
    ) -> Sealed {
        let (group, id) = lease.into_parts();
        let place = self.place(group, id);
        self.cache.insert(place, CacheKey { hash, group });
        if let Some(journal) = &mut self.journal {
            journal.stored(group, id, &contents(), self.restoring);
        }
        Sealed::new(group, id)
    }

    /// The same of a block that holds the tokens at `positions` of a prompt of which not all tokens are kept.
    pub(crate) fn seal_kept(&mut self, lease: Writable, hash: BlockHash, positions: &[u32]) -> Sealed {
        let (group, id) = lease.into_parts();
        let place = self.place(group, id);
        self.cache.insert(place, CacheKey { hash, group });
        self.kept.insert(place, positions.into());
        if let Some(journal) = &mut self.journal {
            journal.kept(group, id, hash, positions);
        }
        Sealed::new(group, id)
    }

    /// The positions of the tokens of a published block, where they are not counted on from the block before.
    pub(crate) fn kept_positions(&self, lease: &Sealed) -> &[u32] {
        self.kept.get(&self.place(lease.group(), lease.id())).map_or(&[], |positions| positions)
    }

    /// Takes a block that nobody else holds back out of the cache, to be written again; a shared one stays
    /// as it is.
    ///
    /// # Errors
    ///
    /// The lease itself, when others hold the block too.
    pub fn unseal(&mut self, lease: Sealed) -> Result<Writable, Sealed> {
        let place = self.place(lease.group(), lease.id());
        if self.holders[place as usize] > 1 {
            return Err(lease);
        }
        let (group, id) = lease.into_parts();
        self.forget(place);
        Ok(Writable::new(group, id))
    }

    /// One more lease of a sealed block.
    pub fn share(&mut self, lease: &Sealed) -> Sealed {
        let place = self.place(lease.group(), lease.id());
        self.holders[place as usize] += 1;
        Sealed::new(lease.group(), lease.id())
    }

    /// The block published first under `hash` in `group`, if there is one. Takes nothing.
    #[must_use]
    pub fn lookup(&self, hash: &BlockHash, group: GroupId) -> Option<BlockId> {
        let place = self.cache.get(&CacheKey { hash: *hash, group })?;
        Some(self.id(group, place))
    }

    /// A lease of the block [`BlockPool::lookup`] finds.
    pub fn hit(&mut self, hash: &BlockHash, group: GroupId) -> Option<Sealed> {
        let place = self.cache.get(&CacheKey { hash: *hash, group })?;
        let holders = &mut self.holders[place as usize];
        *holders += 1;
        if *holders == 1 {
            let at = place / self.most_per_page;
            if self.per_page(group) == 1 {
                self.pages.hold_cached(at);
            } else {
                self.unlist(group, place);
                let page = self.pages.page(at);
                self.pages.set(at, page.held + 1, page.cached - 1, self.clock, Put::Front);
            }
        }
        Some(Sealed::new(group, self.id(group, place)))
    }

    /// Ends a lease. A block that nobody holds any more becomes free: the very next to be handed out when it
    /// is not published, the last when it is.
    pub fn release(&mut self, lease: impl Into<Lease>) {
        self.release_all([lease.into()]);
    }

    /// Ends several leases. Pages that become empty will be the next ones handed out, in the order given here;
    /// published blocks the last, in the order given too. Empty pages of lagging groups go behind all others.
    pub fn release_all(&mut self, leases: impl IntoIterator<Item = Lease>) {
        if self.pages.is_one_group() {
            return self.release_pages(leases);
        }
        let mut put = Put::Front;
        for lease in leases {
            let (group, id) = lease.into_parts();
            let place = self.place(group, id);
            let holders = &mut self.holders[place as usize];
            *holders -= 1;
            if *holders > 0 {
                continue;
            }
            self.clock += 1;
            let published = self.cache.contains(place);
            let share = self.pages.share(group.0);
            let (primary, whole) = (share.primary, share.per_page == 1);
            let put_page = if primary { put } else { Put::Back };
            if whole {
                if published {
                    self.pages.free_cached(id.0, self.clock);
                    continue;
                }
                self.pages.free_empty(id.0, put_page);
                if primary {
                    put = Put::After(id.0);
                }
                continue;
            }
            let at = place / self.most_per_page;
            let page = self.pages.page_mut(at);
            let (held, mut cached) = (page.held - 1, page.cached);
            if published {
                cached += 1;
                self.stamps[place as usize] = self.clock;
                self.links.push_back(&mut self.cached[usize::from(group.0)], place);
            } else {
                self.links.stack(page.top, place);
                page.top = place;
            }
            self.pages.set(at, held, cached, self.clock, put_page);
            if primary && held + cached == 0 {
                put = Put::After(at);
            }
        }
    }

    /// The same where there is one group: blocks are pages, and pages are places.
    fn release_pages(&mut self, leases: impl IntoIterator<Item = Lease>) {
        let mut put = Put::Front;
        for lease in leases {
            let (_, id) = lease.into_parts();
            let holders = &mut self.holders[id.0 as usize];
            *holders -= 1;
            if *holders > 0 {
                continue;
            }
            self.clock += 1;
            if self.cache.contains(id.0) {
                self.pages.free_cached(id.0, self.clock);
            } else {
                self.pages.free_empty(id.0, put);
                put = Put::After(id.0);
            }
        }
    }

    /// Forgets every published block. Leases are not touched; where there are none, the pool is as new: its pages will be
    /// handed out as 0, 1, 2, ...
    pub fn clear_cache(&mut self) {
        for place in 0..self.holders.len() as u32 {
            self.cache.remove(place);
        }
        self.kept.clear();
        for group in (0..self.pages.shares.len()).map(|group| GroupId(group as u8)) {
            while let Some(place) = self.oldest_cached(group) {
                self.discard(group, place);
            }
        }
        if self.pages.num_empty() == self.pages.len() {
            self.pages.start_anew();
        }
        if let Some(journal) = &mut self.journal {
            journal.cleared();
        }
    }

    /// Takes one block out of the cache, so that nobody can hit it any more; whether it was in it. Leases are not touched.
    pub fn unpublish(&mut self, group: GroupId, id: BlockId) -> bool {
        let Some(place) = self.owned_place(group, id) else { return false };
        let published = self.forget_as(KvEventKind::Lost, place);
        if published && self.holders[place as usize] == 0 {
            self.discard(group, place);
        }
        published
    }

    /// Makes a free block, which was published, one without contents.
    fn discard(&mut self, group: GroupId, place: u32) {
        if self.pages.is_one_group() {
            return self.pages.empty_cached(place);
        }
        self.unlist(group, place);
        let at = place / self.most_per_page;
        let page = self.pages.page_mut(at);
        self.links.stack(page.top, place);
        page.top = place;
        let (held, cached) = (page.held, page.cached - 1);
        self.pages.set(at, held, cached, self.clock, Put::Back);
    }

    /// What was noted since the last [`drain_journal`](Self::drain_journal), if anything is.
    #[must_use]
    pub fn journal(&self) -> Option<&KvJournal> {
        self.journal.as_ref()
    }

    /// From here on changes of the cache are noted, or not.
    pub fn keep_journal(&mut self, yes: bool) {
        match (yes, &self.journal) {
            (true, None) => self.journal = Some(KvJournal::default()),
            (false, Some(_)) => self.journal = None,
            _ => {}
        }
    }

    /// Puts what was noted since the last call in place of what `into` holds, whose memory is used for what
    /// comes next.
    pub fn drain_journal(&mut self, into: &mut KvJournal) {
        into.clear();
        if let Some(journal) = &mut self.journal {
            std::mem::swap(journal, into);
        }
    }

    /// The page that block `id` of `group` lies in.
    pub(crate) fn page_of(&self, group: GroupId, id: BlockId) -> u32 {
        id.0 / self.per_page(group)
    }

    #[inline]
    pub(crate) fn per_page(&self, group: GroupId) -> u32 {
        self.pages.share(group.0).per_page
    }

    #[inline]
    fn place(&self, group: GroupId, id: BlockId) -> u32 {
        let (per_page, most) = (self.per_page(group), self.most_per_page);
        if per_page == most { id.0 } else { id.0 / per_page * most + id.0 % per_page }
    }

    #[inline]
    pub(crate) fn id(&self, group: GroupId, place: u32) -> BlockId {
        let (per_page, most) = (self.per_page(group), self.most_per_page);
        BlockId(if per_page == most { place } else { place / most * per_page + place % most })
    }

    /// The place of a block whose page belongs to `group`.
    fn owned_place(&self, group: GroupId, id: BlockId) -> Option<u32> {
        let cut = self.arena.group(group).filter(|cut| id.0 < cut.num_blocks)?;
        let at = id.0 / cut.per_page;
        let owned =
            self.pages.is_one_group() || (!self.pages.is_empty(at) && self.pages.page(at).owner == group.0);
        owned.then(|| self.place(group, id))
    }
}
