//! The token rows of a step in one segment of the model.

use pagedraft_attention::metadata::{MaskKind, PAD_SLOT};
use pagedraft_attention::{MetadataBuilder, MetadataRow};
use pagedraft_block_manager::{GroupId, KvIndex, slot};
use pagedraft_model::StepInputs;
use pagedraft_scheduler::{Kind, KvView, PlanRow, SegmentKv, StepPlan};

use crate::canvas::Canvases;
use crate::drafts::Drafts;
use crate::error::ExecuteError;
use crate::requests::Requests;
use crate::scorer::Scorer;
use crate::thinning::{Thinned, ThinnedPrompts};

/// Where the plan rows of a step lie among the token rows of a segment. The buffers are kept from step to step.
#[derive(Debug, Default)]
pub(crate) struct SegmentRows {
    /// Plan rows in the order in which they run: those with a metadata row of several query tokens first.
    pub order: Vec<u32>,
    /// The first token row of each plan row. It has no meaning if the plan row does not run in this
    /// segment.
    pub starts: Vec<u32>,
    /// The number of known tokens of each plan row, without drafts; 0 if the plan row does not run in this
    /// segment.
    pub known: Vec<u32>,
    /// The position after the last known token of each plan row. It has no meaning if the plan row does not
    /// run in this segment.
    pub ends: Vec<u32>,
    /// For each metadata row, the plan row it belongs to.
    pub plan_rows: Vec<u32>,
}

/// What the rows of a step are gathered from.
#[derive(Clone, Copy)]
pub(crate) struct Sources<'a> {
    pub plan: &'a StepPlan,
    pub kv: &'a dyn KvView,
    pub drafts: &'a Drafts,
    /// For each plan row, its index in `drafts`.
    pub draft_row: &'a [Option<u32>],
    pub requests: &'a Requests,
    pub thinned: &'a ThinnedPrompts,
    pub canvases: &'a Canvases,
    pub segments: &'a [SegmentKv],
    pub scorer: Scorer,
    /// For each plan row, the reason why it cannot go on, if there is one.
    pub faults: &'a [Option<String>],
}

impl<'a> Sources<'a> {
    pub fn drafts_of(&self, plan_row: usize) -> &'a [u32] {
        let row = self.draft_row.get(plan_row).copied().flatten();
        row.map_or(&[], |row| self.drafts.row(row as usize))
    }

    /// Whether the row computes part of a prompt that is thinned, so that only some of its tokens go on.
    pub fn thins(&self, row: &PlanRow) -> bool {
        row.thins && self.requests.get(row.request).is_ok_and(|known| known.thinning.is_some())
    }

    /// The position in the sequence after the last known token of a row that runs in a segment.
    fn end(&self, row: &PlanRow, segment: u16) -> Result<u32, ExecuteError> {
        if segment == 0 || !self.thins(row) {
            return Ok(row.tokens.end);
        }
        let (thinned, prompt_len) = self.thinned(row)?;
        let (first, known) = self.span(row, segment);
        Ok((first + known).checked_sub(1).map_or(0, |last| thinned.position(segment, last, prompt_len) + 1))
    }

    /// The positions of a block of a canvas that run through a segment, if only some do.
    fn active(&self, row: &PlanRow, segment: u16) -> Option<&'a [u32]> {
        if segment == 0 || !matches!(row.kind, Kind::Denoise { .. }) {
            return None;
        }
        self.canvases.get(row.request)?.active()
    }

    /// Whether the row's tokens are numbered anew behind each cut.
    fn is_compact(&self, row: &PlanRow) -> bool {
        let thinning = self.requests.get(row.request).ok().and_then(|known| known.thinning.as_ref());
        thinning.is_some_and(|thinning| thinning.compact)
    }

    /// The positions in the sequence of the `count` token rows of a row in a segment, drafts included.
    pub fn positions(&self, row: &PlanRow, segment: u16, count: u32) -> Vec<u32> {
        if segment > 0
            && self.thins(row)
            && let Ok((thinned, prompt_len)) = self.thinned(row)
        {
            let first = self.span(row, segment).0;
            return (first..first + count)
                .map(|index| thinned.position(segment, index, prompt_len))
                .collect();
        }
        (row.tokens.start..row.tokens.start + count).collect()
    }

    /// Whether the group holds tokens of the sequence before those of a row.
    pub fn has_past(&self, row: &PlanRow, segment: u16, group: Option<GroupId>) -> bool {
        group.is_some_and(|group| context(self, row, group, self.span(row, segment).0) > 0)
    }

    /// The known tokens of a plan row that run in a segment: the index of the first one among all the
    /// sequence's tokens that reach the segment, and how many they are.
    fn span(&self, row: &PlanRow, segment: u16) -> (u32, u32) {
        if let Some(active) = self.active(row, segment) {
            return (0, active.len() as u32);
        }
        if segment == row.segments.start || !self.thins(row) {
            return (row.tokens.start, row.tokens.end - row.tokens.start);
        }
        let known = self.kv.tokens(row.request).len() as u32;
        let reach =
            self.thinned.get(row.request).and_then(|thinned| thinned.kept.get(usize::from(segment) - 1));
        let prompt_len = self.requests.get(row.request).map_or(0, |registered| registered.prompt_len);
        (0, reach.map_or(known, |kept| kept.len() as u32 + known - prompt_len))
    }
}

