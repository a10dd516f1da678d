//! Groups an item's query rows into blocks that fit in registers.

use crate::kernel::work::WorkItem;
use crate::window::{NO_WINDOW, first_key};

/// Up to 8 query rows that go through the inner loops together, so that they share each load of K and V.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowBlock {
    /// The first of its rows, counted within the item. Row r is query token `r / g` in the head `r % g`,
    /// where g is the number of query heads per key head.
    pub first: usize,
    /// How many of its rows are real; rows `count..size` are filled with zeroes.
    pub count: usize,
    /// How many rows the loops compute for it: 1, 2, 4 or 8.
    pub size: usize,
    /// The block's first row in the scratch memory, where the zero-filled rows of the blocks before count
    /// too.
    pub padded: usize,
    /// One past the last key that its last row sees.
    pub last_visible: u32,
    /// For [`visible`](Self::visible): one past the last key that the item's first query sees, how many
    /// more keys each following query sees, and how many query heads share a key head.
    first_visible: u32,
    visible_step: u32,
    group: u32,
    /// For [`first_key`](Self::first_key): the index of the item's first query, and the window, both in
    /// tokens.
    index: u32,
    window: u32,
}

impl RowBlock {
    /// One past the last key that a row sees. A zero-filled row sees what the last real row sees.
    #[inline(always)]
    pub(crate) fn visible(&self, row: usize) -> u32 {
        let row = (self.first + row.min(self.count - 1)) as u32;
        self.first_visible + row / self.group * self.visible_step
    }

    /// Whether a sliding window may hide keys at the start from its rows.
    #[inline(always)]
    pub(crate) fn windowed(&self) -> bool {
        self.window != NO_WINDOW
    }

    /// The first key that a row of the block sees. A zero-filled row sees what the last real row sees.
    #[inline(always)]
    pub(crate) fn first_key(&self, row: usize) -> u32 {
        let row = (self.first + row.min(self.count - 1)) as u32;
        first_key(self.index + row / self.group, self.window)
    }
}

/// Cuts an item's rows into blocks of at most `widest` rows, and returns the number of rows including the
/// zero-filled ones.
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
