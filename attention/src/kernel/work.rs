//! The work of an attention call, cut into items that threads can take.

use crate::error::AttentionError;
use crate::kv_layer::KvLayer;
use crate::kv_layout::KvLayout;
use crate::metadata::{AttentionMetadata, MaskKind};

/// Rows of queries (query tokens times heads) that an item aims at: enough to read K and V once for
/// many, few enough that its state stays in the second-level cache and threads balance.
const ROWS_PER_ITEM: usize = 128;
const MAX_QUERIES_PER_ITEM: usize = 64;

/// Some consecutive queries of one metadata row, with the heads of one key head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkItem {
    /// Metadata row: its block table.
    pub row: u32,
    pub kv_head: u32,
    /// First token row of q and of the output.
    pub token: u32,
    pub queries: u32,
    /// Keys that the first query sees.
    pub first_visible: u32,
    /// How many more each following query sees: 1 (causal) or 0.
    pub visible_step: u32,
}

impl WorkItem {
    /// Keys that the last query sees.
    pub(crate) fn last_visible(&self) -> u32 {
        self.first_visible + (self.queries - 1) * self.visible_step
    }
}

/// The items of a step: one list serves all layers of a KV group. The memory is reused from step to
/// step. How rows are cut never shows in the bits of a result.
///
/// Planning checks all that the kernels rely on, so that they need not: tables reach the end of
/// their sequences and name blocks that exist, and query tokens lie one row after the other.
#[derive(Debug, Default)]
pub struct WorkList {
    pub(crate) items: Vec<WorkItem>,
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) geometry: Option<(KvLayout, u32)>,
}

impl WorkList {
    /// No items.
    #[must_use]
    pub fn new() -> WorkList {
        WorkList::default()
    }

    /// How many items there are. Longest first within a row; rows in order.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Cuts a step into items for a model of `heads` query heads over a cache like `layer` (its
    /// layout and its number of blocks count, not its address). Pad rows get none.
    ///
    /// # Errors
    ///
    /// [`AttentionError::Shape`], [`AttentionError::Inconsistent`], [`AttentionError::ShortTable`],
    /// [`AttentionError::NoSuchBlock`]; the list is empty then.
    pub fn plan(
        &mut self,
        metadata: &AttentionMetadata,
        heads: usize,
        layer: &KvLayer,
    ) -> Result<(), AttentionError> {
        self.items.clear();
        let layout = *layer.layout();
        let (kv_heads, head_dim) = (layout.kv_heads(), layout.head_dim());
        if heads == 0 || !heads.is_multiple_of(kv_heads) {
            return Err(AttentionError::Shape { heads, kv_heads, head_dim });
        }
        let per_item = (ROWS_PER_ITEM / (heads / kv_heads)).clamp(1, MAX_QUERIES_PER_ITEM) as u32;
        for row in 0..metadata.num_rows() {
            let Some(queries) = checked_row(metadata, row, layout.block_size(), layer.num_blocks())
                .inspect_err(|_| self.items.clear())?
            else {
                continue;
            };
            let chunks = queries.len.div_ceil(per_item);
            for chunk in (0..chunks).rev() {
                let first = chunk * per_item;
                for kv_head in 0..kv_heads as u32 {
                    self.items.push(WorkItem {
                        row: row as u32,
                        kv_head,
                        token: queries.token + first,
                        queries: per_item.min(queries.len - first),
                        first_visible: queries.first_visible + first * queries.visible_step,
                        visible_step: queries.visible_step,
                    });
                }
            }
        }
        self.tokens = metadata.num_tokens();
        self.heads = heads;
        self.geometry = Some((layout, layer.num_blocks()));
        Ok(())
    }
}

/// The queries of a row.
pub(crate) struct Queries {
    pub token: u32,
    pub len: u32,
    pub first_visible: u32,
    pub visible_step: u32,
}

/// What a row has, once its lengths agree and its table reaches their end in blocks that exist; `None` of a pad row.
pub(crate) fn checked_row(
    metadata: &AttentionMetadata,
    row: usize,
    block_size: u32,
    num_blocks: u32,
) -> Result<Option<Queries>, AttentionError> {
    let wrong = |field, found: u32, expected: u32| AttentionError::Inconsistent {
        field,
        index: row,
        found: i64::from(found),
        expected: i64::from(expected),
    };
    let seq_len = metadata.seq_lens[row];
    if seq_len == 0 {
        return Ok(None);
    }
    let starts = &metadata.query_start_loc;
    let (Some(&start), Some(&end)) = (starts.get(row), starts.get(row + 1)) else {
        return Err(wrong("query_start_loc.len", starts.len() as u32, row as u32 + 2));
    };
    let last_end = starts.last().copied().unwrap_or(end);
    if start >= end || end > last_end {
        return Err(wrong("query_start_loc", start, end));
    }
    let Some(&context_len) = metadata.context_lens.get(row) else {
        return Err(wrong("context_lens.len", row as u32, row as u32 + 1));
    };
    let len = end - start;
    if context_len.checked_add(len) != Some(seq_len) {
        return Err(wrong("seq_lens", seq_len, context_len.saturating_add(len)));
    }
    let table = metadata.block_tables.get(row).unwrap_or(&[]);
    let needed = seq_len.div_ceil(block_size) as usize;
    let Some(used) = table.get(..needed) else {
        return Err(AttentionError::ShortTable { row, blocks: table.len(), needed });
    };
    if let Some(block) = used.iter().find(|block| block.0 >= num_blocks) {
        return Err(AttentionError::NoSuchBlock { row, block: block.0, num_blocks });
    }
    Ok(Some(match metadata.mask_kind(row) {
        MaskKind::Causal => Queries { token: start, len, first_visible: context_len + 1, visible_step: 1 },
        MaskKind::Bidirectional => Queries { token: start, len, first_visible: seq_len, visible_step: 0 },
    }))
}
