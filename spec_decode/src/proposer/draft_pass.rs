//! Runs forward passes of a draft model over pieces of several sequences.

use std::collections::BTreeMap;

use pagedraft_attention::MetadataBuilder;
use pagedraft_attention::metadata::MaskKind;
use pagedraft_block_manager::GroupId;
use pagedraft_model::{Choice, Device, Fallback, NO_CHOICE, Ran, Runner, StepInputs};
use pagedraft_scheduler::{KvView, RequestKey};
use serde::Serialize;

use super::Proposing;
use super::draft_log::PassLog;
use crate::error::ExecuteError;
use crate::sampling::{Noise, Purpose, Sampler, SamplingParams, distribution};

/// Counts of what a draft model did since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DraftCounts {
    /// The number of forward passes.
    pub forwards: u64,
    /// The number of forward passes that were replayed from a graph.
    pub replays: u64,
    /// The number of forward passes that ran eagerly although graphs were captured, by the reason.
    pub fallbacks: BTreeMap<Fallback, u64>,
    /// The number of draft tokens.
    pub drafts: u64,
    /// The number of known tokens run besides the last one of each row: 1 after a bonus token, many after a time
    /// without drafts.
    pub catch_up_tokens: u64,
    /// The number of known tokens whose KV was found in the draft model's own prefix cache.
    pub hit_tokens: u64,
    /// The number of rows without drafts because their KV lagged by more than the catch-up budget of the step allowed.
    pub rows_behind: u64,
    /// The number of rows without drafts because no KV block was free.
    pub rows_without_room: u64,
    /// The number of rows whose drafts ended early because no token can be drawn from the draft model's
    /// logits, which hold a NaN, for example.
    pub rows_without_numbers: u64,
}

/// The tokens `start..end` of a row of the step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    /// The index of the row in the step.
    pub row: usize,
    pub request: RequestKey,
    pub start: u32,
    pub end: u32,
    /// Whether a draft is drawn after the last of these tokens.
    pub drafts: bool,
}

/// The sizes of the draft's and the target's vocabulary: the same tokens, padded to different lengths.
#[derive(Clone, Copy, Debug)]
pub(super) struct Vocab {
    pub own: usize,
    pub target: usize,
}

impl Vocab {
    /// The ids below this number exist in both vocabularies. No others are proposed.
    fn shared(self) -> usize {
        self.own.min(self.target)
    }

    /// The id that the draft model is shown for a token of the target. An id that only the target has is
    /// padding. It is shown as the last id that the draft model has, which can only make the drafts after
    /// it worse.
    fn shown(self, token: u32) -> u32 {
        token.min((self.own as u32).saturating_sub(1))
    }
}

/// Buffers of the passes, and how a draft is drawn.
pub(super) struct Passes {
    vocab: Vocab,
    builder: MetadataBuilder,
    inputs: StepInputs,
    /// What the next passes run. A piece that does not fit in a pass is cut.
    pub pieces: Vec<Piece>,
    batch: Vec<Piece>,
    /// For each row of the pass, the row of the step it belongs to.
    owners: Vec<usize>,
    /// The pieces of the pass after which a draft is drawn, and the token row of each.
    drawn: Vec<Piece>,
    selection: Vec<u32>,
    /// For each draft that is to be drawn, the choice that a device is asked to make itself.
    choices: Vec<Choice>,
    sampler: Sampler,
    /// Whether drafts are drawn with noise of their own. The distribution is then kept for each row.
    pub own_draws: bool,
    pub distributions: Vec<Vec<f64>>,
    pub counts: DraftCounts,
    /// What the passes were given, if a record is wanted.
    pub log: Option<PassLog>,
    /// The KV group that the passes write.
    group: GroupId,
    /// The windows of the model's KV groups. All of them lie in `group`, and differ in nothing else.
    windows: Vec<Option<u32>>,
    /// The drafts of each of the step's rows so far.
    pub drafts: Vec<Vec<u32>>,
}

impl Passes {
    pub fn new(builder: MetadataBuilder, group: GroupId, windows: Vec<Option<u32>>, vocab: Vocab) -> Self {
        Self {
            group,
            windows,
            vocab,
            drafts: Vec::new(),
            builder,
            inputs: StepInputs::default(),
            pieces: Vec::new(),
            batch: Vec::new(),
            owners: Vec::new(),
            drawn: Vec::new(),
            selection: Vec::new(),
            choices: Vec::new(),
            sampler: Sampler::default(),
            own_draws: false,
            distributions: Vec::new(),
            counts: DraftCounts::default(),
            log: None,
        }
    }

    /// How many tokens a KV block holds.
    pub fn block_size(&self) -> u32 {
        self.builder.block_size()
    }

    /// Begins a step of `rows` rows, without drafts.
    pub fn begin(&mut self, rows: usize) {
        let rows_kept = rows.max(self.drafts.len());
        self.drafts.resize_with(rows_kept, Vec::new);
        self.drafts.iter_mut().for_each(Vec::clear);
        if let Some(log) = &mut self.log {
            log.begin(rows);
        }
    }

