//! Which shapes are captured as graphs, and which of them a step replays.
//!
//! A graph is captured for a [`GraphKey`]. The greatest query length of a step must be the key's exactly (kernels are
//! built around it); token rows and sequences round up to a captured size, and what is behind the step's own rows is
//! padding that touches no live memory. What lies inside, how long each row's query is, is data: ragged drafts replay
//! too. A step whose key was not captured runs eagerly, and says why.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::device_times::DeviceTimes;

/// The shape a graph is captured for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct GraphKey {
    /// Token rows, padding included.
    pub token_rows: u32,
    /// Query tokens of the longest metadata row: exact.
    pub max_query_len: u32,
    /// Metadata rows, padding included.
    pub sequences: u32,
}

/// Why a step that could have been replayed ran eagerly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// A metadata row has more query tokens than any that was captured: a prefill.
    QueryTooLong,
    /// More token rows than the largest captured size.
    TooManyTokenRows,
    /// More sequences than the largest captured size.
    TooManySequences,
    /// The sizes are within bounds, but there is no graph for the key.
    NotCaptured,
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::QueryTooLong => "query_too_long",
            Self::TooManyTokenRows => "too_many_token_rows",
            Self::TooManySequences => "too_many_sequences",
            Self::NotCaptured => "not_captured",
        })
    }
}

/// How a step ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ran {
    /// Operation by operation; the reason where a graph was looked for.
    Eager(Option<Fallback>),
    /// Replayed from the graph of this key.
    Graph(GraphKey),
}

/// How often steps were replayed, and why others were not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RunCounts {
    /// Steps replayed from a graph.
    pub replays: u64,
    /// Steps that ran eagerly, fallbacks included.
    pub eager: u64,
    /// Of those, the ones for which a graph was looked for in vain, by reason.
    pub fallbacks: BTreeMap<Fallback, u64>,
    /// Time that the device spent running operations, logits included: by its own clock where it has one.
    pub in_kernels: Duration,
    /// What each stage took by the device's own clock; `None` where it has none.
    pub device: Option<DeviceTimes>,
}

impl RunCounts {
    pub(crate) fn add(&mut self, ran: Ran) {
        match ran {
            Ran::Graph(_) => self.replays += 1,
            Ran::Eager(why) => {
                self.eager += 1;
                if let Some(why) = why {
                    *self.fallbacks.entry(why).or_default() += 1;
                }
            }
        }
    }
}

impl Default for Ran {
    fn default() -> Self {
        Self::Eager(None)
    }
}

/// What capturing took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct CaptureReport {
    /// Graphs captured.
    pub graphs: usize,
    /// Time, all together.
    pub elapsed: Duration,
    /// Memory of the graphs, in bytes, without the buffers they share with eager steps.
    pub bytes: usize,
}

/// The sizes that graphs are captured at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaptureSizes {
    /// Token rows, ascending.
    token_rows: Vec<u32>,
    /// Sequences, ascending.
    sequences: Vec<u32>,
    /// Query lengths 1 to this.
    max_query_len: u32,
}

impl CaptureSizes {
    /// Token rows at `token_rows` (sorted here; zeroes and repetitions dropped), sequences at the powers of two and at
    /// the greatest number of token rows, query lengths up to `max_query_len`.
    #[must_use]
    pub fn new(mut token_rows: Vec<u32>, max_query_len: u32) -> Self {
        token_rows.retain(|&rows| rows > 0);
        token_rows.sort_unstable();
        token_rows.dedup();
        let most = token_rows.last().copied().unwrap_or(0);
        let mut sequences: Vec<u32> =
            std::iter::successors(Some(1u32), |s| s.checked_mul(2)).take_while(|&s| s < most).collect();
        if most > 0 {
            sequences.push(most);
        }
        Self { token_rows, sequences, max_query_len }
    }

    /// The default token rows up to `most`: every number to 8, then steps of a quarter at most, so that padding is under a
    /// fifth of a step; `most` itself is the last.
    #[must_use]
    pub fn default_token_rows(most: u32) -> Vec<u32> {
        let mut sizes: Vec<u32> = (1..=8).collect();
        let mut octave = 8u32;
        while octave < most {
            sizes.extend((1..=4).map(|quarter| octave + octave / 4 * quarter));
            octave = octave.saturating_mul(2);
        }
        sizes.retain(|&size| size < most);
        if most > 0 {
            sizes.push(most);
        }
        sizes
    }