impl SegmentRows {
    /// Lays out the rows of a segment and writes its inputs: tokens, positions, and the metadata of every KV group that
    /// the segment uses.
    pub fn gather(
        &mut self,
        from: &Sources<'_>,
        segment: u16,
        builders: &mut [MetadataBuilder],
        windows: &[Option<u32>],
        inputs: &mut StepInputs,
    ) -> Result<(), ExecuteError> {
        self.lay_out(from, segment);
        inputs.tokens.clear();
        inputs.positions.clear();
        inputs.groups.resize_with(builders.len(), Default::default);
        self.plan_rows.clear();
        for (builder, &window) in builders.iter_mut().zip(windows) {
            builder.begin();
            builder.set_window(window);
        }
        let kv = &from.segments[usize::from(segment)];
        for at in 0..self.order.len() {
            let i = self.order[at];
            self.starts[i as usize] = inputs.tokens.len() as u32;
            let rows = push_row(from, i as usize, segment, kv, builders, inputs)?;
            self.ends[i as usize] = from.end(&from.plan.rows[i as usize], segment)?;
            self.plan_rows.extend((0..rows).map(|_| i));
        }
        for (builder, metadata) in builders.iter_mut().zip(&mut inputs.groups) {
            *metadata = builder.take(std::mem::take(metadata));
        }
        self.push_held(from, segment, inputs)
    }

    fn lay_out(&mut self, from: &Sources<'_>, segment: u16) {
        let rows = &from.plan.rows;
        self.starts.clear();
        self.starts.resize(rows.len(), 0);
        self.ends.clear();
        self.ends.resize(rows.len(), 0);
        self.known.clear();
        self.known.extend(rows.iter().map(|row| {
            let runs = row.segments.contains(&segment);
            if runs { from.span(row, segment).1 } else { 0 }
        }));
        for (known, fault) in self.known.iter_mut().zip(from.faults) {
            if fault.is_some() {
                *known = 0;
            }
        }
        let long = |&i: &u32| {
            let drafts = from.drafts_of(i as usize).len() as u32;
            from.scorer.is_one_long_row(self.known[i as usize] + drafts, drafts > 0)
        };
        let all = || (0..rows.len() as u32).filter(|&i| self.known[i as usize] > 0);
        self.order.clear();
        self.order.extend(all().filter(|i| long(i)));
        self.order.extend(all().filter(|i| !long(i)));
    }

    /// Writes the slots of the scratch groups, which hold rows between two steps. A row that stops behind
    /// this segment gets the slot in which it is held. A row that stopped behind the segment before in an
    /// earlier step gets the slot from which it is fetched. All other rows have slot -1.
    fn push_held(
        &self,
        from: &Sources<'_>,
        segment: u16,
        inputs: &mut StepInputs,
    ) -> Result<(), ExecuteError> {
        let size = from.kv.block_size();
        let last = from.segments.len() as u16;
        let before = segment.checked_sub(1);
        for (of, fetched) in [(Some(segment), false), (before, true)] {
            let Some(hold) = of.and_then(|of| from.segments[usize::from(of)].hold) else { continue };
            let slots = &mut inputs.groups[usize::from(hold.0)].slot_mapping;
            slots.clear();
            slots.resize(inputs.tokens.len(), PAD_SLOT);
            for &i in &self.order {
                let row = &from.plan.rows[i as usize];
                let waits = row.segments.end == segment + 1 && row.segments.end < last;
                if (!fetched && !waits) || !from.thins(row) {
                    continue;
                }
                let (first, known) = from.span(row, segment);
                let table = from.kv.block_table(row.request, hold);
                let start = self.starts[i as usize];
                for j in 0..known {
                    let index = if fetched {
                        let Some(index) = from.waited(row, segment, first + j)? else { continue };
                        index
                    } else {
                        first + j
                    };
                    let what = "the rows that wait between two segments have no slot";
                    let slot = slot(table, index, size);
                    slots[(start + j) as usize] =
                        slot.ok_or(ExecuteError::Plan { request: row.request, what })?;
                }
            }
        }
        Ok(())
    }
}

