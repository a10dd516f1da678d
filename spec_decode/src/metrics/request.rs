//! What speculation brought one request.

use serde::Serialize;

use crate::acceptance::Verdict;

/// Counts of one request, by place among the drafts: what is kept for each of many requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RequestSpeculation {
    /// Verify rows that had a draft there.
    pub drafted_by_position: Vec<u32>,
    /// Verify rows that accepted it, and so all before it. As long as `drafted_by_position`.
    pub accepted_by_position: Vec<u32>,
}

impl RequestSpeculation {
    /// Counts a row with so many drafts; nothing if it had none.
    pub fn record_row(&mut self, drafts: usize, verdict: Verdict) {
        if self.drafted_by_position.len() < drafts {
            self.drafted_by_position.resize(drafts, 0);
            self.accepted_by_position.resize(drafts, 0);
        }
        let accepted = usize::from(verdict.accepted).min(drafts);
        self.drafted_by_position.iter_mut().take(drafts).for_each(|count| *count += 1);
        self.accepted_by_position.iter_mut().take(accepted).for_each(|count| *count += 1);
    }

    /// Drafts verified.
    #[must_use]
    pub fn num_draft_tokens(&self) -> u64 {
        self.drafted_by_position.iter().map(|&count| u64::from(count)).sum()
    }

    /// Drafts accepted before the first miss of their row.
    #[must_use]
    pub fn num_accepted_tokens(&self) -> u64 {
        self.accepted_by_position.iter().map(|&count| u64::from(count)).sum()
    }
}
