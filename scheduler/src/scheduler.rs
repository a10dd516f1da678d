use std::num::NonZeroU32;

use pagedraft_block_manager::{
    BlockId, BlockManager, GroupId, KeptPrompt, KvIndex, KvJournal, Lengths, MAX_GROUPS, PoolStats, Slab,
};
use serde::Serialize;

use crate::error::of;
use crate::piece::{ByGroup, greatest_piece};
use crate::queues::{Running, Visit, Waiting};
use crate::request::{Request, Work};
use crate::role::Role;
use crate::segments::Segments;
use crate::{
    ConfigError, DraftControl, Error, FinishReason, KvView, Phase, Policy, RequestInfo, RequestKey,
    RequestSpec, SchedulerConfig, SlotCounts, StepId, StepTimes, SubmitError,
};

/// How much there is to do, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Admitted requests.
    pub running: usize,
    /// Requests that wait to be admitted, or admitted again.
    pub waiting: usize,
    /// How many of them had their turn in the last plan and could not use it: each waits for another sample of its prompt.
    pub deferred: usize,
    /// The KV pool.
    pub pool: PoolStats,
}

/// Decides who runs how many tokens in each step, and keeps the KV blocks of every request.
///
/// [`submit`](Self::submit) and [`abort`](Self::abort) at any moment; [`step`](Self::step) writes a plan, somebody
/// executes it, [`apply`](Self::apply) takes what came of it.
#[derive(Debug)]
pub struct Scheduler {
    pub(crate) config: SchedulerConfig,
    pub(crate) segments: Segments,
    pub(crate) blocks: BlockManager,
    pub(crate) requests: Slab<Request>,
    pub(crate) running: Running,
    pub(crate) waiting: Waiting,
    /// So many waiting requests, from the first one on, could not use their turn in the last plan.
    pub(crate) deferred: usize,
    /// The plan whose outcome is awaited.
    pub(crate) flight: Flight,
    /// The running requests as the step being planned visits them.
    pub(crate) visit: Visit,
    /// Ended since the last call of `step`, still readable.
    pub(crate) ended: Vec<RequestKey>,
    /// Ended, to be reported by the next plan that has rows.
    pub(crate) finished: Vec<RequestKey>,
    /// Preempted by a call of `step` that failed, to be reported by the next plan.
    pub(crate) preempted: Vec<RequestKey>,
    /// Requests whose KV was lost in the step that was applied last, to be preempted by the next one.
    pub(crate) lost: Vec<RequestKey>,
    /// Whether a running request had no row in the step before.
    pub(crate) any_starved: bool,
    /// Whether the proposer in use keeps KV in the group that lags.
    pub(crate) drafts_have_kv: bool,
    pub(crate) next_step: u64,
    /// Chooses draft lengths; without, each is `num_speculative_tokens`.
    pub(crate) control: Option<DraftControl>,
    arrivals: u64,
    /// The longest that a request which keeps all its tokens can get when it has the pool for itself.
    capacity: u32,
}

/// What `apply` has to know of the plan in flight.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    pub(crate) step: Option<StepId>,
    pub(crate) rows: Vec<FlightRow>,
    pub(crate) needs: SlotCounts,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct FlightRow {
    pub(crate) request: RequestKey,
    pub(crate) start: u32,
    pub(crate) end: u32,
    pub(crate) segments: (u16, u16),
    /// Positions of the block of a pass over a canvas.
    pub(crate) canvas: Option<NonZeroU32>,
    pub(crate) drafts_max: u16,
    pub(crate) samples: bool,
    pub(crate) decodes: bool,
}

impl Scheduler {
    /// A scheduler without requests, over an empty pool.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] names the setting under which nothing could run, or the block size, pool or KV groups that
    /// cannot be.
    pub fn new(config: SchedulerConfig) -> Result<Self, ConfigError> {
        let block_size = config.check()?;
        let segments = Segments::new(&config)?;
        let blocks = BlockManager::new(
            block_size,
            config.num_blocks,
            config.groups.clone(),
            config.enable_prefix_caching,
        )?;
        let capacity = blocks.capacity(greatest_piece(&config));
        Ok(Self {
            config,
            segments,
            blocks,
            requests: Slab::default(),
            running: Running::default(),
            waiting: Waiting::default(),
            deferred: 0,
            flight: Flight::default(),
            visit: Visit::default(),
            ended: Vec::new(),
            finished: Vec::new(),
            preempted: Vec::new(),
            lost: Vec::new(),
            any_starved: false,
            drafts_have_kv: false,
            next_step: 0,
            control: None,
            arrivals: 0,
            capacity,
        })
    }

