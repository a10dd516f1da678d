//! Which shapes are captured as graphs, and which of them a step replays.
//!
//! A graph is captured for one segment of a model and one [`GraphKey`]. The greatest query length of a step must be the key's
//! exactly, because kernels are built around it. Token rows and sequences round up to a captured size; what is behind the
//! step's own rows is padding that touches no live memory. How long each row's query is inside these bounds is data, so that
//! steps with ragged drafts are replayed too. A segment whose key was not captured runs eagerly, and says why.

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
    /// The segment of the model, from 0. JSON leaves it out where it is 0.
    #[serde(skip_serializing_if = "is_first")]
    pub segment: u16,
}

/// Whether it is the first segment, which JSON does not mention.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_first(segment: &u16) -> bool {
    *segment == 0
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

/// How a segment of a step ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ran {
    /// Operation by operation. If a graph was looked for, the reason why none was replayed.
    Eager(Option<Fallback>),
    /// Replayed from the graph of this key.
    Graph(GraphKey),
}

/// How often segments were replayed, and why others were not. A dense model has one segment a step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RunCounts {
    /// Segments that were replayed from a graph.
    pub replays: u64,
    /// Segments that ran eagerly, fallbacks included.
    pub eager: u64,
    /// How many of the eager ones looked for a graph in vain, by reason.
    pub fallbacks: BTreeMap<Fallback, u64>,
    /// Operations behind which somebody looked at tensors: 0 unless tensors are traced.
    pub observed: u64,
    /// Time that the device spent running operations, logits included. It is measured by the device's own clock if it has
    /// one, otherwise by the host's.
    pub in_kernels: Duration,
    /// What each stage took by the device's own clock; `None` if it has none.
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
    /// Time that capturing all of them took.
    pub elapsed: Duration,
    /// Memory of the graphs in bytes, without the buffers that they share with eager steps.
    pub bytes: usize,
}

/// The sizes that graphs are captured at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaptureSizes {
    /// Token rows, ascending.
    token_rows: Vec<u32>,
    /// Sequences, ascending.
    sequences: Vec<u32>,
    /// Query lengths, ascending.
    query_lens: Vec<u32>,
}

impl CaptureSizes {
    /// Graphs of `token_rows` token rows and of greatest query lengths `query_lens` (both are sorted here; zeroes and
    /// repetitions are dropped), for sequences at the powers of two and at the greatest number of token rows.
    #[must_use]
    pub fn new(token_rows: Vec<u32>, query_lens: Vec<u32>) -> Self {
        let (token_rows, query_lens) = (ascending(token_rows), ascending(query_lens));
        let most = token_rows.last().copied().unwrap_or(0);
        let mut sequences: Vec<u32> =
            std::iter::successors(Some(1u32), |s| s.checked_mul(2)).take_while(|&s| s < most).collect();
        if most > 0 {
            sequences.push(most);
        }
        Self { token_rows, sequences, query_lens }
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

    /// The query lengths that are captured, ascending.
    #[must_use]
    pub fn query_lens(&self) -> &[u32] {
        &self.query_lens
    }

    /// The greatest query length that is captured; 0 if there is none.
    #[must_use]
    pub fn max_query_len(&self) -> u32 {
        self.query_lens.last().copied().unwrap_or(0)
    }

    /// The key (of segment 0) that a step of this shape replays, if it was captured.
    ///
    /// # Errors
    ///
    /// Which size is beyond the greatest that is captured, or that the query length is not one of the captured ones.
    pub fn key(&self, token_rows: u32, max_query_len: u32, sequences: u32) -> Result<GraphKey, Fallback> {
        if max_query_len > self.max_query_len() {
            return Err(Fallback::QueryTooLong);
        }
        let token_rows = round_up(&self.token_rows, token_rows).ok_or(Fallback::TooManyTokenRows)?;
        let sequences = round_up(&self.sequences, sequences).ok_or(Fallback::TooManySequences)?;
        if self.query_lens.binary_search(&max_query_len).is_err() {
            return Err(Fallback::NotCaptured);
        }
        Ok(GraphKey { token_rows, max_query_len, sequences, segment: 0 })
    }

    /// Every key (of segment 0) that a step can have. The largest comes first, because graphs that are captured later can
    /// share the memory that the large ones took.
    #[must_use]
    pub fn keys(&self) -> Vec<GraphKey> {
        let mut keys = Vec::new();
        for &max_query_len in &self.query_lens {
            let mut fewer = 0;
            for &sequences in &self.sequences {
                // Of n sequences, one has all `max_query_len` tokens and each other one has at least one.
                let (least, most) = (fewer + max_query_len, sequences.saturating_mul(max_query_len));
                let mut below = 0;
                for &token_rows in &self.token_rows {
                    if token_rows >= least && below < most {
                        keys.push(GraphKey { token_rows, max_query_len, sequences, segment: 0 });
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

/// The sizes above 0, ascending, each once.
fn ascending(mut sizes: Vec<u32>) -> Vec<u32> {
    sizes.retain(|&size| size > 0);
    sizes.sort_unstable();
    sizes.dedup();
    sizes
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
        let sizes = CaptureSizes::new(CaptureSizes::default_token_rows(64), (1..=5).collect());
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
        let sizes = CaptureSizes::new(vec![4, 0, 1, 4], vec![2, 1]);
        assert_eq!(sizes.token_rows(), [1, 4]);
        assert_eq!(sizes.key(3, 3, 1), Err(Fallback::QueryTooLong));
        assert_eq!(sizes.key(5, 2, 3), Err(Fallback::TooManyTokenRows));
        let key = GraphKey { token_rows: 4, max_query_len: 1, sequences: 2, segment: 0 };
        assert_eq!(sizes.key(2, 1, 2), Ok(key));
        assert_eq!(CaptureSizes::new(vec![], vec![1]).key(1, 1, 1), Err(Fallback::TooManyTokenRows));
        assert!(CaptureSizes::new(vec![], vec![1]).keys().is_empty());
        assert!(CaptureSizes::new(vec![4], vec![]).keys().is_empty());
    }

    #[test]
    fn only_the_query_lengths_asked_for_are_captured() {
        let sizes = CaptureSizes::new(vec![64], vec![32, 0, 1, 32]);
        assert_eq!(sizes.query_lens(), [1, 32]);
        assert!(sizes.key(32, 32, 1).is_ok() && sizes.key(3, 1, 3).is_ok());
        assert_eq!(sizes.key(8, 8, 1), Err(Fallback::NotCaptured));
        assert_eq!(sizes.key(40, 33, 2), Err(Fallback::QueryTooLong));
        assert!(sizes.keys().iter().all(|key| matches!(key.max_query_len, 1 | 32)));
    }

    #[test]
    fn json_names_the_segment_only_where_it_is_not_the_first() {
        let key = GraphKey { token_rows: 4, max_query_len: 1, sequences: 2, segment: 0 };
        let json = |key: GraphKey| serde_json::to_string(&key).unwrap();
        assert_eq!(json(key), r#"{"token_rows":4,"max_query_len":1,"sequences":2}"#);
        assert!(json(GraphKey { segment: 2, ..key }).ends_with(r#","segment":2}"#));
    }
}
