//! Decides which steps an engine replays from a graph. The rule is that of `pagedraft_model::CaptureSizes`,
//! on whose crate this one does not depend.

use serde::Serialize;

use super::SimOptions;
use super::row_sums::RowSums;

/// The most token rows whose logits an engine computes at a time, and therefore the largest graph that it
/// captures.
const MOST_ROWS: u32 = 512;

/// The shape of a graph, as traces write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GraphShape {
    /// The number of token rows, padding included.
    pub token_rows: u32,
    /// The number of query tokens of the longest metadata row.
    pub max_query_len: u32,
    /// The number of metadata rows, padding included.
    pub sequences: u32,
}

/// The shapes that an engine has graphs for. There are none if every step is eager.
#[derive(Clone, Debug, Default)]
pub(super) struct Graphs {
    most_rows: u32,
    longest_query: u32,
}

impl Graphs {
    pub(super) fn new(options: &SimOptions) -> Self {
        if options.enforce_eager {
            return Self::default();
        }
        let drafts = options.speculation.as_ref().map_or(0, |s| u32::from(s.most));
        let longest_query = 1 + drafts;
        let config = &options.scheduler;
        let most_rows = config
            .max_num_seqs
            .saturating_mul(longest_query)
            .min(config.max_num_batched_tokens)
            .min(MOST_ROWS);
        Self { most_rows, longest_query }
    }

    /// The graph that a step replays, whose segments have these rows; `None` if it runs eagerly. Each segment has a graph of its own, and
    /// the greatest is returned.
    pub(super) fn replayed(&self, segments: &[RowSums]) -> Option<GraphShape> {
        let most = |of: fn(&RowSums) -> u32| segments.iter().map(of).max().unwrap_or(0);
        let (token_rows, max_query_len) = (most(|sums| sums.token_rows), most(|sums| sums.max_query_len));
        let fits = max_query_len <= self.longest_query && token_rows <= self.most_rows;
        fits.then(|| GraphShape {
            token_rows: self.padded(token_rows),
            max_query_len,
            sequences: most(|sums| sums.metadata_rows).next_power_of_two().min(self.most_rows),
        })
    }

    /// The captured size that `rows` is rounded up to: every number up to 8, then steps of a quarter of an
    /// octave.
    fn padded(&self, rows: u32) -> u32 {
        if rows <= 8 {
            return rows;
        }
        let octave = rows.next_power_of_two() / 2;
        rows.next_multiple_of(octave / 4).min(self.most_rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_to_the_sizes_that_are_captured() {
        let graphs = Graphs { most_rows: 100, longest_query: 1 };
        let mut sizes: Vec<u32> = (1..=100).map(|rows| graphs.padded(rows)).collect();
        assert!(sizes.iter().zip(1..).all(|(&padded, rows)| padded >= rows));
        sizes.dedup();
        let octaves = [10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 100];
        assert_eq!(sizes, (1..=8).chain(octaves).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_longer_or_larger_than_the_graphs_is_eager() {
        let graphs = Graphs { most_rows: 64, longest_query: 3 };
        let sums = |token_rows, metadata_rows, max_query_len| RowSums {
            token_rows,
            metadata_rows,
            max_query_len,
            ..RowSums::default()
        };
        let key = graphs.replayed(&[sums(9, 5, 2)]);
        assert_eq!(key, Some(GraphShape { token_rows: 10, max_query_len: 2, sequences: 8 }));
        assert_eq!(graphs.replayed(&[sums(7, 5, 2), sums(9, 5, 2)]), key);
        assert_eq!(graphs.replayed(&[sums(9, 5, 4)]), None);
        assert_eq!(graphs.replayed(&[sums(65, 65, 1)]), None);
        assert_eq!(graphs.replayed(&[sums(1, 1, 1), sums(65, 65, 1)]), None);
        assert_eq!(Graphs::default().replayed(&[sums(1, 1, 1)]), None);
    }
}
