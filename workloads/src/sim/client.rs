//! Sends the requests on time.

use super::Observer;
use crate::Error;
use crate::dataset::DatasetError;
use crate::measures::Recorder;
use crate::replay::{Incoming, PlannedRequest};

/// An open loop. A request is sent at its intended arrival, whatever became of those before it, unless
/// every seat of the concurrency limit is taken. One request is read ahead; others wait in the source.
pub(super) struct Client<'a> {
    source: &'a mut dyn Iterator<Item = Result<Incoming, DatasetError>>,
    next: Option<PlannedRequest>,
    ended: bool,
    in_flight: u64,
    seats: u64,
}

impl<'a> Client<'a> {
    pub(super) fn new(
        source: &'a mut dyn Iterator<Item = Result<Incoming, DatasetError>>,
        max_concurrency: Option<u32>,
    ) -> Self {
        let seats = max_concurrency.map_or(u64::MAX, u64::from);
        Self { source, next: None, ended: false, in_flight: 0, seats }
    }

    /// Reads the next request. Records that are not run are reported as they are passed.
    pub(super) fn read(&mut self, recorder: &mut Recorder, observer: &mut dyn Observer) -> Result<(), Error> {
        while self.next.is_none() && !self.ended {
            match self.source.next() {
                Some(Ok(Incoming::Request(request))) => self.next = Some(request),
                Some(Ok(Incoming::Skipped(skipped))) => observer.line(&recorder.skip(&skipped))?,
                Some(Err(error)) => return Err(error.into()),
                None => self.ended = true,
            }
        }
        Ok(())
    }

    /// When the next request is sent, if no request ends before then. It is never earlier than `now`.
    pub(super) fn due(&self, now: u64) -> Option<u64> {
        if self.in_flight >= self.seats {
            return None;
        }
        self.next.as_ref().map(|request| request.arrival_ns.unwrap_or(now).max(now))
    }

    /// Takes the next request, with its intended arrival. It takes a seat.
    pub(super) fn send(&mut self, now: u64) -> Option<(PlannedRequest, u64)> {
        let request = self.next.take()?;
        let intended = request.arrival_ns.unwrap_or(now).min(now);
        self.in_flight += 1;
        Some((request, intended))
    }

    /// Says that requests ended, which frees their seats.
    pub(super) fn freed(&mut self, seats: usize) {
        self.in_flight -= seats as u64;
    }
}