impl Sources<'_> {
    /// For token `index` of those that reach `segment`: its index among those that reach the segment
    /// before, if it stopped there in an earlier step. `None` if it ran through that segment in this very
    /// step.
    pub fn waited(&self, row: &PlanRow, segment: u16, index: u32) -> Result<Option<u32>, ExecuteError> {
        let (thinned, prompt_len) = self.thinned(row)?;
        let index = thinned.before(segment - 1, index, prompt_len);
        let ran_before = row.segments.start < segment;
        let (first, _) = self.span(row, segment - 1);
        Ok((!ran_before || index < first).then_some(index))
    }

    fn thinned(&self, row: &PlanRow) -> Result<(&Thinned, u32), ExecuteError> {
        let what = "it goes on behind a cut that was not made";
        let thinned =
            self.thinned.get(row.request).ok_or(ExecuteError::Plan { request: row.request, what })?;
        Ok((thinned, self.requests.get(row.request)?.prompt_len))
    }

    /// Fills `source`: for each token row of `segment`, the token row of the segment before that it
    /// continues. The entry of a row that is fetched from a scratch group has no meaning.
    pub fn continued(
        &self,
        segment: u16,
        before: &SegmentRows,
        here: &SegmentRows,
        source: &mut Vec<u32>,
    ) -> Result<(), ExecuteError> {
        source.clear();
        for &i in &here.order {
            let (i, row) = (i as usize, &self.plan.rows[i as usize]);
            let rows = here.known[i] + self.drafts_of(i).len() as u32;
            if let Some(active) = self.active(row, segment) {
                source.extend(active.iter().map(|position| before.starts[i] + (position - row.tokens.start)));
                continue;
            }
            if !self.thins(row) {
                source.extend(before.starts[i]..before.starts[i] + rows);
                continue;
            }
            let (thinned, prompt_len) = self.thinned(row)?;
            let (first, known) = self.span(row, segment);
            let from = if row.segments.start < segment { self.span(row, segment - 1).0 } else { u32::MAX };
            for index in first..first + known {
                let index = thinned.before(segment - 1, index, prompt_len);
                source.push(index.checked_sub(from).map_or(0, |j| before.starts[i] + j));
            }
        }
        Ok(())
    }
}

/// Appends a plan row to the inputs of a segment. Returns the number of metadata rows that it becomes.
fn push_row(
    from: &Sources<'_>,
    i: usize,
    segment: u16,
    kv: &SegmentKv,
    builders: &mut [MetadataBuilder],
    inputs: &mut StepInputs,
) -> Result<u32, ExecuteError> {
    let row = &from.plan.rows[i];
    if matches!(row.kind, Kind::Denoise { .. }) {
        return push_canvas(from, row, segment, kv, builders, inputs);
    }
    let wrong = |what| ExecuteError::Plan { request: row.request, what };
    let drafts = from.drafts_of(i);
    let (first, known) = from.span(row, segment);
    let tokens = from.kv.tokens(row.request);
    let compact = segment > 0 && from.is_compact(row);
    if from.thins(row) && segment > 0 {
        let (thinned, prompt_len) = from.thinned(row)?;
        for index in first..first + known {
            let position = thinned.position(segment, index, prompt_len);
            let token = tokens.get(position as usize);
            inputs.tokens.push(*token.ok_or(wrong("it has fewer tokens than the row asks for"))?);
            inputs.positions.push(if compact { index } else { position });
        }
    } else {
        let known = tokens.get(first as usize..(first + known) as usize);
        let known = known.ok_or(wrong("it has fewer tokens than the row asks for"))?;
        inputs.tokens.extend_from_slice(known);
        inputs.tokens.extend_from_slice(drafts);
        let start = match kv.groups.first() {
            Some(&group) if compact => context(from, row, group, first),
            _ => row.tokens.start,
        };
        inputs.positions.extend(start..start + known.len() as u32 + drafts.len() as u32);
    }
    let count = known + drafts.len() as u32;
    let mut rows = 0;
    for &group in &kv.groups {
        let context = context(from, row, group, first);
        let explicit = matches!(from.kv.index(row.request, group), KvIndex::Explicit(_));
        let stored =
            if explicit && from.thins(row) { 0 } else { from.kv.lengths(row.request, group).physical };
        let table = from.kv.block_table(row.request, group);
        let builder =
            builders.get_mut(usize::from(group.0)).ok_or(wrong("it names a KV group that is not there"))?;
        rows = push_metadata(from.scorer, builder, context, count, !drafts.is_empty(), stored, table)?;
    }
    Ok(rows)
}

