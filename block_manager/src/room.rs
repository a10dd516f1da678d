use crate::{BlockPool, MAX_GROUPS};

/// What is left besides a demand for blocks that can be met.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Room {
    /// Pages that primary groups may take without needing them.
    pub(crate) slack: u32,
    /// Empty pages that lagging groups may take without needing them.
    pub(crate) lagging_slack: u32,
    /// Empty pages that primary groups will take at most.
    pub(crate) empty: u32,
}

/// What taking a prefix hit changes, by group: cached blocks become held, and pages with them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pinned {
    /// Cached blocks that become held.
    pub(crate) blocks: [u32; MAX_GROUPS],
    /// Pages without a held block that get one.
    pub(crate) pages: [u32; MAX_GROUPS],
}

impl BlockPool {
    /// Whether `demand[g]` blocks of every group g can be had together, and what is left then.
    pub(crate) fn room(&self, demand: &[u32]) -> Option<Room> {
        self.room_after(demand, None)
    }

    /// The same after a prefix hit was taken.
    ///
    /// Primary groups can have the free blocks of their own pages with a held block, the empty pages of their
    /// quota, and every page of theirs without a held block. Lagging groups can have the free blocks of
    /// their own pages, and empty pages that are left.
    pub(crate) fn room_after(&self, demand: &[u32], pinned: Option<&Pinned>) -> Option<Room> {
        let pages = &self.pages;
        let mut have = pages.quota() + pages.primary_reclaimable();
        let (mut need, mut empty) = (0u64, 0u64);
        let (mut lagging, mut lagging_need) = (false, 0u64);
        for (index, (share, &demand)) in pages.shares.iter().zip(demand).enumerate() {
            let more = |have: u32| u64::from(demand.saturating_sub(have).div_ceil(share.per_page));
            if share.primary {
                let mut loose = share.loose;
                if let Some(pinned) = pinned {
                    loose = loose + pinned.pages[index] * share.per_page - pinned.blocks[index];
                    have -= pinned.pages[index];
                }
                need += more(loose);
                empty += more(share.spare);
            } else if demand > 0 {
                lagging = true;
                lagging_need += more(share.owned * share.per_page - share.used);
            }
        }
        let slack = u64::from(have).checked_sub(need)? as u32;
        let empty = empty.min(u64::from(pages.quota())) as u32;
        let mut room = Room { slack, empty, lagging_slack: 0 };
        if lagging {
            let left = pages.num_empty().checked_sub(empty)?;
            room.lagging_slack = u64::from(left).checked_sub(lagging_need)? as u32;
        }
        Some(room)
    }
}

impl BlockPool {
    /// Blocks of a group that could be had at once, if nothing else were asked for.
    pub(crate) fn room_for(&self, group: crate::GroupId) -> u32 {
        let pages = &self.pages;
        let Some(share) = pages.shares.get(usize::from(group.0)) else {
            return 0;
        };
        if share.primary {
            return share.loose + (pages.quota() + pages.primary_reclaimable()) * share.per_page;
        }
        (share.owned + pages.num_empty()) * share.per_page - share.used
    }

    /// Begins to count what a hit pins.
    pub(crate) fn begin_pins(&mut self) {
        self.pages.begin_marks();
    }

    /// Notes that block `id` of `group`, which is published, is to be held.
    pub(crate) fn pin(&mut self, group: crate::GroupId, id: crate::BlockId, pinned: &mut Pinned) {
        if self.holders(group, id) == 0 {
            let page = self.page_of(group, id);
            pinned.blocks[usize::from(group.0)] += 1;
            let first = self.pages.page(page).held == 0 && self.pages.mark(page);
            pinned.pages[usize::from(group.0)] += u32::from(first);
        }
    }
}
