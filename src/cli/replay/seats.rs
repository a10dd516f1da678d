//! Requests that may be in flight at a time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a waiting client sleeps before it looks whether it should stop.
const LOOK: Duration = Duration::from_millis(20);

/// Seats, of which a request in flight takes one.
#[derive(Debug)]
pub struct Seats {
    /// Since when each free one has been free, the longest first.
    free: Mutex<VecDeque<u64>>,
    freed: Condvar,
    /// Whether the client had to wait for the next one.
    waited_for: AtomicBool,
}

impl Seats {
    /// `count` seats, free since `now_ns`.
    pub fn new(count: u32, now_ns: u64) -> Self {
        let free = Mutex::new((0..count).map(|_| now_ns).collect());
        Self { free, freed: Condvar::new(), waited_for: AtomicBool::new(false) }
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.lock().len()
    }

    /// Whether a request is waiting for a seat, or was for the last one that became free: the client will fill it at once.
    pub fn is_waited_for(&self) -> bool {
        self.waited_for.load(Ordering::Relaxed)
    }

    /// Waits for a seat, and takes it: since when it had been free. `None` when told to stop.
    pub fn take(&self, stop: &AtomicBool) -> Option<u64> {
        let mut free = self.lock();
        self.waited_for.store(free.is_empty(), Ordering::Relaxed);
        loop {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(since) = free.pop_front() {
                return Some(since);
            }
            free = self.freed.wait_timeout(free, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A request has ended.
    pub fn give_back(&self, now_ns: u64) {
        self.lock().push_back(now_ns);
        self.freed.notify_one();
    }

    /// Lets a waiting client look whether it should stop.
    pub fn wake(&self) {
        drop(self.lock());
        self.freed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u64>> {
        // Nothing is left half-done under this lock.
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seat_that_was_free_longest_is_taken_first_and_none_is_taken_twice() {
        let (seats, stop) = (Seats::new(2, 7), AtomicBool::new(false));
        assert_eq!((seats.take(&stop), seats.take(&stop)), (Some(7), Some(7)));
        seats.give_back(30);
        seats.give_back(40);
        assert_eq!((seats.take(&stop), seats.take(&stop)), (Some(30), Some(40)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| seats.take(&stop));
            stop.store(true, Ordering::Relaxed);
            assert_eq!(waiting.join().unwrap(), None);
        });
    }
}
