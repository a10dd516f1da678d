use crate::list::{Links, List, NONE, Put};
use crate::{Arena, KvGroup};

/// The list that a page is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    /// It belongs to nobody.
    Empty,
    /// A block of it is held, and one is free and unpublished.
    Open,
    /// No block of it is held, and one can be hit.
    Reclaimable,
    /// In no list: a block of it is held, and the others are held or published.
    Nowhere,
}

/// A page of the arena, and how far its owner uses it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Page {
    /// The group it belongs to. Says nothing of an empty page.
    pub(crate) owner: u8,
    listed: Listed,
    /// Blocks somebody holds.
    pub(crate) held: u32,
    /// Free blocks that are published.
    pub(crate) cached: u32,
    /// Blocks that were handed out since the page was cut are below it.
    pub(crate) fresh: u32,
    /// The free unpublished block below `fresh` that was freed last: the top of a stack in the links of blocks.
    pub(crate) top: u32,
    /// When it became reclaimable.
    pub(crate) stamp: u64,
    /// The round of marks in which it was marked last.
    mark: u32,
}

/// A page that nobody owns.
const UNUSED: Page =
    Page { owner: 0, listed: Listed::Empty, held: 0, cached: 0, fresh: 0, top: NONE, stamp: 0, mark: 0 };

/// What one group has of the pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    pub(crate) per_page: u32,
    pub(crate) stride: usize,
    pub(crate) primary: bool,
    /// Pages that belong to it.
    pub(crate) owned: u32,
    /// Blocks somebody holds.
    pub(crate) used: u32,
    /// Free blocks that are published.
    pub(crate) cached: u32,
    /// Free blocks, published or not, in pages with a held block: nobody else can have them.
    pub(crate) loose: u32,
    /// Those of them that are not published.
    pub(crate) spare: u32,
    open: List,
    reclaimable: List,
}

/// Who owns which page of the arena.
#[derive(Debug)]
pub(crate) struct Pages {
    /// Empty where one group has all pages to itself: its blocks are whole pages, and the lists say all about them.
    pages: Vec<Page>,
    num_pages: u32,
    links: Links,
    empty: List,
    pub(crate) shares: Vec<Share>,
    /// Pages that primary groups own.
    primary_owned: u32,
    /// Those of them that are reclaimable.
    primary_reclaimable: u32,
    primary_pages: u32,
    marks: u32,
}

impl Pages {
    pub(crate) fn new(arena: &Arena, groups: &[KvGroup]) -> Self {
        let alone = groups.len() == 1;
        let shares = arena.groups().iter().zip(groups).map(|(cut, group)| Share {
            per_page: cut.per_page,
            stride: cut.stride,
            primary: alone || !group.lags,
            owned: 0,
            used: 0,
            cached: 0,
            loose: 0,
            spare: 0,
            open: List::EMPTY,
            reclaimable: List::EMPTY,
        });
        let mut new = Self {
            pages: if alone { Vec::new() } else { vec![UNUSED; arena.num_pages() as usize] },
            num_pages: arena.num_pages(),
            links: Links::new(arena.num_pages() as usize),
            empty: List::EMPTY,
            shares: shares.collect(),
            primary_owned: 0,
            primary_reclaimable: 0,
            primary_pages: arena.primary_pages(),
            marks: 0,
        };
        new.start_anew();
        new
    }

