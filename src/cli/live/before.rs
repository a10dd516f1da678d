//! Keeps what a resumed run had done before it was stopped.
//!
//! Intended arrivals stay the same. The run's clock goes on from the end of the last request, so that a
//! request that was lost with the engine has waited since it should have been sent. Only in a closed loop,
//! where a request should be sent when a seat is free, does its intended arrival come after the resume.

use std::collections::HashSet;

use pagedraft_workloads::replay::{Incoming, PlannedRequest};

/// What was done before the run was stopped.
#[derive(Debug, Default)]
pub struct Before {
    /// The indices of requests that are finished, skipped or failed.
    pub done: HashSet<u64>,
    /// When the last of them ended, in nanoseconds.
    pub end_ns: u64,
}

impl Before {
    /// Whether a record was done before the stop.
    pub fn has(&self, incoming: &Incoming) -> bool {
        let index = match incoming {
            Incoming::Request(request) => request.index,
            Incoming::Skipped(skipped) => skipped.index,
        };
        self.done.contains(&index)
    }

    /// Whether a request that is not done had probably been sent when the run was stopped: its time had
    /// come, and the requests before it left a seat free.
    pub fn sent(&self, request: &PlannedRequest, max_concurrency: Option<u32>) -> bool {
        let due = request.arrival_ns.is_none_or(|arrival_ns| arrival_ns < self.end_ns);
        let seated =
            max_concurrency.is_none_or(|seats| request.index < self.done.len() as u64 + u64::from(seats));
        self.end_ns > 0 && due && seated
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether each request had been sent, after a stop at 1 s with requests 0 and 2 done.
    fn sent(seats: Option<u32>, arrivals: &[Option<u64>]) -> Vec<(u64, bool)> {
        let before = Before { done: HashSet::from([0, 2]), end_ns: 1_000_000_000 };
        let planned = |(index, &arrival_ns): (u64, &Option<u64>)| PlannedRequest {
            index,
            source_id: None,
            category: None,
            arrival_ns,
            prompt: vec![1],
            text: None,
            max_tokens: 1,
            until_stop: false,
            expect: None,
        };
        let left = (0..)
            .zip(arrivals)
            .map(planned)
            .filter(|request| !before.has(&Incoming::Request(request.clone())));
        left.map(|request| (request.index, before.sent(&request, seats))).collect()
    }

    #[test]
    fn in_an_open_loop_what_was_due_had_been_sent() {
        let ms = |ms: u64| Some(ms * 1_000_000);
        let arrivals = [ms(0), ms(300), ms(400), ms(900), ms(1001), ms(1002)];
        assert_eq!(sent(None, &arrivals), [(1, true), (3, true), (4, false), (5, false)]);
        // With one seat, there was room only for request 1.
        assert_eq!(sent(Some(1), &arrivals)[..2], [(1, true), (3, false)]);
    }

    #[test]
    fn in_a_closed_loop_as_many_had_been_sent_as_had_seats() {
        assert_eq!(sent(Some(2), &[None; 6]), [(1, true), (3, true), (4, false), (5, false)]);
    }
}