    /// Runs all `pieces`, in as few passes as the runner's limits allow, and gives each row that drafts one
    /// more token.
    pub fn run<D: Device>(
        &mut self,
        runner: &mut Runner<D>,
        step: &Proposing<'_>,
    ) -> Result<(), ExecuteError> {
        let mut at = 0;
        while at < self.pieces.len() {
            self.batch.clear();
            let mut room = runner.limits().token_rows.max(1) as u32;
            while let Some(piece) = self.pieces.get_mut(at).filter(|_| room > 0) {
                let taken = room.min(piece.end - piece.start);
                let whole = piece.start + taken == piece.end;
                self.batch.push(Piece { end: piece.start + taken, drafts: piece.drafts && whole, ..*piece });
                piece.start += taken;
                room -= taken;
                at += usize::from(whole);
            }
            self.gather(step.kv)?;
            self.forward(runner)?;
            self.draw(runner, step)?;
        }
        Ok(())
    }

    /// Runs the inputs and notes them in the log.
    fn forward<D: Device>(&mut self, runner: &mut Runner<D>) -> Result<(), ExecuteError> {
        self.counts.forwards += 1;
        match runner.forward(&self.inputs)? {
            Ran::Graph(_) => self.counts.replays += 1,
            Ran::Eager(Some(why)) => *self.counts.fallbacks.entry(why).or_default() += 1,
            Ran::Eager(None) => {}
        }
        if let Some(log) = &mut self.log {
            log.note(&self.inputs, &self.owners);
        }
        Ok(())
    }

    /// Writes the inputs of the pass, rows of several tokens first.
    fn gather(&mut self, kv: &dyn KvView) -> Result<(), ExecuteError> {
        let inputs = &mut self.inputs;
        inputs.tokens.clear();
        inputs.positions.clear();
        self.owners.clear();
        self.drawn.clear();
        self.selection.clear();
        self.builder.begin();
        for several in [true, false] {
            for piece in self.batch.iter().filter(|piece| (piece.end - piece.start > 1) == several) {
                let Piece { request, start, end, .. } = *piece;
                let (known, drafts) = (kv.tokens(request), &self.drafts[piece.row]);
                for position in start as usize..end as usize {
                    let draft = || drafts.get(position - known.len());
                    let what = "its draft tokens are not where they were put";
                    let token = known.get(position).or_else(draft);
                    let token = *token.ok_or(ExecuteError::Plan { request, what })?;
                    inputs.tokens.push(self.vocab.shown(token));
                }
                inputs.positions.extend(start..end);
                let table = kv.block_table(request, self.group);
                self.builder.push_row(start, end - start, table, MaskKind::Causal)?;
                self.owners.push(piece.row);
                if piece.drafts {
                    self.drawn.push(*piece);
                    self.selection.push(inputs.tokens.len() as u32 - 1);
                }
            }
        }
        let groups = &mut inputs.groups;
        groups.resize_with(self.windows.len(), Default::default);
        if let Some((first, others)) = groups.split_first_mut() {
            *first = self.builder.take(std::mem::take(first));
            others.iter_mut().for_each(|group| group.clone_from(first));
        }
        for (group, &window) in groups.iter_mut().zip(&self.windows) {
            group.window = window;
        }
        Ok(())
    }

    fn draw<D: Device>(&mut self, runner: &mut Runner<D>, step: &Proposing<'_>) -> Result<(), ExecuteError> {
        let most = runner.limits().logit_rows.max(1);
        let shared = self.vocab.shared();
        // A device looks at all logits of a row, and those beyond the target's vocabulary do not count.
        let device_chooses = runner.chooses() && !self.own_draws && shared == self.vocab.own;
        for (pieces, selection) in self.drawn.chunks(most).zip(self.selection.chunks(most)) {
            if device_chooses {
                self.choices.clear();
                for piece in pieces {
                    self.choices.push(step.requests.get(piece.request)?.sampling.choice(piece.end));
                }
                let chosen = runner.choose(selection, &self.choices)?;
                // If a row has no choice, its logits are read below, because they tell why.
                if !chosen.contains(&NO_CHOICE) {
                    for (piece, &token) in pieces.iter().zip(chosen) {
                        self.drafts[piece.row].push(token);
                    }
                    self.counts.drafts += pieces.len() as u64;
                    continue;
                }
            }
            let logits = runner.logits(selection)?;
            for (i, piece) in pieces.iter().enumerate() {
                let request = piece.request;
                let params = &step.requests.get(request)?.sampling;
                // No token can be drawn from the logits of this row, because they are not numbers. It gets
                // no further drafts, but its request goes on, since the target chooses the tokens in any
                // case.
                let row = logits.row(i);
                let row = row.get(..shared).unwrap_or(row);
                let token = if self.own_draws {
                    distribution(row, params).map(|q| {
                        let kept = &mut self.distributions[piece.row];
                        kept.extend_from_slice(&q);
                        // Tokens that the draft model does not have get probability 0.
                        kept.resize(kept.len() + self.vocab.target - shared, 0.0);
                        draw_from(&q, params, piece.end)
                    })
                } else {
                    self.sampler.choose(row, params, piece.end)
                };
                match token {
                    Ok(token) => {
                        self.drafts[piece.row].push(token);
                        self.counts.drafts += 1;
                    }
                    Err(_) => self.counts.rows_without_numbers += 1,
                }
            }
        }
        Ok(())
    }
}

