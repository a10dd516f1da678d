//! Measures what speculation gains for one request.

use serde::Serialize;

use crate::acceptance::Verdict;

/// The counts of one request, by position among the drafts. They are small, because they are kept for each of many
/// requests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RequestSpeculation {
    /// For each position, the number of verify rows that had a draft there.
    pub drafted_by_position: Vec<u32>,
    /// For each position, the number of verify rows that accepted their draft there, and so all drafts before it. It is
    /// as long as `drafted_by_position`.
    pub accepted_by_position: Vec<u32>,
}

impl RequestSpeculation {
    /// Counts a row with this many drafts. A row without drafts is not counted.
    pub fn record_row(&mut self, drafts: usize, verdict: Verdict) {
        if self.drafted_by_position.len() < drafts {
            self.drafted_by_position.resize(drafts, 0);
            self.accepted_by_position.resize(drafts, 0);
        }
        let accepted = usize::from(verdict.accepted).min(drafts);
        self.drafted_by_position.iter_mut().take(drafts).for_each(|count| *count += 1);
        self.accepted_by_position.iter_mut().take(accepted).for_each(|count| *count += 1);
    }

    /// The number of drafts verified.
    #[must_use]
    pub fn num_draft_tokens(&self) -> u64 {
        self.drafted_by_position.iter().map(|&count| u64::from(count)).sum()
    }

    /// The number of drafts accepted before the first rejection in their row.
    #[must_use]
    pub fn num_accepted_tokens(&self) -> u64 {
        self.accepted_by_position.iter().map(|&count| u64::from(count)).sum()
    }
}
