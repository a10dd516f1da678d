//! Proposes drafts with a small model that runs ahead of the target.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use pagedraft_attention::MetadataBuilder;
use pagedraft_block_manager::GroupId;
use pagedraft_model::{Device, ModelError, RunCounts, Runner};
use pagedraft_scheduler::{CostCurve, RequestKey};

use super::draft_log::PassLog;
use super::draft_pass::{DraftCounts, Passes, Piece, Vocab};
use super::{GroupStep, Proposer, ProposerError, Proposing, Verified};
use crate::calibrate::measure;
use crate::drafts::Drafts;
use crate::error::ExecuteError;

/// The options of a draft model.
#[derive(Clone, Copy, Debug)]
pub struct DraftOptions {
    /// The KV group that holds its KV. It is the block manager's group that may lag.
    pub group: GroupId,
    /// How many tokens a block of its KV holds: 16, 32 or 64.
    pub block_size: u32,
    /// How many blocks the group has.
    pub num_blocks: u32,
    /// The most known tokens that rows lagging by more than 2 tokens may catch up with in one step, all
    /// rows together. This is the engine's `max_num_batched_tokens`.
    pub catch_up_tokens: usize,
    /// The size of the target's vocabulary. An id that both models have must mean the same to both.
    pub target_vocab: usize,
}

/// Proposes what a small model of the same vocabulary says. Its KV is a group of its own beside the
/// target's, in the same arena. The scheduler reserves blocks of it for rows that may have drafts.
///
/// Layers of the draft model may have sliding windows. They read the keys inside the window only, but the group keeps the KV of all
/// tokens: one table and one length say how far the whole model lags.
///
/// The embeddings of the two models may be padded to different sizes. No id is proposed that either of them
/// lacks.
///
/// # What it promises
///
/// - A draft is a function of the request's known tokens, its parameters, the draft model, the dtype and the instruction set.
///   Batch mates, lag, prefix hits, chunks, block size and graphs do not change it. Under coupled acceptance it is the token
///   that [`Sampler::choose`](crate::sampling::Sampler::choose) takes with the request's own noise, so a good draft model
///   makes the target's choice.
/// - It says how many slots of its KV hold accepted tokens ([`verified`](Proposer::verified)), and no more are committed. A
///   rejected draft leaves nothing behind, and neither does a step that was never verified.
/// - A row for which its group has no room has no drafts.
///
/// # The first pass catches up
///
/// The KV of the last draft is never written, and neither is that of the token after it. A row therefore lacks one
/// token after a rejection, two after all its drafts were accepted, and any number after steps without drafts. The
/// first forward pass of a step computes what each row lacks, and single-token passes follow for the rows that still
/// want drafts: k drafts take k passes, whatever was accepted before. If a row lacks more tokens than are left of the
/// step's catch-up budget, it catches up as far as the budget goes and gets no drafts.
///
/// # What it costs
///
/// Besides the passes it takes one microsecond a draft, with the greedy choice from a small vocabulary included (64
/// rows of 4 drafts, one core of a 2-core Xeon). It keeps a copy of each sequence's token ids (4 bytes a token), and a
/// [`BlockManager`](pagedraft_block_manager::BlockManager) for its blocks. A step allocates nothing of its own if its rows were there before, unless a block
/// table outgrows its buffer or distributions are kept.
pub struct DraftModel<D: Device> {
    runner: Runner<D>,
    group: GroupId,
    num_blocks: u32,
    passes: Passes,
    catch_up_tokens: u32,
    rows: Vec<Row>,
    /// Whether the passes of the last step are done but its rows are not yet verified.
    unverified: bool,
    record: GroupStep,
    /// For each request index, the request with that index that it was last asked about. A new request may find KV
    /// that others left in the prefix cache.
    seen: Vec<RequestKey>,
}

/// One row of the step, as the draft model runs it.
#[derive(Clone, Copy)]
struct Row {
    /// Its index among the rows of the step.
    row: usize,
    request: RequestKey,
    /// The number of known tokens.
    len: u32,
    /// The number of tokens that had their KV before the step.
    start: u32,
    /// The number of known tokens that have their KV after the first pass.
    fed: u32,
    /// The number of drafts it gets.
    max: u32,
}

