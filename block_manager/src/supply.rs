use crate::list::{NONE, Put};
use crate::prefix_cache::CacheKey;
use crate::room::Room;
use crate::{BlockId, BlockPool, GroupId, KvEventKind, MAX_GROUPS, Writable};

/// Where the next block comes from.
impl BlockPool {
    /// A free block for `group`, to be written by the caller alone; what was published of it is forgotten. `None`
    /// when there is none.
    pub fn allocate(&mut self, group: GroupId) -> Option<Writable> {
        self.arena.group(group)?;
        let mut demand = [0; MAX_GROUPS];
        demand[usize::from(group.0)] = 1;
        let mut room = self.room(&demand)?;
        self.make_empty(room.empty);
        self.take(group, 1, &mut room)
    }

    /// One of `left` blocks that `group` is to get, of a demand for which there is `room`. `None` only when there was
    /// none.
    ///
    /// A block of a page that the group holds in part comes first, then an empty page. What is left is cached:
    /// the group's own least recently released block, or the other group's page that has lain unused the longest,
    /// whichever is older. A page is only taken when the group needs one, or when there is one to spare.
    pub(crate) fn take(&mut self, group: GroupId, left: u32, room: &mut Room) -> Option<Writable> {
        let share = self.pages.share(group.0);
        if share.per_page == 1
            && share.primary
            && let Some(lease) = self.take_empty(group)
        {
            return Some(lease);
        }
        self.take_other(group, left, room)
    }

    /// Pages that primary groups can have, if nothing else is asked for.
    #[inline]
    pub(crate) fn free_pages(&self) -> u32 {
        self.pages.quota() + self.pages.primary_reclaimable()
    }

    /// A block of the only group: an empty page, or else the cached block that was released first. `None` when there is
    /// neither.
    #[inline]
    pub(crate) fn take_page(&mut self) -> Option<Writable> {
        self.take_empty(GroupId(0)).or_else(|| self.take_cached_page())
    }

    fn take_cached_page(&mut self) -> Option<Writable> {
        let page = self.pages.first_reclaimable(0)?;
        self.forget(page);
        self.holders[page as usize] = 1;
        self.pages.hold_cached(page);
        Some(Writable::new(GroupId(0), BlockId(page)))
    }

    /// An empty page as a block of a primary group whose blocks are whole pages.
    #[inline]
    pub(crate) fn take_empty(&mut self, group: GroupId) -> Option<Writable> {
        let page = self.pages.hold_empty(group.0)?;
        self.holders[(page * self.most_per_page) as usize] = 1;
        Some(Writable::new(group, BlockId(page)))
    }

    /// The same where no page is empty, or where a page has several blocks.
    fn take_other(&mut self, group: GroupId, left: u32, room: &mut Room) -> Option<Writable> {
        let share = self.pages.share(group.0);
        let whole = share.per_page == 1;
        if let Some(page) = self.pages.open_page(group.0) {
            return Some(self.hand_out(page));
        }
        let primary = share.primary;
        let enough = if primary { share.loose } else { share.owned * share.per_page - share.used };
        let slack = if primary { &mut room.slack } else { &mut room.lagging_slack };
        let needs_page = enough < left;
        let may_open = needs_page || *slack > 0;
        if may_open
            && (!primary || self.pages.quota() > 0)
            && let Some(page) = self.pages.cut_empty(group.0)
        {
            *slack -= u32::from(!needs_page);
            return Some(self.hand_out(page));
        }
        let mut oldest = self.oldest_cached(group);
        if primary && may_open {
            if let Some(page) = self.older_page(group, oldest) {
                *slack -= u32::from(!needs_page);
                self.reclaim(page);
                self.pages.cut_reclaimed(page, group.0);
                return Some(self.hand_out(page));
            }
        } else if primary {
            // All pages are spoken for: the block must come from a page that is held already.
            let held = |place: &u32| self.pages.page(place / self.most_per_page).held > 0;
            oldest = self.cached_places(group).find(held);
        }
        let place = oldest?;
        let page = place / self.most_per_page;
        if whole {
            self.forget(place);
            self.holders[place as usize] = 1;
            self.pages.hold_cached(page);
            return Some(Writable::new(group, BlockId(page)));
        }
        let (held, cached) = (self.pages.page(page).held, self.pages.page(page).cached);
        if primary && held == 0 {
            *slack -= u32::from(!needs_page);
        }
        let used = self.pages.page(page);
        if used.top != NONE || used.fresh < self.per_page(group) {
            // The page has a block without contents, so that nothing needs to be forgotten yet.
            return Some(self.hand_out(page));
        }
        self.unlist(group, place);
        self.forget(place);
        self.holders[place as usize] = 1;
        self.pages.set(page, held + 1, cached - 1, self.clock, Put::Front);
        Some(Writable::new(group, self.id(group, place)))
    }