    /// All pages, which must be empty, will be handed out in ascending order.
    pub(crate) fn start_anew(&mut self) {
        self.empty = List::EMPTY;
        for page in 0..self.num_pages {
            self.links.push_back(&mut self.empty, page);
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.num_pages
    }

    pub(crate) fn page(&self, page: u32) -> &Page {
        self.pages.get(page as usize).unwrap_or(&UNUSED)
    }

    pub(crate) fn page_mut(&mut self, page: u32) -> &mut Page {
        &mut self.pages[page as usize]
    }

    #[inline]
    pub(crate) fn share(&self, group: u8) -> &Share {
        &self.shares[usize::from(group)]
    }

    /// Whether one group has all pages to itself. Its blocks are whole pages.
    #[inline]
    pub(crate) fn is_one_group(&self) -> bool {
        self.shares.len() == 1
    }

    #[inline]
    pub(crate) fn num_empty(&self) -> u32 {
        self.empty.len()
    }

    /// Pages that primary groups may own besides those they own.
    #[inline]
    pub(crate) fn quota(&self) -> u32 {
        self.primary_pages - self.primary_owned
    }

    /// Pages of primary groups that no held block keeps.
    pub(crate) fn primary_reclaimable(&self) -> u32 {
        self.primary_reclaimable
    }

    /// The page of `group` with a held and a free unpublished block that a block was freed in last.
    pub(crate) fn open_page(&self, group: u8) -> Option<u32> {
        self.share(group).open.front()
    }

    /// The page of `group` that became reclaimable first.
    pub(crate) fn first_reclaimable(&self, group: u8) -> Option<u32> {
        self.share(group).reclaimable.front()
    }

    /// The pages of `group` that no held block keeps, the one that became so first in front.
    pub(crate) fn reclaimable(&self, group: u8) -> impl Iterator<Item = u32> + '_ {
        self.links.iter(&self.share(group).reclaimable)
    }

    /// Of the groups that `which` selects, the page that became reclaimable first.
    pub(crate) fn oldest_reclaimable(&self, which: impl Fn(usize, &Share) -> bool) -> Option<u32> {
        let shares = self.shares.iter().enumerate().filter(|(index, share)| which(*index, share));
        let fronts = shares.filter_map(|(_, share)| share.reclaimable.front());
        fronts.min_by_key(|&page| self.page(page).stamp)
    }

    /// Gives an empty page to `group`: the front one to a primary group, the back one to a lagging one.
    pub(crate) fn cut_empty(&mut self, group: u8) -> Option<u32> {
        let primary = self.share(group).primary;
        let page = if primary { self.empty.front() } else { self.empty.back() }?;
        self.links.remove(&mut self.empty, page);
        self.give(page, group);
        Some(page)
    }

    /// Gives a reclaimable page, whose published blocks were forgotten, to `group`.
    pub(crate) fn cut_reclaimed(&mut self, page: u32, group: u8) {
        self.set(page, 0, 0, 0, Put::Front);
        self.links.remove(&mut self.empty, page);
        self.give(page, group);
    }

    fn give(&mut self, page: u32, group: u8) {
        let share = &mut self.shares[usize::from(group)];
        share.owned += 1;
        self.primary_owned += u32::from(share.primary);
        let page = &mut self.pages[page as usize];
        (page.owner, page.listed, page.fresh, page.top) = (group, Listed::Nowhere, 0, NONE);
    }

    /// Notes how many blocks of `page` are held, and how many free ones are published.
    pub(crate) fn set(&mut self, at: u32, held: u32, cached: u32, now: u64, put: Put) {
        let Self { pages, links, empty, shares, primary_owned, primary_reclaimable, .. } = self;
        let page = &mut pages[at as usize];
        let share = &mut shares[usize::from(page.owner)];
        if page.held > 0 {
            share.loose -= share.per_page - page.held;
            share.spare -= share.per_page - page.held - page.cached;
        }
        share.used = share.used + held - page.held;
        share.cached = share.cached + cached - page.cached;
        let freed = held < page.held;
        (page.held, page.cached) = (held, cached);
        let listed = if held > 0 {
            share.loose += share.per_page - held;
            share.spare += share.per_page - held - cached;
            if held + cached < share.per_page { Listed::Open } else { Listed::Nowhere }
        } else if cached > 0 {
            Listed::Reclaimable
        } else {
            Listed::Empty
        };
        // An open page moves to the front when a block of it is freed; others stay where they are.
        if listed == page.listed && !(listed == Listed::Open && freed) {
            return;
        }
        match page.listed {
            Listed::Open => links.remove(&mut share.open, at),
            Listed::Reclaimable => {
                links.remove(&mut share.reclaimable, at);
                *primary_reclaimable -= u32::from(share.primary);
            }
            Listed::Empty => links.remove(empty, at),
            Listed::Nowhere => {}
        }
        page.listed = listed;
        match listed {
            Listed::Open => links.push_front(&mut share.open, at),
            Listed::Reclaimable => {
                page.stamp = now;
                links.push_back(&mut share.reclaimable, at);
                *primary_reclaimable += u32::from(share.primary);
            }
            Listed::Empty => {
                share.owned -= 1;
                *primary_owned -= u32::from(share.primary);
                links.put(empty, at, put);
            }
            Listed::Nowhere => {}
        }
    }