impl<D: Device> DraftModel<D> {
    /// Makes a proposer of a loaded draft model. If it shall use graphs, they must be captured on the runner
    /// ([`Runner::capture`]); in a steady state it asks for query lengths 1 and 2.
    ///
    /// # Errors
    ///
    /// The target has no vocabulary, there are no kernels for the block size, the group has no blocks, or
    /// the budget is 0.
    pub fn new(runner: Runner<D>, options: DraftOptions) -> Result<Self, ProposerError> {
        let config = runner.config();
        if options.target_vocab == 0 {
            return Err(ProposerError::NoVocab);
        }
        let vocab = Vocab { own: config.vocab_size, target: options.target_vocab };
        if options.catch_up_tokens == 0 {
            return Err(ProposerError::CatchUp);
        }
        let windows = runner.model().kv().iter().map(|group| group.window).collect();
        let builder = MetadataBuilder::new(options.block_size)?;
        Ok(Self {
            group: options.group,
            num_blocks: options.num_blocks,
            passes: Passes::new(builder, options.group, windows, vocab),
            runner,
            catch_up_tokens: u32::try_from(options.catch_up_tokens).unwrap_or(u32::MAX),
            rows: Vec::new(),
            unverified: false,
            record: GroupStep::default(),
            seen: Vec::new(),
        })
    }

    /// The draft model.
    pub fn runner(&mut self) -> &mut Runner<D> {
        &mut self.runner
    }

    /// Counts of what it has done since it was made.
    #[must_use]
    pub fn counts(&self) -> &DraftCounts {
        &self.passes.counts
    }

    /// Opens the sequences of the step and shares out the catch-up budget.
    fn open(&mut self, step: &Proposing<'_>) -> Result<(), ExecuteError> {
        let counts = &mut self.passes.counts;
        let positions = self.runner.limits().max_model_len;
        for i in 0..step.len() {
            let row = step.row(i)?;
            // The last draft is never run, so it needs no position.
            let max = row.max.min((positions + 1).saturating_sub(row.tokens.len())) as u32;
            let len = row.tokens.len() as u32;
            if max == 0 || len == 0 {
                continue;
            }
            let plan_row = step.rows[i] as usize;
            let room = step.plan.needs.row(plan_row).get(usize::from(self.group.0)).copied().unwrap_or(0);
            let table = step.kv.block_table(row.request, self.group);
            let held = (table.len() as u32).saturating_mul(step.kv.block_size());
            if room.min(held) < len + max - 1 {
                counts.rows_without_room += 1;
                continue;
            }
            let start = step.kv.lengths(row.request, self.group).physical.min(len - 1);
            if self.seen.len() <= row.request.index() {
                self.seen.resize(row.request.index() + 1, RequestKey::default());
            }
            if std::mem::replace(&mut self.seen[row.request.index()], row.request) != row.request {
                counts.hit_tokens += u64::from(start);
            }
            self.rows.push(Row { row: i, request: row.request, len, start, fed: len, max });
        }
        let mut left = self.catch_up_tokens;
        for row in &mut self.rows {
            // Every row runs its newest token anyway. Only the tokens before it are caught up with.
            let lacks = row.len - 1 - row.start;
            if lacks > 1 {
                let taken = lacks.min(left);
                left -= taken;
                if taken < lacks {
                    (row.fed, row.max) = (row.start + taken, 0);
                    counts.rows_behind += 1;
                }
            }
            counts.catch_up_tokens += u64::from((row.fed.min(row.len - 1)).saturating_sub(row.start));
        }
        self.rows.retain(|row| row.fed > row.start);
        Ok(())
    }