    /// A free unpublished block of a page that its group owns.
    fn hand_out(&mut self, at: u32) -> Writable {
        let most = self.most_per_page;
        let page = self.pages.page_mut(at);
        let group = GroupId(page.owner);
        let (held, cached) = (page.held, page.cached);
        let place = if page.top == NONE {
            page.fresh += 1;
            at * most + page.fresh - 1
        } else {
            let top = page.top;
            page.top = self.links.under(top);
            top
        };
        self.holders[place as usize] = 1;
        self.pages.set(at, held + 1, cached, self.clock, Put::Front);
        Writable::new(group, self.id(group, place))
    }

    /// Sees to it that so many pages are empty, at the cost of what lagging groups have cached; whether it is so.
    pub(crate) fn make_empty(&mut self, pages: u32) -> bool {
        while self.pages.num_empty() < pages {
            let Some(page) = self.pages.oldest_reclaimable(|_, share| !share.primary) else {
                return false;
            };
            self.reclaim(page);
            self.pages.set(page, 0, 0, self.clock, Put::Back);
        }
        true
    }

    /// Forgets the published blocks of a page that nobody holds a block of.
    fn reclaim(&mut self, at: u32) {
        let page = *self.pages.page(at);
        let first = at * self.most_per_page;
        for place in first..first + page.fresh {
            if self.forget(place) {
                self.unlist(GroupId(page.owner), place);
            }
        }
    }

    /// Takes the block out of the cache; whether it was in it.
    pub(crate) fn forget(&mut self, place: u32) -> bool {
        self.forget_as(KvEventKind::Removed, place)
    }

    /// Takes the block out of the cache, and notes it as `kind` says; whether it was in it.
    pub(crate) fn forget_as(&mut self, kind: KvEventKind, place: u32) -> bool {
        let Some(CacheKey { hash, group }) = self.cache.remove(place) else {
            return false;
        };
        self.kept.remove(&place);
        let id = self.id(group, place);
        if let Some(journal) = &mut self.journal {
            journal.forgotten(kind, group, id, hash);
        }
        true
    }

    /// The free published block of `group` that was released first.
    pub(crate) fn oldest_cached(&self, group: GroupId) -> Option<u32> {
        match self.per_page(group) {
            1 => self.pages.first_reclaimable(group.0).map(|page| page * self.most_per_page),
            _ => self.cached[usize::from(group.0)].front(),
        }
    }

    /// The page of another group that became reclaimable before the block at `oldest` of `group` was released.
    fn older_page(&self, group: GroupId, oldest: Option<u32>) -> Option<u32> {
        if self.pages.shares.len() == 1 {
            return None;
        }
        let page =
            self.pages.oldest_reclaimable(|index, share| share.primary && index != usize::from(group.0))?;
        let own = oldest.map(|place| match self.per_page(group) {
            1 => self.pages.page(place / self.most_per_page).stamp,
            _ => self.stamps[place as usize],
        });
        own.is_none_or(|own| self.pages.page(page).stamp < own).then_some(page)
    }

    /// The free published blocks of `group`, the one that was released first in front.
    pub(crate) fn cached_places(&self, group: GroupId) -> impl Iterator<Item = u32> + '_ {
        let whole = self.per_page(group) == 1;
        let pages = whole.then(|| self.pages.reclaimable(group.0)).into_iter().flatten();
        let most = self.most_per_page;
        pages.map(move |page| page * most).chain(self.links.iter(&self.cached[usize::from(group.0)]))
    }

    /// Takes a block out of the list of its group's free published blocks.
    pub(crate) fn unlist(&mut self, group: GroupId, place: u32) {
        if self.per_page(group) > 1 {
            self.links.remove(&mut self.cached[usize::from(group.0)], place);
        }
    }
}
