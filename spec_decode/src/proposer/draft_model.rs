//! Proposes drafts with a small model that runs ahead of the target.

use std::time::Duration;

use pagedraft_attention::MetadataBuilder;
use pagedraft_block_manager::{BlockId, BlockManager, BlockSize, GroupId, KvGroup, Salt};
use pagedraft_model::{Device, ModelError, RunCounts, Runner};
use pagedraft_scheduler::{CostCurve, RequestKey};

use super::draft_kv::DraftKv;
use super::draft_log::PassLog;
use super::draft_pass::{DraftCounts, Passes, Piece};
use super::{GroupStep, Proposer, ProposerError, Proposing, Verified};
use crate::calibrate::measure;
use crate::drafts::Drafts;
use crate::error::ExecuteError;

/// The options of a draft model.
#[derive(Clone, Copy, Debug)]
pub struct DraftOptions {
    /// The number of tokens in one of its KV blocks: 16, 32 or 64.
    pub block_size: u32,
    /// The number of blocks in its own KV pool. Its device must have as many.
    pub num_blocks: u32,
    /// The bytes of its KV for one token, all layers together.
    pub bytes_per_token: usize,
    /// Whether its KV has a prefix cache.
    pub prefix_caching: bool,
    /// The number of known tokens that all rows lagging by more than 2 may together catch up with in one step. The
    /// engine sets it to its `max_num_batched_tokens`.
    pub catch_up_tokens: usize,
    /// The size of the target's vocabulary.
    pub target_vocab: usize,
}

/// Proposes what a small model with the same vocabulary predicts, with a KV cache of its own.
///
/// # What it promises
///
/// - A draft is a function of the request's known tokens, its parameters, the draft model, the dtype and the
///   instruction set. The rest of the batch, the lag, prefix hits, chunks, the block size and graphs change none. With
///   coupled acceptance, a draft is the token that [`Sampler::choose`](crate::sampling::Sampler::choose) takes with the
///   request's own noise, so a good draft model makes the same choice as the target.
/// - A block of its KV is published only when all tokens in it were accepted ([`verified`](Proposer::verified)). A
///   rejected draft leaves nothing behind, and neither does a step that was never verified.
/// - It takes no blocks from others: a row for which its own pool has no room gets no drafts.
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
/// [`BlockManager`] for its blocks. A step allocates nothing of its own if its rows were there before, unless a block
/// table outgrows its buffer or distributions are kept.
pub struct DraftModel<D: Device> {
    runner: Runner<D>,
    kv: DraftKv,
    passes: Passes,
    catch_up_tokens: u32,
    rows: Vec<Row>,
    /// Whether the passes of the last step are done but its rows are not yet verified.
    unverified: bool,
    record: GroupStep,
    /// The blocks published since the step before.
    published: Vec<BlockId>,
}

/// A row of the step that the draft model runs.
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

impl Row {
    /// The number of tokens that have their KV after all passes. The last draft has none.
    fn written(&self) -> u32 {
        self.fed + self.max.saturating_sub(1)
    }
}

impl<D: Device> DraftModel<D> {
    /// Makes a proposer of a loaded draft model. If it shall use graphs, they must be captured on the runner
    /// ([`Runner::capture`]); in a steady state it asks for query lengths 1 and 2.
    ///
    /// # Errors
    ///
    /// The vocabulary differs from the target's, there are no kernels for the block size, the pool has no blocks, or
    /// the catch-up budget is 0.
    pub fn new(runner: Runner<D>, options: DraftOptions) -> Result<Self, ProposerError> {
        let config = runner.config();
        if config.vocab_size != options.target_vocab {
            return Err(ProposerError::Vocab { draft: config.vocab_size, target: options.target_vocab });
        }
        if options.catch_up_tokens == 0 {
            return Err(ProposerError::CatchUp);
        }
        let group = KvGroup {
            id: GroupId(0),
            name: "draft".to_owned(),
            layers: 0..u16::try_from(config.num_layers).unwrap_or(u16::MAX),
            bytes_per_token: options.bytes_per_token,
            salt: Salt::NONE,
            // It is the only group of its pool, so there is no other that it could lag behind.
            lags: false,
        };
        let size = BlockSize::new(options.block_size)?;
        Ok(Self {
            kv: DraftKv::new(size, options.num_blocks, group, options.prefix_caching)?,
            passes: Passes::new(MetadataBuilder::new(options.block_size)?),
            runner,
            catch_up_tokens: u32::try_from(options.catch_up_tokens).unwrap_or(u32::MAX),
            rows: Vec::new(),
            unverified: false,
            record: GroupStep::default(),
            published: Vec::new(),
        })
    }