/// Draws a token from `q` by inversion, with noise that the target's choice does not share.
fn draw_from(q: &[f64], params: &SamplingParams, position: u32) -> u32 {
    let mut left = Noise::new(params, position).uniform(Purpose::Proposal, 0);
    let mut drawn = 0;
    for (token, &p) in (0u32..).zip(q).filter(|(_, p)| **p > 0.0) {
        // If rounding leaves a rest, the last token with a probability takes it.
        drawn = token;
        left -= p;
        if left < 0.0 {
            break;
        }
    }
    drawn
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that fails says where")]

    use pagedraft_scheduler::{RequestSpec, Scheduler, SchedulerConfig, StepPlan};

    use super::super::GroupStep;
    use super::*;

    /// The record of a sequence of 20 tokens: 18 of them run in one pass, then one in each of two more
    /// passes.
    fn recorded(corrupt: impl Fn(usize, &mut StepInputs)) -> GroupStep {
        let mut scheduler = Scheduler::new(SchedulerConfig::default()).unwrap();
        let request = scheduler.submit(RequestSpec::new((100..120).collect(), 1)).unwrap();
        scheduler.step(&mut StepPlan::default()).unwrap();
        let mut passes = Passes::new(
            MetadataBuilder::new(16).unwrap(),
            GroupId(0),
            vec![None],
            Vocab { own: 120, target: 120 },
        );
        let mut log = PassLog::default();
        passes.begin(3);
        log.begin(3);
        for (pass, (start, end)) in [(0, 18), (18, 19), (19, 20)].into_iter().enumerate() {
            passes.batch.clear();
            passes.batch.push(Piece { row: 2, request, start, end, drafts: true });
            passes.gather(&scheduler).unwrap();
            corrupt(pass, &mut passes.inputs);
            log.note(&passes.inputs, &passes.owners);
        }
        let mut record = GroupStep::default();
        log.write([2].into_iter(), &[7, 8, 9], &mut record);
        record
    }

    #[test]
    fn the_record_is_the_union_of_the_passes() {
        let record = recorded(|_, _| {});
        let first = i64::from(record.block_tables[0][0].0) * 16;
        let second = i64::from(record.block_tables[0][1].0) * 16;
        assert_eq!(record.plan_rows, [9]);
        assert_eq!(record.input_tokens, (100..120).collect::<Vec<_>>());
        assert_eq!(record.input_positions, (0..20).collect::<Vec<_>>());
        assert_eq!(record.query_start_loc, [0, 20]);
        assert_eq!(record.slot_mapping, (first..first + 16).chain(second..second + 4).collect::<Vec<_>>());
        assert_eq!((&record.context_lens[..], &record.seq_lens[..]), (&[0][..], &[20][..]));
        assert_eq!(record.block_tables[0].len(), 2);
    }

    #[test]
    fn what_a_pass_was_given_wrong_is_on_record_as_it_was_given() {
        let sound = recorded(|_, _| {});
        for (pass, t, at) in [(0, 5, 5), (1, 0, 18), (2, 0, 19)] {
            let with = |change: fn(&mut StepInputs, usize)| {
                recorded(|p, inputs| {
                    if p == pass {
                        change(inputs, t)
                    }
                })
            };
            let mut expected = sound.clone();
            expected.slot_mapping[at] = 63;
            assert_eq!(with(|inputs, t| inputs.metadata_mut().slot_mapping[t] = 63), expected);
            let mut expected = sound.clone();
            expected.input_tokens[at] = 1;
            assert_eq!(with(|inputs, t| inputs.tokens[t] = 1), expected);
            let mut expected = sound.clone();
            expected.input_positions[at] += 3;
            assert_eq!(with(|inputs, t| inputs.positions[t] += 3), expected);
        }
    }

    #[test]
    fn draws_follow_their_distribution() {
        let q = [0.0, 0.5, 0.0, 0.25, 0.25, 0.0];
        let mut counts = [0u32; 6];
        for position in 0..40_000 {
            counts[draw_from(&q, &SamplingParams { seed: 3, ..SamplingParams::default() }, position)
                as usize] += 1;
        }
        for (count, p) in counts.iter().zip(q) {
            let sigma = (40_000.0 * p * (1.0 - p)).sqrt();
            assert!((f64::from(*count) - 40_000.0 * p).abs() <= 5.0 * sigma, "{counts:?}");
        }
    }
}