    /// Queues a request.
    ///
    /// # Errors
    ///
    /// [`SubmitError`] when it could never be served: an empty prompt, no tokens to generate, a prompt that exceeds
    /// the model's length, the pool, or (chunked prefill off) a step's budget; a fork of another prompt.
    pub fn submit(&mut self, spec: RequestSpec) -> Result<RequestKey, SubmitError> {
        let prompt_len = self.check(&spec)?;
        let max_len = self.most_len(&spec, prompt_len);
        let parent = spec.fork_of.and_then(|parent| self.requests.get(parent.0));
        let shares_kept =
            spec.shares_kept.filter(|_| self.config.enable_prefix_caching && !spec.kept.is_empty());
        let shares = spec.canvas.is_none()
            && (spec.kept.is_empty() || (shares_kept.is_some() && spec.reads_cache))
            && parent.is_some_and(|parent| {
                parent.kept == spec.kept
                    && parent.shares_kept == shares_kept.is_some()
                    && parent.canvas.is_none()
            });
        let sequence = self.blocks.open(spec.salt);
        if let Some(shared) = shares_kept {
            let mut counts = [prompt_len; MAX_GROUPS];
            for (count, role) in counts.iter_mut().zip(self.segments.roles()) {
                if let Role::Kv(segment) = *role
                    && let Some(&kept) =
                        usize::from(segment).checked_sub(1).and_then(|cut| spec.kept.get(cut))
                {
                    *count = kept;
                }
            }
            let prompt = KeptPrompt { name: shared.name, len: prompt_len, counts, tail: shared.tail };
            // A sequence that was just opened is there, and has no blocks.
            let _ = self.blocks.keep_prompt(sequence, prompt);
        }
        let key = RequestKey(self.requests.insert(Request {
            work: Work::of(&spec),
            phase: Phase::Waiting,
            sequence,
            tokens: spec.prompt,
            prompt_len,
            computed: 0,
            max_len,
            most_drafts: spec.most_drafts,
            stop_token_ids: spec.stop_token_ids,
            priority: spec.priority,
            arrival: self.arrivals,
            salt: spec.salt,
            reads_cache: spec.reads_cache,
            shares_kept: shares_kept.is_some(),
            fork_of: spec.fork_of.filter(|_| shares),
            admitted: None,
            num_cached: 0,
            num_preemptions: 0,
            kept: spec.kept,
            segment: 0,
            passed: 0,
            canvas: spec.canvas,
            refresh: true,
            starved: false,
        }));
        self.arrivals += 1;
        let (ended, requests) = (self.ended.len(), self.requests.len());
        self.ended.reserve(requests.saturating_sub(ended));
        self.enqueue(key, false);
        Ok(key)
    }

    /// Ends a request at any moment, also between [`step`](Self::step) and [`apply`](Self::apply): its row's outcome
    /// is then dropped, and its blocks are given back by that `apply`. `false` when it had ended before.
    ///
    /// # Errors
    ///
    /// [`Error::Blocks`], a fault of the book-keeping: the request has ended all the same.
    pub fn abort(&mut self, key: RequestKey) -> Result<bool, Error> {
        let Some(request) = self.requests.get_mut(key.0) else {
            return Ok(false);
        };
        match request.phase {
            Phase::Ended(_) => return Ok(false),
            Phase::Waiting => self.waiting.remove(key),
            Phase::Running => self.running.remove(key),
        }
        request.phase = Phase::Ended(FinishReason::Abort);
        self.ended.push(key);
        let in_flight = self.flight.rows.iter().any(|row| row.request == key);
        if !in_flight {
            self.blocks.free(request.sequence).map_err(of(key))?;
        }
        Ok(true)
    }