    /// Runs the passes of the step.
    fn run(&mut self, step: &Proposing<'_>) -> Result<(), ExecuteError> {
        let Self { runner, passes, rows, .. } = self;
        passes.pieces.clear();
        for row in rows.iter() {
            let Row { request, start, fed, .. } = *row;
            passes.pieces.push(Piece { row: row.row, request, start, end: fed, drafts: row.max > 0 });
        }
        let mut depth = 0;
        while !passes.pieces.is_empty() {
            passes.run(runner, step)?;
            passes.pieces.clear();
            depth += 1;
            // A row without a draft of the depth before, because its logits were not numbers, gets no
            // further drafts.
            let goes_on = |row: &&Row| row.max > depth && passes.drafts[row.row].len() as u32 == depth;
            for row in rows.iter().filter(goes_on) {
                let start = row.fed + depth - 1;
                let piece = Piece { row: row.row, request: row.request, start, end: start + 1, drafts: true };
                passes.pieces.push(piece);
            }
        }
        Ok(())
    }

    fn write_record(&mut self, step: &Proposing<'_>) {
        let Some(log) = &self.passes.log else { return };
        log.write(self.rows.iter().map(|row| row.row), step.rows, &mut self.record);
    }
}

impl<D: Device> Proposer for DraftModel<D> {
    fn name(&self) -> &'static str {
        "draft"
    }

    /// With `keep`, drafts are drawn from the model's filtered distribution with noise of their own. This allocates one
    /// vocabulary of probabilities for each draft.
    fn keep_probabilities(&mut self, keep: bool) {
        self.passes.own_draws = keep;
    }

    fn set_enforce_eager(&mut self, yes: bool) {
        self.runner.set_enforce_eager(yes);
    }

    fn set_deterministic(&mut self, yes: bool) -> Result<(), ModelError> {
        self.runner.set_deterministic(yes)
    }

    fn interrupt_on(&mut self, flag: &Arc<AtomicBool>) {
        self.runner.device_mut().interrupt_on(Arc::clone(flag));
    }

    fn touch(&mut self) -> Result<(), ModelError> {
        self.runner.touch()
    }

    fn counts(&mut self) -> Option<&RunCounts> {
        Some(self.runner.counts())
    }

    fn reset_counts(&mut self) {
        self.runner.reset_counts();
        self.passes.counts = DraftCounts::default();
    }

    fn measure(&mut self, most: u32, budget: Duration) -> Result<CostCurve, ExecuteError> {
        measure(&mut self.runner, self.passes.block_size(), self.num_blocks, most, budget)
    }

    fn propose(&mut self, step: &Proposing<'_>, drafts: &mut Drafts) -> Result<(), ExecuteError> {
        self.unverified = false;
        self.rows.clear();
        if self.passes.own_draws {
            let rows = step.len().max(self.passes.distributions.len());
            self.passes.distributions.resize_with(rows, Vec::new);
            self.passes.distributions.iter_mut().for_each(Vec::clear);
        }
        self.passes.begin(step.len());
        self.open(step)?;
        self.run(step)?;
        for row in self.rows.iter().filter(|row| row.max > 0) {
            let tokens = &self.passes.drafts[row.row][..];
            if self.passes.own_draws {
                drafts.set_with_probabilities(row.row, tokens, &self.passes.distributions[row.row]);
            } else {
                drafts.set(row.row, tokens);
            }
        }
        self.write_record(step);
        self.unverified = true;
        Ok(())
    }

    fn verified(&mut self, verified: &mut Verified<'_>) {
        if !std::mem::take(&mut self.unverified) {
            return;
        }
        for row in &self.rows {
            let accepted = verified.accepted.get(row.row).copied().unwrap_or(0);
            // The KV of the last draft is never computed.
            let drawn = self.passes.drafts[row.row].len() as u32;
            let written = row.fed + drawn.saturating_sub(1);
            let plan_row = verified.rows.get(row.row).map_or(usize::MAX, |&row| row as usize);
            if let Some(took) = verified.took.row_mut(plan_row).get_mut(usize::from(self.group.0)) {
                *took = written.min(row.len + u32::from(accepted));
            }
        }
    }

    fn record(&self) -> Option<&GroupStep> {
        self.passes.log.as_ref().map(|_| &self.record)
    }

    fn keep_record(&mut self, keep: bool) {
        if !keep {
            self.passes.log = None;
        } else if self.passes.log.is_none() {
            self.passes.log = Some(PassLog::default());
        }
    }
}
