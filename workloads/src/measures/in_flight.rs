use super::blocks::Reading;
use super::speculation::Drafts;
use crate::dataset::Expectation;
use crate::replay::Ticket;

/// Stands for a time that has not come yet.
pub(super) const NOT_YET: u64 = u64::MAX;

/// What every step needs of a request. It fits in a cache line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    pub intended_ns: u64,
    /// When the first step that ran it began, or [`NOT_YET`].
    pub begun_ns: u64,
    pub first_token_ns: u64,
    /// When its newest token came, or [`NOT_YET`].
    pub last_token_ns: u64,
    pub output_tokens: u32,
    /// The number of steps that gave it tokens after the first one.
    pub decode_steps: u32,
    pub prefix_blocks: u32,
    pub reading: Reading,
    /// Whether it is in the steady window.
    pub steady: bool,
    live: bool,
}

/// What is needed of a request only at its beginning and its end.
#[derive(Clone, Debug)]
pub(super) struct Details {
    pub index: u64,
    pub source_id: Option<String>,
    pub category: Option<String>,
    pub sent_ns: u64,
    pub prompt_tokens: u32,
    pub cached_tokens: u32,
    pub expect: Option<Expectation>,
    pub drafts: Drafts,
    pub replica: u32,
}

/// The requests in flight, by ticket. Tickets are reused, so the lists are never longer than the most
/// requests in flight at once.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight {
    progress: Vec<Progress>,
    details: Vec<Details>,
    free: Vec<u32>,
}

impl InFlight {
    pub(super) fn len(&self) -> usize {
        self.progress.len() - self.free.len()
    }

    /// The progress of each request in flight.
    pub(super) fn each(&self) -> impl Iterator<Item = &Progress> {
        self.progress.iter().filter(|p| p.live)
    }

    /// The number of tickets, in use or free.
    #[cfg(test)]
    pub(super) fn places(&self) -> usize {
        self.progress.len()
    }

    pub(super) fn insert(&mut self, intended_ns: u64, steady: bool, mut details: Details) -> Ticket {
        let progress = Progress {
            intended_ns,
            begun_ns: NOT_YET,
            first_token_ns: NOT_YET,
            last_token_ns: NOT_YET,
            output_tokens: 0,
            decode_steps: 0,
            prefix_blocks: 0,
            reading: Reading::default(),
            steady,
            live: true,
        };
        if let Some(place) = self.free.pop() {
            let at = place as usize;
            // The buffer for drafts is reused too.
            std::mem::swap(&mut details.drafts, &mut self.details[at].drafts);
            details.drafts.clear();
            (self.progress[at], self.details[at]) = (progress, details);
            return Ticket(place);
        }
        self.progress.push(progress);
        self.details.push(details);
        Ticket((self.progress.len() - 1) as u32)
    }

    /// The progress of a request; `None` if the ticket is not in flight.
    #[inline]
    pub(super) fn progress(&mut self, ticket: Ticket) -> Option<&mut Progress> {
        self.progress.get_mut(ticket.0 as usize).filter(|p| p.live)
    }

    pub(super) fn details(&mut self, ticket: Ticket) -> Option<&mut Details> {
        self.details.get_mut(ticket.0 as usize)
    }

    /// Removes a request. Its details stay until the ticket is reused.
    pub(super) fn remove(&mut self, ticket: Ticket) -> Option<(Progress, &mut Details)> {
        let progress = self.progress(ticket)?;
        progress.live = false;
        let progress = *progress;
        self.free.push(ticket.0);
        self.details(ticket).map(|details| (progress, details))
    }
}
