//! Runs the segments of a step, and decides between two of them which tokens go on.

use std::time::Instant;

use pagedraft_attention::mass::MassOver;
use pagedraft_block_manager::BlockId;
use pagedraft_model::{Device, StepInputs};
use pagedraft_scheduler::{Kept, KvView, RequestKey, StepOutcome, StepPlan};

use crate::error::ExecuteError;
use crate::executor::ModelExecutor;
use crate::record::{CutRecord, ExecutionRecord, SegmentRecord};
use crate::segment_rows::Sources;
use crate::thinning::{Thin, Watched};

impl<D: Device> ModelExecutor<D> {
    /// Runs every segment of the step. Returns the microseconds spent on inputs and metadata.
    pub(crate) fn run_segments(
        &mut self,
        plan: &StepPlan,
        kv: &dyn KvView,
        outcome: &mut StepOutcome<ExecutionRecord>,
    ) -> Result<f64, ExecuteError> {
        let mut gather_us = 0.0;
        let segments = self.segments.len();
        let record = &mut outcome.record;
        record.more_segments = segments - 1;
        record.more.resize_with(segments - 1, SegmentRecord::default);
        for segment in 0..segments {
            let start = Instant::now();
            let ExecutionRecord { inputs, plan_rows, ran, more, .. } = &mut outcome.record;
            let (inputs, plan_rows, ran) =
                match segment.checked_sub(1).and_then(|more_at| more.get_mut(more_at)) {
                    None => (inputs, plan_rows, ran),
                    Some(more) => (&mut more.inputs, &mut more.plan_rows, &mut more.ran),
                };
            self.gather(segment, plan, kv, inputs)?;
            gather_us += start.elapsed().as_secs_f64() * 1e6;
            plan_rows.clone_from(&self.rows[segment].plan_rows);
            *ran = Default::default();
            if inputs.tokens.is_empty() {
                continue;
            }
            let replays = !self.traces && self.runner.replays_segment(segment, inputs);
            inputs.groups.iter_mut().for_each(|metadata| metadata.use_cuda_graph = replays);
            *ran = match self.traces {
                true => self.trace_segment(segment, plan, kv, inputs)?,
                false => self.runner.forward_segment(segment, inputs)?,
            };
            if segment == 0 {
                self.judge_passes(plan)?;
            }
            if segment + 1 < segments {
                let start = Instant::now();
                self.cut(segment, plan, kv, &mut outcome.record.cuts)?;
                outcome.record.scoring_us += start.elapsed().as_secs_f64() * 1e6;
            }
        }
        if segments > 1 {
            self.say_what_was_kept(plan, kv, outcome)?;
        }
        Ok(gather_us)
    }

