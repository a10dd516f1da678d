//! Requests that may be in flight at a time.

use std::collections::VecDeque;

/// Seats, of which a request in flight takes one.
#[derive(Debug)]
pub struct Seats {
    /// Since when each free one has been free, the longest first.
    free: VecDeque<u64>,
}

impl Seats {
    /// `count` seats, free since `now_ns`.
    pub fn new(count: u32, now_ns: u64) -> Self {
        Self { free: (0..count).map(|_| now_ns).collect() }
    }

    /// Whether none is free.
    pub fn are_taken(&self) -> bool {
        self.free.is_empty()
    }

    /// Takes the one that has been free for longest: since when it was.
    pub fn take(&mut self) -> Option<u64> {
        self.free.pop_front()
    }

    /// A request has ended.
    pub fn give_back(&mut self, now_ns: u64) {
        self.free.push_back(now_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seat_that_was_free_longest_is_taken_first_and_none_is_taken_twice() {
        let mut seats = Seats::new(2, 7);
        assert_eq!((seats.take(), seats.take()), (Some(7), Some(7)));
        assert!(seats.are_taken());
        seats.give_back(30);
        seats.give_back(40);
        assert_eq!((seats.take(), seats.take(), seats.take()), (Some(30), Some(40), None));
    }
}
