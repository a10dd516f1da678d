//! What a step did in a KV group of the target.

use pagedraft_attention::metadata::AttentionMetadata;
use serde::{Serialize, Serializer};

use super::{GroupRows, SegmentRows};

/// The rows of a step in one KV group of the target. They are those of the segment of the model whose layers write the group.
#[derive(Clone, Copy, Debug)]
pub struct TargetRows<'a> {
    /// The segment. A model that is not cut has only segment 0.
    pub segment: u16,
    /// The token ids of the segment's rows.
    pub tokens: &'a [u32],
    /// Their positions.
    pub positions: &'a [u32],
    /// The plan row of each metadata row.
    pub plan_rows: &'a [u32],
    /// The metadata of the segment's rows in the group.
    pub metadata: &'a AttentionMetadata,
}

impl Serialize for TargetRows<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self { segment, tokens, positions, plan_rows, metadata } = *self;
        match segment {
            // The line has the tokens of the first segment already.
            0 => GroupRows(metadata).serialize(serializer),
            _ => SegmentRows::new(segment, (tokens, positions), plan_rows, metadata).serialize(serializer),
        }
    }
}
