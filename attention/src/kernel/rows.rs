//! Query rows in register blocks.

use crate::kernel::work::{NO_WINDOW, WorkItem, first_key};

/// Up to 8 query rows that go through the inner loops together, sharing each load of K and V.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowBlock {
    /// The first of its rows among those of the item. Row numbers are query token times heads a key head, plus head.
    pub first: usize,
    /// How many rows of the item it has; the places from `count` to `size` are filled with zeroes.
    pub count: usize,
    /// How many rows the loops compute for it: 1, 2, 4 or 8.
    pub size: usize,
    /// Where its rows start in the scratch memory, whose rows include the filling of the blocks before.
    pub padded: usize,
    /// The end of the keys that its last row sees.
    pub last_visible: u32,
    /// What [`visible`](Self::visible) computes from: the item's first query and heads a key head.
    first_visible: u32,
    visible_step: u32,
    group: u32,
    /// What [`first_key`](Self::first_key) computes from: the index of the item's first query, and the window.
    index: u32,
    window: u32,
}

impl RowBlock {
    /// The end of the keys that a row sees. Rows of the filling see what the last real row does.
    #[inline(always)]
    pub(crate) fn visible(&self, row: usize) -> u32 {
        let row = (self.first + row.min(self.count - 1)) as u32;
        self.first_visible + row / self.group * self.visible_step
    }

    /// Whether its rows may see no key before some index.
    #[inline(always)]
    pub(crate) fn windowed(&self) -> bool {
        self.window != NO_WINDOW
    }

    /// First key that a row of the block sees; rows of the filling see what the last real one does.
    #[inline(always)]
    pub(crate) fn first_key(&self, row: usize) -> u32 {
        let row = (self.first + row.min(self.count - 1)) as u32;
        first_key(self.index + row / self.group, self.window)
    }
}

/// Cuts an item's rows into blocks of at most `widest`, and returns how many padded rows they make.
pub(crate) fn cut(item: &WorkItem, group: usize, widest: usize, blocks: &mut Vec<RowBlock>) -> usize {
    blocks.clear();
    let rows = item.queries as usize * group;
    let (mut first, mut padded) = (0, 0);
    while first < rows {
        let left = rows - first;
        let size = match left {
            6.. if widest == 8 => 8,
            3.. if widest >= 4 => 4,
            2 if widest == 8 => 2,
            _ => 1,
        };
        let count = left.min(size);
        let mut block = RowBlock {
            first,
            count,
            size,
            padded,
            last_visible: 0,
            first_visible: item.first_visible,
            visible_step: item.visible_step,
            group: group as u32,
            index: item.index,
            window: item.window,
        };
        block.last_visible = block.visible(count - 1);
        blocks.push(block);
        first += count;
        padded += size;
    }
    padded
}
