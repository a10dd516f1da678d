use crate::BlockId;

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
}

/// The free blocks in the order in which they are handed out: a doubly linked list whose links lie in one
/// array, so that any block can leave it in O(1) and nothing is allocated.
#[derive(Debug)]
pub(crate) struct FreeList {
    links: Vec<Link>,
    head: u32,
    tail: u32,
    len: u32,
}

impl FreeList {
    /// All of `0 .. num_blocks`, in order.
    pub(crate) fn all(num_blocks: u32) -> Self {
        let mut list = Self {
            links: vec![Link { prev: NONE, next: NONE }; num_blocks as usize],
            head: NONE,
            tail: NONE,
            len: 0,
        };
        for id in 0..num_blocks {
            list.push_back(BlockId(id));
        }
        list
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn push_front(&mut self, id: BlockId) {
        let old = self.head;
        self.links[id.0 as usize] = Link { prev: NONE, next: old };
        if old == NONE {
            self.tail = id.0;
        } else {
            self.links[old as usize].prev = id.0;
        }
        self.head = id.0;
        self.len += 1;
    }

    pub(crate) fn push_back(&mut self, id: BlockId) {
        let old = self.tail;
        self.links[id.0 as usize] = Link { prev: old, next: NONE };
        if old == NONE {
            self.head = id.0;
        } else {
            self.links[old as usize].next = id.0;
        }
        self.tail = id.0;
        self.len += 1;
    }

    /// Puts `id` right behind `anchor`, which must be in the list.
    pub(crate) fn insert_after(&mut self, anchor: BlockId, id: BlockId) {
        let next = self.links[anchor.0 as usize].next;
        if next == NONE {
            self.push_back(id);
            return;
        }
        self.links[id.0 as usize] = Link { prev: anchor.0, next };
        self.links[anchor.0 as usize].next = id.0;
        self.links[next as usize].prev = id.0;
        self.len += 1;
    }

    pub(crate) fn pop_front(&mut self) -> Option<BlockId> {
        if self.head == NONE {
            return None;
        }
        let id = BlockId(self.head);
        self.remove(id);
        Some(id)
    }

    /// Takes `id` out; it must be in the list.
    pub(crate) fn remove(&mut self, id: BlockId) {
        let Link { prev, next } = self.links[id.0 as usize];
        if prev == NONE {
            self.head = next;
        } else {
            self.links[prev as usize].next = next;
        }
        if next == NONE {
            self.tail = prev;
        } else {
            self.links[next as usize].prev = prev;
        }
        self.len -= 1;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = BlockId> + '_ {
        let mut at = self.head;
        std::iter::from_fn(move || {
            let id = (at != NONE).then_some(BlockId(at))?;
            at = self.links[at as usize].next;
            Some(id)
        })
    }
}
