//! Cuts the attention of a step into items, which blocks of threads on a GPU take one after the other.
//!
//! How the work is cut changes no bit of a result: keys are cut at multiples of [`AttentionShape::SPAN`], spans are joined
//! in order, and the sums of a query do not depend on the other queries of its item. The cut is therefore free to follow
//! the load.

use std::ops::Range;

use crate::cuda::shape::AttentionShape;
use crate::error::AttentionError;
use crate::kernel::work::checked_row;
use crate::metadata::AttentionMetadata;
use crate::window::NO_WINDOW;

/// Stands in an item that covers the whole context of its queries, so that there are no partial sums to join.
const NO_PARTIAL: u32 = u32::MAX;

/// What a plan depends on besides the metadata.
#[derive(Clone, Copy, Debug)]
pub struct PlanOptions {
    /// The kernel: one of [`AttentionShape::ROWS`].
    pub rows: u32,
    /// How many items of one key head run at once: the number of multiprocessors times [`AttentionShape::blocks_at_once`],
    /// divided by the number of key heads.
    pub at_once: u32,
    /// How many slots the workspace has.
    pub max_slots: u32,
    /// How many blocks the KV cache has.
    pub num_blocks: u32,
}

/// What any plan for steps of some size needs at most, or what a plan has used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanBounds {
    /// How many items a plan has.
    pub items: u32,
    /// How many slots of the workspace it uses.
    pub slots: u32,
    /// How many counters it uses for each key head.
    pub groups: u32,
}

/// The items of some metadata rows. The memory is reused from step to step.
#[derive(Debug, Default)]
pub struct AttentionPlan {
    items: Vec<[u32; AttentionShape::ITEM_WORDS]>,
    used: PlanBounds,
}

/// Queries that share one or several items.
struct Group {
    token: u32,
    queries: u32,
    first_visible: u32,
    visible_step: u32,
    table: u32,
}

impl Group {
    fn spans(&self) -> u32 {
        (self.first_visible + (self.queries - 1) * self.visible_step).div_ceil(AttentionShape::SPAN)
    }
}

impl AttentionPlan {
    /// A plan without items.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The items in the order in which they are best taken: long ones first.
    #[must_use]
    pub fn items(&self) -> &[[u32; AttentionShape::ITEM_WORDS]] {
        &self.items
    }

    /// What the planned items need of the workspace.
    #[must_use]
    pub fn used(&self) -> PlanBounds {
        self.used
    }

    /// Plans the metadata rows `rows`. `table_starts` has, for each row of the step, the index of its first block among the
    /// block ids that the kernel is given. Pad rows get no item.
    ///
    /// # Errors
    ///
    /// A row is wrong: [`AttentionError::Inconsistent`], [`AttentionError::ShortTable`], [`AttentionError::NoSuchBlock`],
    /// or [`AttentionError::NoCudaWindow`] if a window is smaller than a row. There are no items then.
    pub fn plan(
        &mut self,
        shape: &AttentionShape,
        options: PlanOptions,
        metadata: &AttentionMetadata,
        rows: Range<usize>,
        table_starts: &[u32],
    ) -> Result<(), AttentionError> {
        self.items.clear();
        self.used = PlanBounds::default();
        let per_item = (options.rows / shape.group()).max(1);
        let mut spans = 0u64;
        for_groups(shape, options, metadata, rows.clone(), table_starts, per_item, |group| {
            spans += u64::from(group.spans());
        })?;
        for_groups(shape, options, metadata, rows, table_starts, per_item, |group| {
            self.push(options, spans, &group);
        })?;
        self.items.sort_unstable_by_key(|item| (std::cmp::Reverse(item[6] - item[5]), item[0], item[5]));
        self.used.items = self.items.len() as u32;
        Ok(())
    }

    fn push(&mut self, options: PlanOptions, all_spans: u64, group: &Group) {
        let spans = group.spans();
        // An eighth of what each of the blocks of threads gets. A block takes every `at_once`th item whatever the others have done, so a
        // first piece much longer than the rest would keep those that got two of them at work when the others have ended.
        let fair = (all_spans / (8 * u64::from(options.at_once.max(1)))).clamp(1, u64::from(spans)) as u32;
        // Its share of the slots, of which one is the prefix's.
        let slots = u64::from(options.max_slots) * u64::from(spans) / all_spans.max(1);
        let single = u64::from(spans - fair).min(slots.saturating_sub(1)) as u32;
        let prefix = spans - single;
        let counter = self.used.groups;
        let (partial, parts) = if single == 0 { (NO_PARTIAL, 1) } else { (self.used.slots, 1 + single) };
        let mut item = |begin: u32, end: u32| {
            self.items.push([
                group.token,
                group.queries,
                group.first_visible,
                group.visible_step,
                group.table,
                begin,
                end,
                partial,
                counter,
                parts,
                prefix,
                spans,
            ]);
        };
        item(0, prefix);
        (prefix..spans).for_each(|span| item(span, span + 1));
        if single > 0 {
            self.used.slots += parts;
            self.used.groups += 1;
        }
    }

    /// What any plan needs at most for a step of up to `token_rows` token rows and `sequences` sequences, none of them
    /// longer than `max_len`.
    #[must_use]
    pub fn bounds(
        shape: &AttentionShape,
        options: PlanOptions,
        token_rows: u32,
        sequences: u32,
        max_len: u32,
    ) -> PlanBounds {
        let per_item = (options.rows / shape.group()).max(1);
        let groups = token_rows.min(token_rows / per_item + sequences);
        let spans = u64::from(max_len.div_ceil(AttentionShape::SPAN));
        let slots = u64::from(options.max_slots).min(u64::from(groups) * spans) as u32;
        PlanBounds { items: groups + slots, slots, groups }
    }
}

fn for_groups(
    shape: &AttentionShape,
    options: PlanOptions,
    metadata: &AttentionMetadata,
    rows: Range<usize>,
    table_starts: &[u32],
    per_item: u32,
    mut each: impl FnMut(Group),
) -> Result<(), AttentionError> {
    for row in rows {
        let Some(queries) = checked_row(metadata, row, shape.block_size(), options.num_blocks)? else {
            continue;
        };
        if queries.window != NO_WINDOW {
            let (seq_len, window) = (metadata.seq_lens[row], queries.window);
            return Err(AttentionError::NoCudaWindow { row, seq_len, window });
        }
        let Some(&table) = table_starts.get(row) else {
            let (found, expected) = (table_starts.len() as i64, row as i64 + 1);
            return Err(AttentionError::Inconsistent {
                field: "table_starts.len",
                index: row,
                found,
                expected,
            });
        };
        let mut first = 0;
        while first < queries.len {
            let len = per_item.min(queries.len - first);
            each(Group {
                token: queries.token + first,
                queries: len,
                first_visible: queries.first_visible + first * queries.visible_step,
                visible_step: queries.visible_step,
                table,
            });
            first += len;
        }
    }
    Ok(())
}
