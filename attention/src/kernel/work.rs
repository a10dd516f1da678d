//! Cuts the work of an attention call into items that threads can take.

use crate::error::AttentionError;
use crate::kv_layer::KvLayer;
use crate::kv_layout::KvLayout;
use crate::metadata::{AttentionMetadata, MaskKind};
use crate::window::{NO_WINDOW, first_key};
use pagedraft_block_manager::BlockId;
use std::ops::Range;

/// The number of query rows (query tokens times heads) that an item aims at. It is large enough for many
/// rows to share one read of K and V, and small enough for the item's state to stay in the L2 cache and for
/// threads to balance.
const ROWS_PER_ITEM: usize = 128;
const MAX_QUERIES_PER_ITEM: usize = 64;

/// Some consecutive queries of one metadata row, in the heads that share one key head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkItem {
    /// The metadata row; its block table says where the keys are.
    pub row: u32,
    pub kv_head: u32,
    /// The token row of the first query in q and in the output.
    pub token: u32,
    pub queries: u32,
    /// One past the last key that the first query sees.
    pub first_visible: u32,
    /// How many more keys each following query sees: 1 in a causal row, 0 in a bidirectional one.
    pub visible_step: u32,
    /// The index of the first query in its KV group; the others follow it without a gap. It is used only
    /// with a window.
    pub index: u32,
    /// The sliding window in tokens: the most keys that a query sees up to and including its own.
    /// [`NO_WINDOW`] if there is no limit.
    pub window: u32,
}

impl WorkItem {
    /// The first key that the first query sees. The other queries see no key before it.
    pub(crate) fn first_key(&self) -> u32 {
        first_key(self.index, self.window)
    }

    /// One past the last key that the last query sees.
    pub(crate) fn last_visible(&self) -> u32 {
        self.first_visible + (self.queries - 1) * self.visible_step
    }
}

/// The items of a step. One list serves all layers of a KV group, and its memory is reused from step to
/// step. The way rows are cut does not change a bit of the result.
///
/// Planning checks everything that the kernels rely on, so that they need not: tables reach the end of
/// their sequences and name blocks that exist, and query tokens lie one row after the other.
#[derive(Debug, Default)]
pub struct WorkList {
    pub(crate) items: Vec<WorkItem>,
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) geometry: Option<(KvLayout, u32)>,
}

impl WorkList {
    /// A list without items.
    #[must_use]
    pub fn new() -> WorkList {
        WorkList::default()
    }

    /// How many items there are. They are in the order of the rows, and within a row the longest comes
    /// first.
    #[must_use]
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are no items.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Cuts a step into items, for a model of `heads` query heads over a cache like `layer`, of which the
    /// layout and the number of blocks matter and the address does not. Pad rows get no item.
    ///
    /// # Errors
    ///
    /// [`AttentionError::Shape`], [`AttentionError::Inconsistent`], [`AttentionError::ShortTable`],
    /// [`AttentionError::NoSuchBlock`], and with a window [`AttentionError::EmptyWindow`],
    /// [`AttentionError::FreedBlock`], [`AttentionError::WindowedIndex`]; the list is empty then.
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
                        index: queries.index + first,
                        window: queries.window,
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

/// The queries of a metadata row, as the fields of a [`WorkItem`] describe them.
pub(crate) struct Queries {
    pub token: u32,
    pub len: u32,
    pub first_visible: u32,
    pub visible_step: u32,
    pub index: u32,
    pub window: u32,
}

/// Checks a row and returns its queries, or `None` for a pad row. The row's lengths must agree, and its
/// table must cover its length with blocks that exist.
///
/// Lengths agree when `seq_lens` is context + query. In a bidirectional row it may be more, for a block in
/// the middle of a canvas. Blocks wholly behind the window of the first query need not exist.
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
    let mask = metadata.mask_kind(row);
    let agrees = context_len.checked_add(len).is_some_and(|own| match mask {
        MaskKind::Causal => own == seq_len,
        MaskKind::Bidirectional => own <= seq_len,
    });
    if !agrees {
        return Err(wrong("seq_lens", seq_len, context_len.saturating_add(len)));
    }
    let window = match metadata.window {
        None => NO_WINDOW,
        Some(0) => return Err(AttentionError::EmptyWindow),
        Some(window) if window >= seq_len => NO_WINDOW,
        Some(window) if mask == MaskKind::Bidirectional && !metadata.kv_index.is_empty() => {
            check_contiguous(metadata, row, start..end, window)?;
            window
        }
        Some(window) => window,
    };
    let table = metadata.block_tables.get(row).unwrap_or(&[]);
    let needed = seq_len.div_ceil(block_size) as usize;
    let Some(used) = table.get(..needed) else {
        return Err(AttentionError::ShortTable { row, blocks: table.len(), needed });
    };
    let seen = match window {
        NO_WINDOW => 0,
        _ => (first_key(context_len, window) / block_size) as usize,
    };
    if let Some(at) = used[seen..].iter().position(|block| block.0 >= num_blocks) {
        let (entry, block) = (seen + at, used[seen + at]);
        return Err(match block {
            BlockId::FREED => AttentionError::FreedBlock { row, entry },
            BlockId(block) => AttentionError::NoSuchBlock { row, block, num_blocks },
        });
    }
    let (first_visible, visible_step) = match mask {
        MaskKind::Causal => (context_len + 1, 1),
        MaskKind::Bidirectional => (seq_len, 0),
    };
    Ok(Some(Queries { token: start, len, first_visible, visible_step, index: context_len, window }))
}

/// Checks that the queries of a row follow its context without a gap, which a window smaller than the row
/// requires.
fn check_contiguous(
    metadata: &AttentionMetadata,
    row: usize,
    tokens: Range<u32>,
    window: u32,
) -> Result<(), AttentionError> {
    let index = metadata.kv_index.get(tokens.start as usize..tokens.end as usize).unwrap_or(&[]);
    let contiguous = (i64::from(metadata.context_lens[row])..).zip(index).all(|(a, &b)| a == b);
    match contiguous && index.len() == tokens.len() {
        true => Ok(()),
        false => Err(AttentionError::WindowedIndex { row, seq_len: metadata.seq_lens[row], window }),
    }
}