    /// The draft model.
    pub fn runner(&mut self) -> &mut Runner<D> {
        &mut self.runner
    }

    /// The blocks of its KV.
    #[must_use]
    pub fn blocks(&self) -> &BlockManager {
        self.kv.blocks()
    }

    /// The counts of what it did since it was made.
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
            let held = self.kv.table(row.request).len();
            let Some(start) = self.kv.open(row.request, row.tokens, len + max - 1)? else {
                counts.rows_without_room += 1;
                continue;
            };
            counts.hit_tokens += if held == 0 { u64::from(start) } else { 0 };
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
        let Self { runner, kv, passes, rows, .. } = self;
        passes.pieces.clear();
        for row in rows.iter() {
            let Row { request, start, fed, .. } = *row;
            kv.push(request, &step.kv.tokens(request)[start as usize..fed as usize]);
            passes.pieces.push(Piece { row: row.row, request, start, end: fed, drafts: row.max > 0 });
        }
        let mut depth = 0;
        while !passes.pieces.is_empty() {
            passes.run(runner, kv, step)?;
            passes.pieces.clear();
            depth += 1;
            for row in rows.iter().filter(|row| row.max > depth) {
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
        let stats = self.kv.blocks().stats();
        (self.record.num_blocks, self.record.used) = (stats.num_blocks, stats.used);
        self.record.published.clear();
        self.record.published.append(&mut self.published);
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
        let blocks = self.kv.blocks();
        let (size, num_blocks) = (blocks.block_size().get(), blocks.stats().num_blocks);
        measure(&mut self.runner, size, num_blocks, most, budget)
    }

    fn propose(&mut self, step: &Proposing<'_>, drafts: &mut Drafts) -> Result<(), ExecuteError> {
        self.unverified = false;
        self.rows.clear();
        if self.passes.own_draws {
            let rows = step.len().max(self.passes.distributions.len());
            self.passes.distributions.resize_with(rows, Vec::new);
            self.passes.distributions.iter_mut().for_each(Vec::clear);
        }
        if let Some(log) = &mut self.passes.log {
            log.begin(step.len());
        }
        self.open(step)?;
        self.run(step)?;
        for row in self.rows.iter().filter(|row| row.max > 0) {
            let tokens = &self.kv.tokens(row.request)[row.len as usize..];
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

    fn verified(&mut self, verified: &Verified<'_>) {
        if !std::mem::take(&mut self.unverified) {
            return;
        }
        for i in 0..self.rows.len() {
            let row = self.rows[i];
            let accepted = verified.accepted.get(row.row).copied().unwrap_or(0);
            let upto = row.written().min(row.len + u32::from(accepted));
            match self.kv.commit(row.request, upto) {
                Ok(sealed) if self.passes.log.is_some() => {
                    let blocks = &self.kv.table(row.request)[sealed.start as usize..sealed.end as usize];
                    let pool = self.kv.blocks().pool();
                    self.published.extend(blocks.iter().filter(|&&id| pool.is_published(id)));
                }
                Ok(_) => {}
                Err(error) => {
                    // This can't fail, because its slots were reserved and its tokens only grew. If it did, the request
                    // begins anew without its KV.
                    debug_assert!(false, "{error}");
                    self.forget(row.request);
                }
            }
        }
    }

    fn forget(&mut self, request: RequestKey) {
        let freed = self.kv.forget(request);
        debug_assert!(freed.is_ok(), "{freed:?}");
    }

    fn record(&self) -> Option<&GroupStep> {
        self.passes.log.as_ref().map(|_| &self.record)
    }

    fn keep_record(&mut self, keep: bool) {
        if !keep {
            self.passes.log = None;
            self.published.clear();
        } else if self.passes.log.is_none() {
            self.passes.log = Some(PassLog::default());
        }
    }
}