    /// Gives an empty page of the quota, as the one held block, to a primary group whose blocks are whole pages.
    /// Short for [`cut_empty`](Self::cut_empty) and [`set`](Self::set), as the next three are for `set`: with one
    /// group all blocks are such, and they are kept by their lists alone: an entry would cost a cache miss a block.
    #[inline]
    pub(crate) fn hold_empty(&mut self, group: u8) -> Option<u32> {
        if self.primary_owned == self.primary_pages {
            return None;
        }
        let at = self.empty.front()?;
        self.links.remove(&mut self.empty, at);
        let share = &mut self.shares[usize::from(group)];
        share.owned += 1;
        share.used += 1;
        self.primary_owned += 1;
        if self.shares.len() > 1 {
            let page = &mut self.pages[at as usize];
            (page.owner, page.listed, page.held, page.fresh, page.top) = (group, Listed::Nowhere, 1, 1, NONE);
        }
        Some(at)
    }

    /// The one block of the page, which was published and free, is held.
    #[inline]
    pub(crate) fn hold_cached(&mut self, at: u32) {
        let mut owner = 0;
        if self.shares.len() > 1 {
            let page = &mut self.pages[at as usize];
            (page.listed, page.held, page.cached) = (Listed::Nowhere, 1, 0);
            owner = page.owner;
        }
        let share = &mut self.shares[usize::from(owner)];
        share.used += 1;
        share.cached -= 1;
        self.primary_reclaimable -= u32::from(share.primary);
        self.links.remove(&mut share.reclaimable, at);
    }

    /// The one block of the page, which was held, is free and published.
    #[inline]
    pub(crate) fn free_cached(&mut self, at: u32, now: u64) {
        let mut owner = 0;
        if self.shares.len() > 1 {
            let page = &mut self.pages[at as usize];
            (page.listed, page.held, page.cached, page.stamp) = (Listed::Reclaimable, 0, 1, now);
            owner = page.owner;
        }
        let share = &mut self.shares[usize::from(owner)];
        share.used -= 1;
        share.cached += 1;
        self.primary_reclaimable += u32::from(share.primary);
        self.links.push_back(&mut share.reclaimable, at);
    }

    /// The one block of the page, which was held, is free and not published: the page is empty.
    #[inline]
    pub(crate) fn free_empty(&mut self, at: u32, put: Put) {
        let mut owner = 0;
        if self.shares.len() > 1 {
            let page = &mut self.pages[at as usize];
            (page.listed, page.held) = (Listed::Empty, 0);
            owner = page.owner;
        }
        let share = &mut self.shares[usize::from(owner)];
        share.used -= 1;
        share.owned -= 1;
        self.primary_owned -= u32::from(share.primary);
        self.links.put(&mut self.empty, at, put);
    }

    /// Forgets what a page of the only group has cached: the page is the last of the empty ones.
    pub(crate) fn empty_cached(&mut self, at: u32) {
        let share = &mut self.shares[0];
        share.cached -= 1;
        share.owned -= 1;
        self.primary_owned -= 1;
        self.primary_reclaimable -= 1;
        self.links.remove(&mut share.reclaimable, at);
        self.links.push_back(&mut self.empty, at);
    }

    /// The pages with a held and a free unpublished block, and then the empty ones, in the order in which `group`
    /// would use them.
    pub(crate) fn to_be_used(&self, group: u8) -> impl Iterator<Item = u32> + '_ {
        self.links.iter(&self.share(group).open).chain(self.links.iter(&self.empty))
    }

    /// Whether nobody owns `page`.
    pub(crate) fn is_empty(&self, page: u32) -> bool {
        self.page(page).listed == Listed::Empty
    }

    /// Begins a round of marks, in which no page is marked.
    pub(crate) fn begin_marks(&mut self) {
        self.marks = self.marks.wrapping_add(1);
    }

    /// Marks a page; whether it was not marked in this round before. With one group, whose blocks are pages, nobody asks
    /// for a page twice.
    pub(crate) fn mark(&mut self, page: u32) -> bool {
        let marks = self.marks;
        self.pages.get_mut(page as usize).is_none_or(|page| std::mem::replace(&mut page.mark, marks) != marks)
    }
}
