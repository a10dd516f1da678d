//! Limits the number of requests in flight.

use std::collections::VecDeque;

/// The seats. Each request in flight takes one.
#[derive(Debug)]
pub struct Seats {
    /// Since when each free seat has been free, in nanoseconds; the one that has been free longest comes
    /// first.
    free: VecDeque<u64>,
}

impl Seats {
    /// `count` seats that have been free since `now_ns`.
    pub fn new(count: u32, now_ns: u64) -> Self {
        Self { free: (0..count).map(|_| now_ns).collect() }
    }

    /// Whether no seat is free.
    pub fn are_taken(&self) -> bool {
        self.free.is_empty()
    }

    /// Takes the seat that has been free longest. Returns since when it was free.
    pub fn take(&mut self) -> Option<u64> {
        self.free.pop_front()
    }

    /// Frees a seat, because a request has ended.
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
