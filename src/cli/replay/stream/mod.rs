//! Sends requests when their time has come, and takes note of the streams that come back.
//!
//! One thread reads requests and prepares them ahead of their time, one lets each go when its time has come, and one hands them all to a
//! [`Target`] and hears of what comes back. Latencies count from intended arrivals.

mod drive;
mod pacer;

pub use self::drive::{Drive, Watch};

use pagedraft_workloads::replay::{
    Incoming, PlannedRequest, SkippedRequest, StreamEnd, StreamFailure, Ticket,
};
use tokio::sync::mpsc::UnboundedSender;

use crate::cli::live::Clock;

/// Whoever answers requests with streams of tokens.
pub trait Target {
    /// What is made of a request ahead of its time.
    type Made: Send;

    /// Sends a request, and returns at once. It runs within the runtime of the [`Drive`].
    fn send(&mut self, request: PlannedRequest, made: Self::Made, teller: Teller);
}

/// A record of the workload, and what was made of it ahead of its time.
pub enum Prepared<M> {
    Request(PlannedRequest, M),
    Skipped(SkippedRequest),
}

impl<M> Prepared<M> {
    /// Prepares a record.
    pub fn new(incoming: Incoming, make: impl FnOnce(&PlannedRequest) -> M) -> Self {
        match incoming {
            Incoming::Request(request) => {
                let made = make(&request);
                Self::Request(request, made)
            }
            Incoming::Skipped(skipped) => Self::Skipped(skipped),
        }
    }

    /// The number of the record in the workload.
    fn index(&self) -> u64 {
        match self {
            Self::Request(request, _) => request.index,
            Self::Skipped(skipped) => skipped.index,
        }
    }
}

/// What became known of a request.
pub struct News {
    ticket: Ticket,
    what: What,
}

pub enum What {
    /// So many output tokens came at one moment, in nanoseconds since the run began.
    Tokens { at_ns: u64, tokens: u32 },
    /// It ended, after it was sent again so many times.
    Ended { end: Result<StreamEnd, StreamFailure>, retries: u32 },
}

/// Tells what becomes known of one request.
pub struct Teller {
    ticket: Ticket,
    news: UnboundedSender<News>,
    pub clock: Clock,
}

impl Teller {
    pub fn tell(&self, what: What) {
        // After Ctrl-C nobody listens any more.
        let _ = self.news.send(News { ticket: self.ticket, what });
    }
}
