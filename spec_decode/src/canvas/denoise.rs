//! The passes of a step over canvases: the judge between two segments, and the filling of masks behind the last.

use pagedraft_model::Device;
use pagedraft_scheduler::{Kind, PlanRow, Progress, StepOutcome, StepPlan};

use super::candidate::{Candidate, choose};
use super::denoising::{Guard, Remasking};
use super::judge::States;
use super::record::CanvasPass;
use super::state::Canvas;
use super::traced;
use super::transfer::{scheduled, transfer};
use crate::error::ExecuteError;
use crate::executor::ModelExecutor;
use crate::record::ExecutionRecord;
use crate::sampling::{Noise, Purpose, SamplingParams};

/// Whether a row passes over a canvas, and whether that pass is full.
fn pass(row: &PlanRow) -> Option<bool> {
    match row.kind {
        Kind::Denoise { full, .. } => Some(full),
        _ => None,
    }
}

impl<D: Device> ModelExecutor<D> {
    /// Begins the passes of a step. Requests that were preempted begin their blocks again.
    pub(crate) fn begin_passes(&mut self, plan: &StepPlan) -> Result<(), ExecuteError> {
        plan.preempted.iter().for_each(|&request| self.canvases.restart(request));
        plan.finished.iter().for_each(|&request| self.canvases.forget(request));
        for row in plan.rows.iter().filter(|row| pass(row).is_some()) {
            let registered = self.requests.get(row.request)?;
            if !self.canvases.begin(row, registered.denoising.as_ref(), registered.prompt_len) {
                let kind = format!("{:?}", row.kind);
                return Err(ExecuteError::Unsupported { request: row.request, kind });
            }
        }
        Ok(())
    }

    /// Behind the first segment: decides which tokens of the blocks run through the later layers.
    pub(crate) fn judge_passes(&mut self, plan: &StepPlan) -> Result<(), ExecuteError> {
        let hidden = self.runner.config().hidden_size;
        for (i, row) in plan.rows.iter().enumerate() {
            let Some(full) = pass(row).filter(|_| self.faults[i].is_none()) else { continue };
            let Some(canvas) = self.canvases.get_mut(row.request) else { continue };
            let Some(skip) = canvas.denoising.skip else { continue };
            let block = canvas.block();
            let start = (self.rows[0].starts[i] + block.start - row.tokens.start) as usize;
            let mut now = States { values: Vec::new(), tokens: block.len(), hidden };
            for layer in skip.compared() {
                let end = start + block.len();
                let states = if layer == usize::from(skip.layers) {
                    self.runner.residual(end)?
                } else {
                    let tapped = self.runner.hidden(layer)?;
                    let what = "the states of its layers are not kept";
                    tapped.ok_or(ExecuteError::Plan { request: row.request, what })?
                };
                now.values.extend_from_slice(&states[start * hidden..end * hidden]);
            }
            let before = canvas.judge(full, now);
            if let Some(tracer) = self.tensors.as_mut().filter(|_| self.traces && canvas.was_compared()) {
                traced::write(tracer, canvas, &before, (i, row.request), *skip.compared().start());
            }
        }
        Ok(())
    }

    /// Fills masks of the canvases by the logits of the step, and writes what came of each pass.
    pub(crate) fn fill_masks(
        &mut self,
        plan: &StepPlan,
        outcome: &mut StepOutcome<ExecutionRecord>,
    ) -> Result<(), ExecuteError> {
        let layers = self.runner.config().num_layers as u64;
        for (i, row) in plan.rows.iter().enumerate() {
            let Some(full) = pass(row).filter(|_| self.faults[i].is_none()) else { continue };
            let Some(canvas) = self.canvases.get(row.request) else { continue };
            let (block, first) = (canvas.block(), self.requests.get(row.request)?.prompt_len);
            // The masks that this pass may fill, and those among them whose rows ran to the end.
            let eligible: Vec<u32> = if full { first..block.end } else { block.clone() }
                .filter(|&position| canvas.is_mask(position))
                .collect();
            let active = canvas.active().map(<[u32]>::to_vec);
            let row_of = |position: u32| match &active {
                None => Some(position - row.tokens.start),
                Some(active) => active.binary_search(&position).ok().map(|at| at as u32),
            };
            let ran: Vec<(u32, u32)> =
                eligible.iter().filter_map(|&position| Some((position, row_of(position)?))).collect();
            let mut logits = Vec::new();
            let fresh = match self.candidates(row, i, &ran, &mut logits)? {
                Ok(fresh) => fresh,
                Err(why) => {
                    self.faults[i] = Some(why);
                    continue;
                }
            };
            let Some(canvas) = self.canvases.get_mut(row.request) else { continue };
            let block_len = block.len() as u64;
            let depth = canvas.denoising.skip.map_or(0, |skip| u64::from(skip.layers).min(layers));
            let rows = row.tokens.len() as u32;
            let ran_on = active.as_ref().map_or(u64::from(rows), |active| active.len() as u64);
            let record = CanvasPass {
                request: row.request,
                block: canvas.index(),
                step: canvas.step,
                rows,
                offset: row.tokens.start,
                masked_before: eligible.len() as u32,
                stable: active.as_ref().map_or(0, |active| block_len as u32 - active.len() as u32),
                active: active.as_ref().map_or(block_len as u32, |active| active.len() as u32),
                masked_stable: canvas.masked_stable,
                compared: canvas.was_compared(),
                token_layers: depth * u64::from(rows) + (layers - depth) * ran_on,
                logits,
                ..CanvasPass::default()
            };
            let record = finish(canvas, &eligible, fresh, record);
            let result = &mut outcome.rows[i];
            let start = outcome.tokens.len() as u32;
            if record.ends {
                outcome.tokens.extend(canvas.ids(block));
            }
            result.tokens = start..outcome.tokens.len() as u32;
            let refresh = canvas.denoising.always_full || record.watchdog;
            result.progress = Progress::Canvas { refresh };
            outcome.record.passes.push(record);
        }
        Ok(())
    }

