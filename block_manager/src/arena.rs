use serde::Serialize;

use crate::group::check_groups;
use crate::{BlockSize, Error, GroupId, KvGroup};

/// The most KV groups that one arena can hold.
pub const MAX_GROUPS: usize = 24;

/// The most page sizes that are tried, besides the small multiples of the largest block.
const MOST_CANDIDATES: usize = 2048;

/// A page is at most so many times as large as the largest block.
const LARGEST_PAGE: usize = 8;

/// How one group cuts its pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GroupArena {
    /// Bytes of a block, without padding.
    pub block_bytes: usize,
    /// Bytes from one block to the next: block `b` lies at byte `b * stride` of the arena.
    pub stride: usize,
    /// Blocks a page: `stride * per_page` is the size of a page.
    pub per_page: u32,
    /// All ids of the group's blocks are below it: the blocks it would have if every page were its own.
    pub num_blocks: u32,
}

/// A plan of the memory that all KV groups share. It holds no memory itself.
///
/// The arena is cut into pages of one size. A page is empty, or it belongs to one group, which cuts it into blocks of
/// its own size. So groups of unequal blocks share memory, and each byte goes to the group that needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Arena {
    page_bytes: usize,
    num_pages: u32,
    primary_pages: u32,
    groups: Vec<GroupArena>,
}

impl Arena {
    /// An arena with the bytes of `num_blocks` blocks of every group, scratch groups excepted.
    ///
    /// The page size is the one with which the groups that do not lag waste least: padding of `num_blocks` blocks of
    /// each, and what is left over behind the last page. Of equally good sizes the smallest is taken. So with one such
    /// group a page is a block of it. Lagging groups take the page as it is, unless their blocks are larger.
    ///
    /// # Errors
    ///
    /// No blocks, no groups, too many groups, ids out of order, a group without bytes, a window of 0, or more pages
    /// than can be counted.
    pub fn plan(size: BlockSize, num_blocks: u32, groups: &[KvGroup]) -> Result<Self, Error> {
        if num_blocks == 0 {
            return Err(Error::NoBlocks);
        }
        check_groups(groups)?;
        let blocks: Vec<usize> = groups.iter().map(|group| group.block_bytes(size)).collect();
        let budget = |counts: &dyn Fn(&KvGroup) -> bool| -> usize {
            let sized = groups.iter().filter(|group| !group.is_scratch() && counts(group));
            sized.map(|group| group.block_bytes(size).saturating_mul(num_blocks as usize)).sum()
        };
        // Lagging groups alone have nobody to give way to, and scratch groups alone nobody to be sized by.
        let mut total = budget(&|_| true);
        let mut primary = budget(&|group| !group.lags);
        if total == 0 {
            total = blocks.iter().map(|block| block.saturating_mul(num_blocks as usize)).sum();
        }
        if primary == 0 {
            primary = total;
        }
        // Lagging groups do not change how the others fare: they take the page as it is, unless it is too small.
        let largest = blocks.iter().copied().max().unwrap_or(1);
        let sized_by = groups.iter().zip(&blocks).filter(|(group, _)| !group.lags);
        let sized_by: Vec<usize> = sized_by.map(|(_, &block)| block).collect();
        let all = Units::of(&blocks);
        let mut units = Units::of(&sized_by);
        let mut page_bytes = best_page(&sized_by, num_blocks, primary);
        if page_bytes < largest {
            page_bytes = best_page(&blocks, num_blocks, total);
            units = all;
        }
        let pages = |bytes: usize| u32::try_from(bytes / page_bytes).ok();
        let too_many = Error::TooManyBlocks { num_blocks };
        let num_pages = pages(total).ok_or_else(|| too_many.clone())?.max(1);
        let primary_pages = pages(primary).ok_or_else(|| too_many.clone())?.max(1);
        let mut cut = Vec::with_capacity(blocks.len());
        for (&block_bytes, group) in blocks.iter().zip(groups) {
            let units = if group.lags { &all } else { &units };
            let per_page = units.per_page(page_bytes, block_bytes);
            let num_blocks = num_pages.checked_mul(per_page).filter(|&n| n < u32::MAX);
            let num_blocks = num_blocks.ok_or_else(|| too_many.clone())?;
            cut.push(GroupArena {
                block_bytes,
                stride: page_bytes / per_page as usize,
                per_page,
                num_blocks,
            });
        }
        Ok(Self { page_bytes, num_pages, primary_pages, groups: cut })
    }