    /// Numbers the next plan `step`, where that is further on: the steps skipped are those in which nothing would have
    /// run.
    pub fn skip_to(&mut self, step: StepId) {
        self.next_step = self.next_step.max(step.0);
    }

    /// Lets `control` choose the draft length of each row, up to `num_speculative_tokens`; `None` gives every decode row
    /// so many. Gives back the control that was there, with what it has learnt.
    pub fn set_draft_control(&mut self, control: Option<DraftControl>) -> Option<DraftControl> {
        let before = std::mem::replace(&mut self.control, control);
        if let Some(control) = &mut self.control {
            control.forget_requests();
        }
        before
    }

    /// The control that chooses draft lengths, if one does.
    #[must_use]
    pub fn draft_control(&self) -> Option<&DraftControl> {
        self.control.as_ref()
    }

    /// Sets how many drafts may follow the last token of a decode row, from the next step on.
    pub fn set_num_speculative_tokens(&mut self, drafts: u16) {
        self.config.num_speculative_tokens = drafts;
    }

    /// Says whether the proposer in use keeps KV of its own, in the group that lags: rows with drafts then reserve slots
    /// there. Without, nothing is reserved. To be changed while nothing runs.
    pub fn set_drafts_have_kv(&mut self, yes: bool) {
        self.drafts_have_kv = yes;
    }

    /// Whether the block manager notes what enters and leaves the prefix cache, for
    /// [`drain_journal`](Self::drain_journal).
    pub fn keep_journal(&mut self, yes: bool) {
        self.blocks.keep_journal(yes);
    }

    /// Moves what entered and left the prefix cache since the last call into `journal`, whose former contents go.
    pub fn drain_journal(&mut self, journal: &mut KvJournal) {
        self.blocks.drain_journal(journal);
    }

    /// Says what the step that was applied last took, so that draft lengths are priced by it. Without a control, or
    /// told a second time, nothing happens.
    pub fn observe(&mut self, times: &StepTimes) {
        if let Some(control) = &mut self.control {
            control.observe(times);
        }
    }

    /// Whether any request has not ended. While it is true, every plan has rows.
    #[must_use]
    pub fn has_unfinished(&self) -> bool {
        self.running.len() + self.waiting.len() > 0
    }