    /// The token rows that are captured, ascending.
    #[must_use]
    pub fn token_rows(&self) -> &[u32] {
        &self.token_rows
    }

    /// The greatest query length that is captured.
    #[must_use]
    pub fn max_query_len(&self) -> u32 {
        self.max_query_len
    }

    /// The key that a step of this shape replays, if it was captured.
    ///
    /// # Errors
    ///
    /// Which size is beyond the greatest that is captured.
    pub fn key(&self, token_rows: u32, max_query_len: u32, sequences: u32) -> Result<GraphKey, Fallback> {
        if max_query_len > self.max_query_len {
            return Err(Fallback::QueryTooLong);
        }
        let token_rows = round_up(&self.token_rows, token_rows).ok_or(Fallback::TooManyTokenRows)?;
        let sequences = round_up(&self.sequences, sequences).ok_or(Fallback::TooManySequences)?;
        Ok(GraphKey { token_rows, max_query_len, sequences })
    }

    /// Every key that a step can have: largest first, as graphs that come later can share what the large ones took.
    #[must_use]
    pub fn keys(&self) -> Vec<GraphKey> {
        let mut keys = Vec::new();
        for max_query_len in 1..=self.max_query_len {
            let mut fewer = 0;
            for &sequences in &self.sequences {
                // Of n sequences one has all `max_query_len` tokens, the others at least one each.
                let (least, most) = (fewer + max_query_len, sequences.saturating_mul(max_query_len));
                let mut below = 0;
                for &token_rows in &self.token_rows {
                    if token_rows >= least && below < most {
                        keys.push(GraphKey { token_rows, max_query_len, sequences });
                    }
                    below = token_rows;
                }
                fewer = sequences;
            }
        }
        keys.sort_unstable_by(|a, b| b.cmp(a));
        keys
    }
}

/// The least of the ascending `sizes` that is not below `n`.
fn round_up(sizes: &[u32], n: u32) -> Option<u32> {
    sizes.get(sizes.partition_point(|&size| size < n)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_within_the_sizes_has_a_key_that_is_captured() {
        let sizes = CaptureSizes::new(CaptureSizes::default_token_rows(64), 5);
        let keys = sizes.keys();
        for sequences in 1..=64u32 {
            for query in 1..=5u32 {
                for rows in sequences + query - 1..=(sequences * query).min(64) {
                    let key = sizes.key(rows, query, sequences).unwrap();
                    assert!(
                        keys.contains(&key),
                        "{rows} rows, query {query}, {sequences} sequences: {key:?}"
                    );
                    assert!(
                        key.token_rows >= rows && key.sequences >= sequences && key.max_query_len == query
                    );
                }
            }
        }
    }

    #[test]
    fn padding_stays_under_a_quarter_of_the_rows() {
        let sizes = CaptureSizes::default_token_rows(256);
        assert_eq!(sizes.last(), Some(&256));
        for rows in 1..=256 {
            let padded = round_up(&sizes, rows).unwrap();
            assert!(padded - rows <= rows / 4, "{rows} rows are padded to {padded}");
        }
    }

    #[test]
    fn what_is_beyond_the_sizes_says_why() {
        let sizes = CaptureSizes::new(vec![4, 0, 1, 4], 2);
        assert_eq!(sizes.token_rows(), [1, 4]);
        assert_eq!(sizes.key(3, 3, 1), Err(Fallback::QueryTooLong));
        assert_eq!(sizes.key(5, 2, 3), Err(Fallback::TooManyTokenRows));
        assert_eq!(sizes.key(2, 1, 2), Ok(GraphKey { token_rows: 4, max_query_len: 1, sequences: 2 }));
        assert_eq!(CaptureSizes::new(vec![], 1).key(1, 1, 1), Err(Fallback::TooManyTokenRows));
        assert!(CaptureSizes::new(vec![], 1).keys().is_empty());
    }
}
