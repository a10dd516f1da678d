//! What a step did in a KV group of a later segment of the model, as a line has it.

use pagedraft_attention::metadata::{AttentionMetadata, MaskKind};
use pagedraft_block_manager::BlockId;
use serde::Serialize;

/// The rows of a step in a KV group of a later segment. They are the group's own, because fewer tokens may have reached the
/// segment than the first one. All metadata rows of a plan row are written as one.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentRows<'a> {
    segment: u16,
    plan_rows: Vec<u32>,
    input_tokens: &'a [u32],
    input_positions: &'a [u32],
    query_start_loc: Vec<u32>,
    slot_mapping: &'a [i64],
    seq_lens: Vec<u32>,
    context_lens: Vec<u32>,
    block_tables: Vec<&'a [BlockId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<u32>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    mask_kinds: &'a [MaskKind],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    kv_index: &'a [i64],
}

impl<'a> SegmentRows<'a> {
    /// The rows of `segment` in the group with this metadata, with their tokens and positions. `plan_rows` has the plan row of each
    /// metadata row. A table that is empty was written before.
    #[must_use]
    pub fn new(
        segment: u16,
        (tokens, positions): (&'a [u32], &'a [u32]),
        plan_rows: &[u32],
        metadata: &'a AttentionMetadata,
    ) -> Self {
        let mut rows = Self {
            segment,
            plan_rows: Vec::new(),
            input_tokens: tokens,
            input_positions: positions,
            query_start_loc: vec![0],
            slot_mapping: &metadata.slot_mapping,
            seq_lens: Vec::new(),
            context_lens: Vec::new(),
            block_tables: Vec::new(),
            window: metadata.window,
            // Rows of canvases, which alone have these, are never several for one plan row.
            mask_kinds: &metadata.mask_kinds,
            kv_index: &metadata.kv_index,
        };
        for (m, &plan_row) in plan_rows.iter().enumerate() {
            let end = metadata.query_start_loc[m + 1];
            let table = metadata.block_tables.get(m).unwrap_or_default();
            if rows.plan_rows.last() == Some(&plan_row) {
                let last = rows.plan_rows.len() - 1;
                rows.query_start_loc[last + 1] = end;
                rows.seq_lens[last] = metadata.seq_lens[m];
                if !table.is_empty() {
                    rows.block_tables[last] = table;
                }
                continue;
            }
            rows.plan_rows.push(plan_row);
            rows.query_start_loc.push(end);
            rows.seq_lens.push(metadata.seq_lens[m]);
            rows.context_lens.push(metadata.context_lens[m]);
            rows.block_tables.push(table);
        }
        rows
    }
}