    /// Bytes of all pages.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.page_bytes * self.num_pages as usize
    }

    /// Bytes of a page.
    #[must_use]
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// All pages.
    #[must_use]
    pub fn num_pages(&self) -> u32 {
        self.num_pages
    }

    /// Pages that the groups that do not lag can own together. The others are for lagging groups.
    #[must_use]
    pub fn primary_pages(&self) -> u32 {
        self.primary_pages
    }

    /// How a group cuts its pages; `None` for a group that does not exist.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<&GroupArena> {
        self.groups.get(usize::from(id.0))
    }

    /// How each group cuts its pages.
    #[must_use]
    pub fn groups(&self) -> &[GroupArena] {
        &self.groups
    }

    /// The share of the arena that padding wastes when all pages belong to the group that pads most.
    #[must_use]
    pub fn worst_waste(&self) -> f64 {
        let padding = |group: &GroupArena| 1.0 - group.block_bytes as f64 / group.stride as f64;
        self.groups.iter().map(padding).fold(0.0, f64::max)
    }
}

/// What sizes and distances are multiples of.
#[derive(Clone, Copy, Debug)]
struct Units {
    unit: usize,
}

impl Units {
    fn of(blocks: &[usize]) -> Self {
        Self { unit: blocks.iter().fold(0, |a, &b| gcd(a, b)).max(1) }
    }

    /// The most blocks that a page can be cut into evenly. Blocks whose size is a multiple of 64 bytes, a cache line,
    /// lie at multiples of 64 bytes.
    fn per_page(&self, page: usize, block: usize) -> u32 {
        let align = if block.is_multiple_of(64) { 64 } else { self.unit };
        let fits = |count: &usize| page.is_multiple_of(*count) && (page / count).is_multiple_of(align);
        let most = (page / block.max(1)).min(u32::MAX as usize);
        (1..=most).rev().find(fits).unwrap_or(1) as u32
    }
}

/// The size of page that wastes least when blocks of these sizes share `total` bytes: padding of `num_blocks` blocks of
/// each size, and what is left over behind the last page. Of equally good sizes it is the smallest.
fn best_page(blocks: &[usize], num_blocks: u32, total: usize) -> usize {
    if let [block] = blocks {
        return *block;
    }
    let units = Units::of(blocks);
    let largest = blocks.iter().copied().max().unwrap_or(0);
    let step = units.unit * (largest * (LARGEST_PAGE - 1) / units.unit / MOST_CANDIDATES).max(1);
    let even = (largest..=largest * LARGEST_PAGE).step_by(step);
    let multiples = (1..=LARGEST_PAGE).map(|times| largest * times);
    let common = blocks.iter().fold(largest, |a, &b| lcm_below(a, b, largest * LARGEST_PAGE));
    let waste = |page: usize| {
        let padding = |&block: &usize| page / units.per_page(page, block) as usize - block;
        let padded = blocks.iter().map(padding).sum::<usize>().saturating_mul(num_blocks as usize);
        // An arena in which not every table can have a page is of no use.
        (total / page < blocks.len(), padded.saturating_add(total % page))
    };
    let candidates = even.chain(multiples).chain([common]).filter(|&page| page > 0);
    candidates.map(|page| (waste(page), page)).min().map_or(largest, |(_, page)| page)
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The least common multiple, or `a` where that is above `limit`.
fn lcm_below(a: usize, b: usize, limit: usize) -> usize {
    let multiple = (a / gcd(a, b)).saturating_mul(b);
    if multiple <= limit { multiple } else { a }
}