/// Appends a pass over a canvas. Its tokens see the whole sequence: what is before them, and what is behind them.
fn push_canvas(
    from: &Sources<'_>,
    row: &PlanRow,
    segment: u16,
    kv: &SegmentKv,
    builders: &mut [MetadataBuilder],
    inputs: &mut StepInputs,
) -> Result<u32, ExecuteError> {
    let wrong = |what| ExecuteError::Plan { request: row.request, what };
    let canvas = from.canvases.get(row.request).ok_or(wrong("its canvas is not there"))?;
    let registered = from.requests.get(row.request)?;
    let prompt = from.kv.tokens(row.request).get(..registered.prompt_len as usize).unwrap_or_default();
    let all = registered.prompt_len + registered.denoising.as_ref().map_or(0, |denoising| denoising.len);
    let active = from.active(row, segment);
    let from_here = inputs.positions.len();
    match active {
        Some(active) => inputs.positions.extend_from_slice(active),
        None => inputs.positions.extend(row.tokens.clone()),
    }
    let ids = inputs.positions[from_here..].iter().map(|&position| match prompt.get(position as usize) {
        Some(&token) => token,
        None => canvas.token(position),
    });
    inputs.tokens.extend(ids);
    let positions = &inputs.positions[from_here..];
    let (query_len, context_len) = (positions.len() as u32, positions.first().copied().unwrap_or(0));
    for &group in &kv.groups {
        let builder =
            builders.get_mut(usize::from(group.0)).ok_or(wrong("it names a KV group that is not there"))?;
        let row = MetadataRow {
            behind: all.saturating_sub(context_len + query_len),
            mask: MaskKind::Bidirectional,
            index: active,
            ..MetadataRow::causal(context_len, query_len, from.kv.block_table(row.request, group))
        };
        builder.push(row)?;
    }
    Ok(1)
}

/// The index in a group of the first token of a row, which is token `first` of those that reach the segment.
///
/// While a prompt is thinned, a token's index in a group is its index among the tokens that reach the segment. After that,
/// new tokens are stored behind those that were kept.
fn context(from: &Sources<'_>, row: &PlanRow, group: GroupId, first: u32) -> u32 {
    let lengths = from.kv.lengths(row.request, group);
    match from.kv.index(row.request, group) {
        // Behind a prefix hit a token may lie before the last one stored: both are among the prompt's last ones, of which all are kept.
        KvIndex::Explicit(_) if !from.thins(row) => {
            (lengths.physical + first).saturating_sub(lengths.logical)
        }
        _ => first,
    }
}

fn push_metadata(
    scorer: Scorer,
    builder: &mut MetadataBuilder,
    context: u32,
    count: u32,
    drafted: bool,
    stored: u32,
    table: &[pagedraft_block_manager::BlockId],
) -> Result<u32, ExecuteError> {
    if stored > context {
        // The prefix cache has the first tokens of this row, but not in every group. They are computed
        // again, and stored in those groups that lack them.
        let row = MetadataRow { stored, ..MetadataRow::causal(context, count, table) };
        builder.push(row)?;
        return Ok(1);
    }
    Ok(scorer.push(builder, context, count, drafted, table)?)
}

/// The KV groups of the only segment of a model that is not cut.
pub(crate) fn one_segment(groups: usize) -> Vec<SegmentKv> {
    vec![SegmentKv { groups: (0..groups).map(|group| GroupId(group as u8)).collect(), hold: None }]
}