    /// The choices for the positions of `ran`, each with its row among those of plan row `i` in the last segment. Logits go to `kept` if they are
    /// wanted. The inner error says why no choice can be made.
    fn candidates(
        &mut self,
        row: &PlanRow,
        i: usize,
        ran: &[(u32, u32)],
        kept: &mut Vec<(u32, Vec<f32>)>,
    ) -> Result<Result<Vec<Candidate>, String>, ExecuteError> {
        let Some(canvas) = self.canvases.get(row.request) else { return Ok(Ok(Vec::new())) };
        let sampling = &self.requests.get(row.request)?.sampling;
        // The noise of each pass is its own.
        let pass = u64::from(canvas.index()) << 32 | u64::from(canvas.step);
        let seed = sampling.seed ^ pass.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let params = SamplingParams { seed, ..sampling.clone() };
        let temperature = f64::from(sampling.temperature);
        let (mask, remasking) = (canvas.denoising.mask, canvas.denoising.remasking);
        let start = self.rows.last().map_or(0, |rows| rows.starts[i]);
        let mut candidates = Vec::with_capacity(ran.len());
        for part in ran.chunks(self.runner.limits().logit_rows.max(1)) {
            let selection: Vec<u32> = part.iter().map(|&(_, at)| start + at).collect();
            let logits = self.runner.logits(&selection)?;
            if let Some(tracer) = self.tensors.as_mut().filter(|_| self.traces) {
                let positions = part.iter().map(|&(position, _)| position).collect();
                let rows = (0..part.len()).map(|at| logits.row(at));
                tracer.logits((i, row), Some(canvas.pass()), positions, rows);
            }
            for (at, &(position, _)) in part.iter().enumerate() {
                let noise = Noise::new(&params, position);
                let noisy = (temperature > 0.0).then_some((noise, temperature));
                match choose(logits.row(at), position, mask, noisy) {
                    Ok(candidate) => candidates.push(match remasking {
                        Remasking::LowConfidence => candidate,
                        Remasking::Random => {
                            Candidate { confidence: noise.uniform(Purpose::Acceptance, 0), ..candidate }
                        }
                    }),
                    Err(source) => {
                        return Ok(Err(format!(
                            "the token at position {position} cannot be chosen: {source}"
                        )));
                    }
                }
                if self.keep_logits {
                    kept.push((position, logits.row(at).to_vec()));
                }
            }
        }
        Ok(Ok(candidates))
    }
}

/// Fills masks of a canvas from the choices of a pass, and completes the record of it.
fn finish(canvas: &mut Canvas, eligible: &[u32], fresh: Vec<Candidate>, record: CanvasPass) -> CanvasPass {
    let block = canvas.block();
    let guard = canvas.denoising.skip.map(|skip| skip.guard);
    let mut candidates = fresh;
    for &candidate in candidates.iter().filter(|candidate| block.contains(&candidate.position)) {
        canvas.kept[(candidate.position - block.start) as usize] = Some(candidate);
    }
    if guard == Some(Guard::Reuse) {
        let skipped = eligible.iter().filter(|&&p| !candidates.iter().any(|c| c.position == p));
        let kept = skipped.filter_map(|&p| canvas.kept[(p - block.start) as usize]);
        let kept: Vec<Candidate> = kept.collect();
        candidates.extend(kept);
    }
    let mut choices = Vec::new();
    if canvas.denoising.keep_choices {
        choices.extend(candidates.iter().map(|candidate| (candidate.position, candidate.token)));
        choices.sort_unstable();
    }
    let none = candidates.is_empty();
    let left_aside = (eligible.len() - candidates.len()) as u32;
    match canvas.forced() {
        Some(fills) => {
            let possible = fills.iter().filter(|(position, _)| eligible.contains(position));
            let known = |&(position, token)| Candidate { position, token, confidence: 1.0 };
            candidates = possible.map(known).collect();
        }
        None => {
            let count = scheduled(canvas.masks, canvas.denoising.passes, canvas.step);
            transfer(&mut candidates, count, canvas.denoising.threshold);
        }
    }
    candidates.iter().for_each(|&candidate| canvas.fill(candidate));
    let left = canvas.masks_left();
    let stuck = none && left > 0;
    let another = canvas.denoising.extra_pass && record.step == 0 && !canvas.denoising.always_full;
    let ends = (left == 0 && !another) || (stuck && guard == Some(Guard::None));
    canvas.step += 1;
    CanvasPass {
        watchdog: stuck && !ends,
        left_aside,
        masks_left: left,
        pos: candidates.iter().map(|candidate| candidate.position).collect(),
        tok: candidates.iter().map(|candidate| candidate.token).collect(),
        choices,
        ends,
        ..record
    }
}
