use serde::{Deserialize, Serialize};

/// How many drafts were accepted, under the keys of `vllm bench serve`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Speculation {
    /// Accepted drafts in percent of all scored drafts.
    pub spec_decode_acceptance_rate: f64,
    /// The mean number of tokens that a row with drafts gave: 1 + accepted / rows.
    pub spec_decode_acceptance_length: f64,
    /// The number of rows that had drafts.
    pub spec_decode_num_drafts: u64,
    /// The number of drafts scored.
    pub spec_decode_draft_tokens: u64,
    /// The number of drafts accepted.
    pub spec_decode_accepted_tokens: u64,
    /// For each position among the drafts, the accepted drafts as a share (0 to 1) of all rows that had
    /// drafts. Like vLLM it divides by all these rows, not by those that had a draft at the position.
    pub spec_decode_per_position_acceptance_rates: Vec<f64>,
    /// For each position, the number of drafts scored there.
    pub drafted_by_position: Vec<u64>,
    /// For each position, the number of drafts accepted there.
    pub accepted_by_position: Vec<u64>,
}

/// The drafts of one request: how many rows had how many drafts, and how many were accepted. It is empty
/// without drafts.
#[derive(Clone, Debug, Default)]
pub(super) struct Drafts {
    /// At index n - 1: the number of rows with `n` drafts, and the number of rows with `n` accepted drafts.
    rows: Vec<(u32, u32)>,
}

impl Drafts {
    pub(super) fn row(&mut self, drafts: u16, accepted: u16) {
        let (drafts, accepted) = (usize::from(drafts), usize::from(accepted.min(drafts)));
        if drafts > self.rows.len() {
            self.rows.resize(drafts, (0, 0));
        }
        if drafts > 0 {
            self.rows[drafts - 1].0 += 1;
        }
        if accepted > 0 {
            self.rows[accepted - 1].1 += 1;
        }
    }

    /// The drafts scored and accepted at each position. A row with `n` drafts has them at the positions below
    /// `n`.
    pub(super) fn by_position(&self) -> (Vec<u32>, Vec<u32>) {
        let (mut drafted, mut accepted) = (vec![0; self.rows.len()], vec![0; self.rows.len()]);
        let mut behind = (0, 0);
        for (at, rows) in self.rows.iter().enumerate().rev() {
            behind = (behind.0 + rows.0, behind.1 + rows.1);
            (drafted[at], accepted[at]) = behind;
        }
        (drafted, accepted)
    }

    /// Forgets everything, but keeps the memory.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
    }
}

/// The drafts of all requests, by position.
#[derive(Clone, Debug, Default)]
pub(super) struct DraftTotals {
    drafted: Vec<u64>,
    accepted: Vec<u64>,
}

impl DraftTotals {
    pub(super) fn add(&mut self, drafted: &[u32], accepted: &[u32]) {
        for (all, more) in [(&mut self.drafted, drafted), (&mut self.accepted, accepted)] {
            if more.len() > all.len() {
                all.resize(more.len(), 0);
            }
            all.iter_mut().zip(more).for_each(|(all, &n)| *all += u64::from(n));
        }
    }

    /// Adds the drafts of `other`.
    pub(super) fn merge(&mut self, other: &Self) {
        for (all, more) in [(&mut self.drafted, &other.drafted), (&mut self.accepted, &other.accepted)] {
            if more.len() > all.len() {
                all.resize(more.len(), 0);
            }
            all.iter_mut().zip(more).for_each(|(all, n)| *all += n);
        }
    }

    /// The figures; `None` without drafts.
    pub(super) fn speculation(&self) -> Option<Speculation> {
        let rows = *self.drafted.first().filter(|n| **n > 0)?;
        let (drafts, accepted) = (self.drafted.iter().sum::<u64>(), self.accepted.iter().sum::<u64>());
        Some(Speculation {
            spec_decode_acceptance_rate: accepted as f64 / drafts as f64 * 100.0,
            spec_decode_acceptance_length: 1.0 + accepted as f64 / rows as f64,
            spec_decode_num_drafts: rows,
            spec_decode_draft_tokens: drafts,
            spec_decode_accepted_tokens: accepted,
            spec_decode_per_position_acceptance_rates: self
                .accepted
                .iter()
                .map(|&n| n as f64 / rows as f64)
                .collect(),
            drafted_by_position: self.drafted.clone(),
            accepted_by_position: self.accepted.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drafts_are_counted_by_their_places() {
        let mut request = Drafts::default();
        for (drafts, accepted) in [(3, 1), (2, 2), (0, 0), (3, 0), (1, 9)] {
            request.row(drafts, accepted);
        }
        assert_eq!(request.by_position(), (vec![4, 3, 2], vec![3, 1, 0]));
        let mut all = DraftTotals::default();
        assert_eq!(all.speculation(), None);
        all.add(&[1], &[1]);
        let (drafted, accepted) = request.by_position();
        all.add(&drafted, &accepted);
        let told = all.speculation().unwrap();
        assert_eq!((told.spec_decode_num_drafts, told.spec_decode_draft_tokens), (5, 10));
        assert_eq!(told.spec_decode_accepted_tokens, 5);
        assert_eq!((told.spec_decode_acceptance_rate, told.spec_decode_acceptance_length), (50.0, 2.0));
        assert_eq!(told.spec_decode_per_position_acceptance_rates, [0.8, 0.2, 0.0]);
        request.clear();
        assert_eq!(request.by_position(), (vec![], vec![]));
    }
}