    pub(crate) fn sources<'a>(&'a self, plan: &'a StepPlan, kv: &'a dyn KvView) -> Sources<'a> {
        Sources {
            plan,
            kv,
            drafts: &self.drafts,
            draft_row: &self.draft_row,
            requests: &self.requests,
            thinned: &self.thinned,
            canvases: &self.canvases,
            segments: &self.segments,
            scorer: self.scorer,
            faults: &self.faults,
        }
    }

    /// Writes the inputs of a segment. Behind the first segment it also puts the rows of the residual
    /// stream in the order of the segment's token rows.
    fn gather(
        &mut self,
        segment: usize,
        plan: &StepPlan,
        kv: &dyn KvView,
        inputs: &mut StepInputs,
    ) -> Result<(), ExecuteError> {
        let mut here = std::mem::take(&mut self.rows[segment]);
        let mut builders = std::mem::take(&mut self.builders);
        let gathered =
            here.gather(&self.sources(plan, kv), segment as u16, &mut builders, &self.windows, inputs);
        self.builders = builders;
        self.rows[segment] = here;
        gathered?;
        let Some(before) = segment.checked_sub(1).map(|before| &self.rows[before]) else { return Ok(()) };
        // If no row ran through the segment before in this step, all rows are fetched from a scratch group.
        if before.order.is_empty() || inputs.tokens.is_empty() {
            return Ok(());
        }
        let mut continued = std::mem::take(&mut self.continued);
        let found =
            self.sources(plan, kv).continued(segment as u16, before, &self.rows[segment], &mut continued);
        let compacted = found.and_then(|()| Ok(self.runner.compact(&continued)?));
        self.continued = continued;
        compacted
    }

    /// Scores the tokens of thinned prompts that have run through a segment. If a prompt's last token is
    /// among them, decides which of its tokens go on.
    fn cut(
        &mut self,
        segment: usize,
        plan: &StepPlan,
        kv: &dyn KvView,
        records: &mut Vec<CutRecord>,
    ) -> Result<(), ExecuteError> {
        let thins = |row: &&u32| self.sources(plan, kv).thins(&plan.rows[**row as usize]);
        let rows: Vec<u32> = self.rows[segment].order.iter().filter(thins).copied().collect();
        for i in rows {
            let row = &plan.rows[i as usize];
            let registered = self.requests.get(row.request)?;
            let Some(thinning) = &registered.thinning else { continue };
            let (prompt_len, rule) = (registered.prompt_len, thinning.rule.clone());
            let count = thinning.kept.get(segment).copied().unwrap_or(prompt_len);
            let (start, known) =
                (self.rows[segment].starts[i as usize], self.rows[segment].known[i as usize]);
            let first = if row.segments.start == segment as u16 { row.tokens.start } else { 0 };
            let prompt = self.thinned.get(row.request).map_or(prompt_len, |thinned| {
                let kept = segment.checked_sub(1).and_then(|cut| thinned.kept.get(cut));
                kept.map_or(prompt_len, |kept| kept.len() as u32)
            });
            let whole = first + known == prompt + (kv.tokens(row.request).len() as u32 - prompt_len);
            let of_prompt = known.min(prompt.saturating_sub(first));
            let here = Here { segment: segment as u16, first, start, known: of_prompt, prompt, prompt_len };
            match rule.watch(segment as u16) {
                None => self.score(row.request, rule.as_ref(), here)?,
                Some((of, window)) => {
                    let table = self.segments[segment]
                        .groups
                        .first()
                        .map_or(&[][..], |&group| kv.block_table(row.request, group));
                    let watch = (of, window.min(prompt));
                    self.watch(row.request, rule.as_ref(), here, watch, whole.then_some(table))?;
                }
            }
            if !whole {
                continue;
            }
            let thinned = self.thinned.get_or_begin(row.request);
            let positions: Vec<u32> =
                (0..prompt).map(|index| thinned.position(segment as u16, index, prompt_len)).collect();
            let chosen = rule.keep(segment as u16, &thinned.scores, &positions, count as usize);
            let chosen = chosen.and_then(|chosen| {
                let sound = chosen.len() == count as usize
                    && chosen.is_sorted_by(|a, b| a < b)
                    && chosen.last().is_none_or(|&last| last < prompt);
                if sound { Ok(chosen) } else { Err("its rule kept other tokens than there are".to_owned()) }
            });
            match chosen {
                Ok(chosen) => {
                    let kept: Vec<u32> = chosen.iter().map(|&index| positions[index as usize]).collect();
                    records.push(CutRecord {
                        request: row.request,
                        segment: segment as u16,
                        reached: prompt,
                        kept: kept.clone(),
                        scores: spread(&thinned.scores),
                    });
                    thinned.kept.truncate(segment);
                    thinned.kept.push(kept);
                    thinned.scores.clear();
                }
                Err(why) => {
                    self.faults[i as usize] =
                        Some(format!("its prompt cannot be thinned behind segment {segment}: {why}"));
                }
            }
        }
        Ok(())
    }

    /// Scores tokens of a prompt one by one.
    fn score(&mut self, request: RequestKey, rule: &dyn Thin, here: Here) -> Result<(), ExecuteError> {
        let Here { segment, first, start, known, prompt_len, .. } = here;
        let thinned = self.thinned.get_or_begin(request);
        thinned.scores.truncate(first as usize);
        let positions: Vec<u32> =
            (first..first + known).map(|index| thinned.position(segment, index, prompt_len)).collect();
        if rule.reads_rows(segment) {
            let rows = start as usize..(start + known) as usize;
            let scores = self.runner.map_residual(rows.clone(), &|row, values| {
                rule.score(segment, positions[row - rows.start], values)
            })?;
            self.thinned.get_or_begin(request).scores.extend(scores);
        } else {
            thinned.scores.extend(positions.iter().map(|&position| rule.score(segment, position, &[])));
        }
        Ok(())
    }

    /// Keeps the queries of the last `window` tokens of a prompt. Once all of it has run, with the blocks of its keys in `table`, scores its
    /// tokens by what these queries show of them.
    fn watch(
        &mut self,
        request: RequestKey,
        rule: &dyn Thin,
        here: Here,
        (of, window): (Watched, u32),
        table: Option<&[BlockId]>,
    ) -> Result<(), ExecuteError> {
        let Here { segment, first, start, known, prompt, .. } = here;
        let begin = prompt - window;
        let from = first.max(begin);
        if from < first + known {
            let rows = (start + from - first) as usize..(start + known) as usize;
            let (kept, count) = (&mut self.thinned.get_or_begin(request).queries, rows.len());
            let mut keep = |queries: &[f32]| {
                kept.truncate((from - begin) as usize * (queries.len() / count));
                kept.extend_from_slice(queries);
            };
            match of {
                Watched::Attention => keep(self.runner.queries(rows)?),
                Watched::Index => keep(&self.runner.index_queries(rows)?),
            }
        }
        let Some(table) = table else { return Ok(()) };
        let queries = std::mem::take(&mut self.thinned.get_or_begin(request).queries);
        let keys = (table, prompt as usize);
        let (mut mass, heads) = match of {
            Watched::Attention => {
                let heads = self.runner.config().num_heads;
                (self.runner.attention_mass(keys, &queries, MassOver::Sum)?, heads)
            }
            Watched::Index => (self.runner.index_mass(keys, &queries)?, 1),
        };
        let share = 1.0 / (window as f32 * heads as f32);
        mass.iter_mut().for_each(|mass| *mass *= share);
        rule.score_attended(segment, &mut mass);
        self.thinned.get_or_begin(request).scores = mass;
        Ok(())
    }

    /// Writes to the outcome the positions that thinned prompts hold now in the groups of the segments
    /// behind a cut.
    fn say_what_was_kept(
        &mut self,
        plan: &StepPlan,
        kv: &dyn KvView,
        outcome: &mut StepOutcome<ExecutionRecord>,
    ) -> Result<(), ExecuteError> {
        let last = self.segments.len() as u16;
        for (i, row) in plan.rows.iter().enumerate() {
            if !self.sources(plan, kv).thins(row) || self.faults[i].is_some() {
                continue;
            }
            let prompt_len = self.requests.get(row.request)?.prompt_len;
            let Some(thinned) = self.thinned.get(row.request) else { continue };
            for segment in row.segments.clone().filter(|&segment| segment > 0) {
                for &group in &self.segments[usize::from(segment)].groups {
                    let held = plan.needs.row(i).get(usize::from(group.0)).copied().unwrap_or(0);
                    let from = outcome.kept_positions.len() as u32;
                    let positions = (0..held).map(|index| thinned.position(segment, index, prompt_len));
                    outcome.kept_positions.extend(positions);
                    let positions = from..outcome.kept_positions.len() as u32;
                    outcome.kept.push(Kept { row: i as u32, group, positions });
                }
            }
            if row.segments.end == last && row.samples {
                self.thinned.forget(row.request);
            }
        }
        Ok(())
    }
}

/// Where tokens of a thinned prompt lie that have run through a segment.
#[derive(Clone, Copy)]
struct Here {
    segment: u16,
    /// The index of the first of them among the tokens that reach the segment.
    first: u32,
    /// Its token row.
    start: u32,
    /// How many tokens of the prompt they are.
    known: u32,
    /// How many of the prompt's tokens reach the segment.
    prompt: u32,
    prompt_len: u32,
}

/// The least, the greatest and the mean of some scores.
fn spread(scores: &[f32]) -> [f32; 3] {
    let least = scores.iter().copied().fold(f32::INFINITY, f32::min);
    let greatest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = scores.iter().map(|&score| f64::from(score)).sum();
    [least, greatest, (sum / scores.len().max(1) as f64) as f32]
}
