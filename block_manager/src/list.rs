pub(crate) const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    prev: u32,
    next: u32,
}

/// One end and the other of a doubly linked list whose links lie in [`Links`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    head: u32,
    tail: u32,
    len: u32,
}

impl List {
    pub(crate) const EMPTY: Self = Self { head: NONE, tail: NONE, len: 0 };

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn front(&self) -> Option<u32> {
        (self.head != NONE).then_some(self.head)
    }

    pub(crate) fn back(&self) -> Option<u32> {
        (self.tail != NONE).then_some(self.tail)
    }
}

/// Where a place goes in a list.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Put {
    Front,
    /// Behind this place, which is in the list.
    After(u32),
    Back,
}

/// The links of several lists in one array: each place is in one list at most, can leave it in O(1), and nothing
/// is allocated.
#[derive(Debug)]
pub(crate) struct Links(Vec<Link>);

impl Links {
    pub(crate) fn new(places: usize) -> Self {
        Self(vec![Link { prev: NONE, next: NONE }; places])
    }

    #[inline]
    pub(crate) fn push_front(&mut self, list: &mut List, at: u32) {
        let old = list.head;
        self.0[at as usize] = Link { prev: NONE, next: old };
        if old == NONE {
            list.tail = at;
        } else {
            self.0[old as usize].prev = at;
        }
        list.head = at;
        list.len += 1;
    }

    #[inline]
    pub(crate) fn push_back(&mut self, list: &mut List, at: u32) {
        let old = list.tail;
        self.0[at as usize] = Link { prev: old, next: NONE };
        if old == NONE {
            list.head = at;
        } else {
            self.0[old as usize].next = at;
        }
        list.tail = at;
        list.len += 1;
    }

    /// Puts `at` right behind `anchor`, which must be in the list.
    #[inline]
    pub(crate) fn insert_after(&mut self, list: &mut List, anchor: u32, at: u32) {
        let next = self.0[anchor as usize].next;
        if next == NONE {
            self.push_back(list, at);
            return;
        }
        self.0[at as usize] = Link { prev: anchor, next };
        self.0[anchor as usize].next = at;
        self.0[next as usize].prev = at;
        list.len += 1;
    }

    #[inline]
    pub(crate) fn put(&mut self, list: &mut List, at: u32, put: Put) {
        match put {
            Put::Front => self.push_front(list, at),
            Put::After(anchor) => self.insert_after(list, anchor, at),
            Put::Back => self.push_back(list, at),
        }
    }

    /// Takes `at` out; it must be in the list.
    #[inline]
    pub(crate) fn remove(&mut self, list: &mut List, at: u32) {
        let Link { prev, next } = self.0[at as usize];
        if prev == NONE {
            list.head = next;
        } else {
            self.0[prev as usize].next = next;
        }
        if next == NONE {
            list.tail = prev;
        } else {
            self.0[next as usize].prev = prev;
        }
        list.len -= 1;
    }

    pub(crate) fn iter(&self, list: &List) -> impl Iterator<Item = u32> + '_ {
        let mut at = list.head;
        std::iter::from_fn(move || {
            let place = (at != NONE).then_some(at)?;
            at = self.0[at as usize].next;
            Some(place)
        })
    }

    /// What lies under `at` in a stack of places that are in no list; see [`Links::stack`].
    pub(crate) fn under(&self, at: u32) -> u32 {
        self.0[at as usize].next
    }

    /// Puts `at`, which is in no list, upon the stack with the given top.
    pub(crate) fn stack(&mut self, top: u32, at: u32) {
        self.0[at as usize].next = top;
    }
}
