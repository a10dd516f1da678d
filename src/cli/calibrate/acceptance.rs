//! Measures how many drafts are accepted on a text that the target continues.

use pagedraft_workloads::sim::Acceptance;

use super::shapes::Drafts;

/// With fewer trials at a position than this, its share says little.
const LEAST: u64 = 20;

/// Counts the drafts of a proposer by their position in a row.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    asked: u64,
    given: u64,
    /// For each position, the number of drafts whose predecessors were accepted, and how many of those were
    /// accepted too.
    places: Vec<(u64, u64)>,
}

impl Tally {
    pub fn add(&mut self, drafts: Drafts) {
        self.asked += 1;
        self.given += u64::from(drafts.given > 0);
        let judged = drafts.given.min(drafts.accepted + 1) as usize;
        if self.places.len() < judged {
            self.places.resize(judged, (0, 0));
        }
        for (place, (tried, accepted)) in self.places.iter_mut().take(judged).enumerate() {
            *tried += 1;
            *accepted += u64::from((place as u32) < drafts.accepted);
        }
    }

    /// The number of rows that were asked for drafts.
    pub fn asked(&self) -> u64 {
        self.asked
    }

    /// The shares of accepted drafts; `None` if too few were seen. Positions that few drafts reached are
    /// counted with the position before.
    pub fn acceptance(&self) -> Option<Acceptance> {
        let mut by_position = Vec::new();
        let mut pooled = (0, 0);
        for &(tried, accepted) in &self.places {
            pooled = if tried < LEAST { (pooled.0 + tried, pooled.1 + accepted) } else { (tried, accepted) };
            if pooled.0 >= LEAST {
                by_position.push(pooled.1 as f64 / pooled.0 as f64);
            }
        }
        let given = self.given as f64 / self.asked.max(1) as f64;
        (!by_position.is_empty()).then_some(Acceptance { by_position, given })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_the_drafts_whose_predecessors_stood() {
        let mut tally = Tally::default();
        for _ in 0..30 {
            tally.add(Drafts { given: 2, accepted: 2 });
            tally.add(Drafts { given: 2, accepted: 1 });
            tally.add(Drafts { given: 2, accepted: 0 });
            tally.add(Drafts { given: 0, accepted: 0 });
        }
        let acceptance = tally.acceptance().unwrap();
        assert_eq!(acceptance.by_position, [2.0 / 3.0, 0.5]);
        assert_eq!(acceptance.given, 0.75);
        assert_eq!(tally.asked(), 120);
    }

    #[test]
    fn what_was_hardly_seen_has_no_share() {
        let mut tally = Tally::default();
        assert_eq!(tally.acceptance(), None);
        (0..19).for_each(|_| tally.add(Drafts { given: 1, accepted: 1 }));
        assert_eq!(tally.acceptance(), None);
        tally.add(Drafts { given: 2, accepted: 2 });
        assert_eq!(tally.acceptance().unwrap().by_position, [1.0, 1.0]);
    }
}