    /// How much there is to do, and where.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let (running, waiting) = (self.running.len(), self.waiting.len());
        Stats { running, waiting, deferred: self.deferred.min(waiting), pool: self.blocks.stats() }
    }

    /// A look at a request; `None` once a step was planned after its end.
    #[must_use]
    pub fn request(&self, key: RequestKey) -> Option<RequestInfo> {
        self.requests.get(key.0).map(Request::info)
    }

    /// What the scheduler was made from.
    #[must_use]
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// The KV blocks, to look at.
    #[must_use]
    pub fn blocks(&self) -> &BlockManager {
        &self.blocks
    }

    /// Tokens of context that a query behind `len` tokens reads, averaged over the model's layers: all of them, but for
    /// layers with a sliding window.
    #[inline]
    #[must_use]
    pub fn context_read(&self, len: u32) -> u32 {
        self.segments.shares().context(len)
    }

    /// The share of the model's work that a segment has.
    #[must_use]
    pub fn segment_share(&self, segment: u16) -> f64 {
        self.segments.shares().segment(segment)
    }

    /// Forgets every prefix in the cache; no running request is touched.
    pub fn clear_prefix_cache(&mut self) {
        self.blocks.clear_cache();
    }

    /// Puts a request in the waiting queue; a preempted one before all that were not.
    pub(crate) fn enqueue(&mut self, key: RequestKey, preempted: bool) {
        let Some(request) = self.requests.get_mut(key.0) else {
            return;
        };
        request.phase = Phase::Waiting;
        let rank = request.rank();
        match (self.config.policy, preempted) {
            (Policy::Fcfs, false) => self.waiting.push_back(key),
            (Policy::Fcfs, true) => self.waiting.push_front(key),
            (Policy::Priority, _) => {
                let requests = &self.requests;
                self.waiting
                    .insert(key, |other| requests.get(other.0).is_some_and(|other| other.rank() < rank));
            }
        }
    }

    /// Takes the blocks of a running request back and lets it wait.
    pub(crate) fn preempt(&mut self, key: RequestKey) -> Result<(), Error> {
        self.running.remove(key);
        let Some(request) = self.requests.get_mut(key.0) else {
            return Err(Error::NoSuchRequest { request: key });
        };
        request.restart();
        request.num_preemptions += 1;
        let cleared = self.blocks.clear(request.sequence);
        if let Some(control) = &mut self.control {
            control.preempted(key);
        }
        self.enqueue(key, true);
        cleared.map_err(of(key))
    }

    /// The length at which a request ends at the latest: the least of what it asks for, what the model has positions
    /// for, and what the pool can hold.
    fn most_len(&self, spec: &RequestSpec, prompt_len: u32) -> u32 {
        let asked = prompt_len.saturating_add(spec.max_tokens).min(self.config.max_model_len);
        if spec.canvas.is_some() {
            return asked;
        }
        if spec.kept.is_empty() {
            // The last token of a request is never computed and needs no slot.
            return asked.min(self.capacity().saturating_add(1));
        }
        // Behind each cut the output's tokens come on top of the prompt's that are kept.
        let (mut fits, mut too_long) = (prompt_len, asked + 1);
        while fits + 1 < too_long {
            let middle = fits + (too_long - fits) / 2;
            if self.arena_holds_thinned(&spec.kept, prompt_len, middle - 1) {
                fits = middle;
            } else {
                too_long = middle;
            }
        }
        fits
    }

    /// The longest that a request which keeps all its tokens can get when it has the pool for itself, in tokens whose
    /// KV is kept.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    /// Whether [`submit`](Self::submit) would take a request; the length of its prompt.
    ///
    /// # Errors
    ///
    /// Those of `submit`.
    pub fn check(&self, spec: &RequestSpec) -> Result<u32, SubmitError> {
        let prompt_len = spec.prompt.len();
        let SchedulerConfig { max_model_len, max_num_batched_tokens, num_blocks, .. } = self.config;
        let kept_wrong = |what| {
            let cuts = usize::from(self.segments.count()) - 1;
            Err(SubmitError::Kept { kept: spec.kept.clone(), prompt_len, cuts, what })
        };
        if spec.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if spec.max_tokens == 0 {
            return Err(SubmitError::NoTokens);
        }
        if prompt_len >= max_model_len as usize {
            return Err(SubmitError::LongerThanModel { prompt_len, max_model_len });
        }
        if let Some(canvas) = spec.canvas {
            self.check_canvas(spec, canvas)?;
        } else if spec.kept.is_empty() {
            let capacity = self.capacity();
            if prompt_len > capacity as usize {
                return Err(SubmitError::LargerThanPool { prompt_len, num_blocks, capacity });
            }
        } else {
            if spec.kept.len() + 1 != usize::from(self.segments.count()) {
                return kept_wrong("give one count for each cut");
            }
            let counts = std::iter::once(prompt_len as u32).chain(spec.kept.iter().copied());
            if counts.zip(&spec.kept).any(|(before, &kept)| kept > before || kept == 0) {
                return kept_wrong("each count is at least 1, and no more than the one before it");
            }
            let len = prompt_len as u32;
            if !self.arena_holds_thinned(&spec.kept, len, len) {
                let groups = self.segments.num_groups();
                let all = self.need_thinned(&spec.kept, len, len);
                let mut held = all;
                for (need, role) in held.iter_mut().zip(self.segments.roles()) {
                    *need = if matches!(role, Role::Hold(_)) { *need } else { 0 };
                }
                let page = self.blocks.arena().page_bytes() as u64;
                return Err(SubmitError::PrunedLargerThanPool {
                    prompt_len,
                    num_blocks,
                    pool: page * u64::from(self.blocks.arena().primary_pages()),
                    bytes: page * self.pages(&all[..groups]),
                    held: page * self.pages(&held[..groups]),
                    piece: self.greatest_piece(),
                });
            }
        }
        if !self.config.enable_chunked_prefill && prompt_len > max_num_batched_tokens as usize {
            return Err(SubmitError::LargerThanStep { prompt_len, max_num_batched_tokens });
        }
        if let Some(parent) = spec.fork_of
            && let Some(request) = self.requests.get(parent.0)
        {
            let prompt = request.tokens.get(..request.prompt_len as usize);
            if prompt != Some(&spec.prompt[..]) || request.salt != spec.salt {
                return Err(SubmitError::ForkDiffers { parent });
            }
        }
        Ok(prompt_len as u32)
    }

    /// Whether a canvas can be denoised at all: every pass over it is whole, and so is its place in the pool.
    fn check_canvas(&self, spec: &RequestSpec, canvas: crate::Canvas) -> Result<(), SubmitError> {
        let prompt_len = spec.prompt.len();
        let wrong =
            |what| Err(SubmitError::Canvas { len: canvas.len, block: canvas.block, prompt_len, what });
        if canvas.block == 0 || !canvas.len.is_multiple_of(canvas.block) {
            return wrong("has to be whole blocks; choose a length that is a multiple of the block");
        }
        if !spec.kept.is_empty() {
            return wrong("belongs to a request that drops prompt tokens as well; ask for one of the two");
        }
        if canvas.len != spec.max_tokens {
            return wrong("is not as long as max_tokens; they are the same number");
        }
        let all = prompt_len as u64 + u64::from(canvas.len);
        if all > u64::from(self.config.max_model_len) {
            return wrong("exceeds max_model_len; shorten one of them");
        }
        if all > u64::from(self.config.max_num_batched_tokens) {
            return wrong(
                "exceeds max_num_batched_tokens, and a full pass is computed in one step; raise it",
            );
        }
        if !self.spec_fits(prompt_len as u32 + canvas.len) {
            return wrong("exceeds the KV pool; raise num_blocks");
        }
        Ok(())
    }

    /// Whether an empty pool holds so many positions in every group that does not lag.
    fn spec_fits(&self, positions: u32) -> bool {
        let mut need = ByGroup::default();
        for (need, role) in need.iter_mut().zip(self.segments.roles()) {
            *need = if matches!(role, Role::Kv(_)) { positions } else { 0 };
        }
        self.arena_holds(&need[..self.segments.num_groups()])
    }

    /// Whether an empty pool holds a request that keeps `kept` of its prompt, once it has `len` tokens.
    fn arena_holds_thinned(&self, kept: &[u32], prompt_len: u32, len: u32) -> bool {
        self.arena_holds(&self.need_thinned(kept, prompt_len, len)[..self.segments.num_groups()])
    }

    /// The slots by group of a request that keeps `kept` of its prompt, once it has `len` tokens.
    fn need_thinned(&self, kept: &[u32], prompt_len: u32, len: u32) -> ByGroup {
        let piece = self.greatest_piece();
        let mut need = ByGroup::default();
        for (need, role) in need.iter_mut().zip(self.segments.roles()) {
            let reach = |segment: u16| {
                let prompt = usize::from(segment).checked_sub(1).and_then(|cut| kept.get(cut));
                prompt.map_or(len, |prompt| prompt + (len - prompt_len))
            };
            *need = match *role {
                Role::Kv(segment) => reach(segment),
                // A prompt longer than a step's budget waits behind its segment, a piece after the other.
                Role::Hold(segment) if reach(segment) > piece => reach(segment),
                _ => 0,
            };
        }
        need
    }
}

impl KvView for Scheduler {
    fn tokens(&self, request: RequestKey) -> &[u32] {
        self.requests.get(request.0).map_or(&[], |request| &request.tokens)
    }

    fn block_table(&self, request: RequestKey, group: GroupId) -> &[BlockId] {
        self.requests.get(request.0).map_or(&[], |r| self.blocks.block_table(r.sequence, group))
    }

    fn lengths(&self, request: RequestKey, group: GroupId) -> Lengths {
        let lengths = self.requests.get(request.0).and_then(|r| self.blocks.lengths(r.sequence, group).ok());
        lengths.unwrap_or_default()
    }

    fn index(&self, request: RequestKey, group: GroupId) -> KvIndex<'_> {
        self.requests.get(request.0).map_or(KvIndex::Position, |r| self.blocks.index(r.sequence, group))
    }

    fn num_groups(&self) -> usize {
        self.segments.num_groups()
    }

    fn block_size(&self) -> u32 {
        self.blocks.block_size().get()
    }
}
