use pagedraft_block_manager::{BlockId, BlockManager, GroupId, PoolStats, Slab};
use serde::Serialize;

use crate::queues::{Running, Visit, Waiting};
use crate::request::Request;
use crate::{
    ConfigError, DraftControl, FinishReason, KvView, Phase, Policy, RequestInfo, RequestKey, RequestSpec,
    SchedulerConfig, StepId, StepTimes, SubmitError,
};

/// How much there is to do, and where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Admitted requests.
    pub running: usize,
    /// Requests that wait to be admitted, or admitted again.
    pub waiting: usize,
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
    pub(crate) blocks: BlockManager,
    pub(crate) requests: Slab<Request>,
    pub(crate) running: Running,
    pub(crate) waiting: Waiting,
    /// The plan whose outcome is awaited.
    pub(crate) flight: Flight,
    /// The running requests as the step being planned visits them.
    pub(crate) visit: Visit,
    /// Ended since the last call of `step`, still readable.
    pub(crate) ended: Vec<RequestKey>,
    /// Ended, to be reported by the next plan that has rows.
    pub(crate) finished: Vec<RequestKey>,
    pub(crate) next_step: u64,
    /// Chooses draft lengths; without, each is `num_speculative_tokens`.
    pub(crate) control: Option<DraftControl>,
    arrivals: u64,
}

/// What `apply` has to know of the plan in flight.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    pub(crate) step: Option<StepId>,
    pub(crate) rows: Vec<FlightRow>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct FlightRow {
    pub(crate) request: RequestKey,
    pub(crate) start: u32,
    pub(crate) end: u32,
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
        let blocks = BlockManager::new(
            block_size,
            config.num_blocks,
            config.groups.clone(),
            config.enable_prefix_caching,
        )?;
        Ok(Self {
            config,
            blocks,
            requests: Slab::default(),
            running: Running::default(),
            waiting: Waiting::default(),
            flight: Flight::default(),
            visit: Visit::default(),
            ended: Vec::new(),
            finished: Vec::new(),
            next_step: 0,
            control: None,
            arrivals: 0,
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
        let max_len = prompt_len
            .saturating_add(spec.max_tokens)
            .min(self.config.max_model_len)
            // The last token of a request is never computed and needs no slot.
            .min(self.blocks.capacity().saturating_add(1));
        let key = RequestKey(self.requests.insert(Request {
            phase: Phase::Waiting,
            sequence: self.blocks.open(spec.salt),
            tokens: spec.prompt,
            prompt_len,
            computed: 0,
            max_len,
            stop_token_ids: spec.stop_token_ids,
            priority: spec.priority,
            arrival: self.arrivals,
            salt: spec.salt,
            reads_cache: spec.reads_cache,
            fork_of: spec.fork_of,
            admitted: None,
            num_cached: 0,
            num_preemptions: 0,
        }));
        self.arrivals += 1;
        let (ended, requests) = (self.ended.len(), self.requests.len());
        self.ended.reserve(requests.saturating_sub(ended));
        self.enqueue(key, false);
        Ok(key)
    }

    /// Ends a request at any moment, also between [`step`](Self::step) and [`apply`](Self::apply): its row's outcome
    /// is then dropped, and its blocks are given back by that `apply`. `false` when it had ended before.
    pub fn abort(&mut self, key: RequestKey) -> bool {
        let Some(request) = self.requests.get_mut(key.0) else {
            return false;
        };
        match request.phase {
            Phase::Ended(_) => return false,
            Phase::Waiting => self.waiting.remove(key),
            Phase::Running => self.running.remove(key),
        }
        request.phase = Phase::Ended(FinishReason::Abort);
        self.ended.push(key);
        let in_flight = self.flight.rows.iter().any(|row| row.request == key);
        if !in_flight {
            let freed = self.blocks.free(request.sequence);
            debug_assert!(freed.is_ok(), "an aborted request freed twice: {freed:?}");
        }
        true
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
        Stats { running: self.running.len(), waiting: self.waiting.len(), pool: self.blocks.stats() }
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
    pub(crate) fn preempt(&mut self, key: RequestKey) {
        self.running.remove(key);
        if let Some(request) = self.requests.get_mut(key.0) {
            request.computed = 0;
            request.num_preemptions += 1;
            let cleared = self.blocks.clear(request.sequence);
            debug_assert!(cleared.is_ok(), "a running request without sequence: {cleared:?}");
        }
        if let Some(control) = &mut self.control {
            control.preempted(key);
        }
        self.enqueue(key, true);
    }

    /// Whether [`submit`](Self::submit) would take a request; the length of its prompt.
    ///
    /// # Errors
    ///
    /// Those of `submit`.
    pub fn check(&self, spec: &RequestSpec) -> Result<u32, SubmitError> {
        let prompt_len = spec.prompt.len();
        let SchedulerConfig { max_model_len, max_num_batched_tokens, num_blocks, .. } = self.config;
        if spec.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if spec.max_tokens == 0 {
            return Err(SubmitError::NoTokens);
        }
        if prompt_len >= max_model_len as usize {
            return Err(SubmitError::LongerThanModel { prompt_len, max_model_len });
        }
        let capacity = self.blocks.capacity();
        if prompt_len > capacity as usize {
            return Err(SubmitError::LargerThanPool { prompt_len, num_blocks, capacity });
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
}

impl KvView for Scheduler {
    fn tokens(&self, request: RequestKey) -> &[u32] {
        self.requests.get(request.0).map_or(&[], |request| &request.tokens)
    }

    fn block_table(&self, request: RequestKey, group: GroupId) -> &[BlockId] {
        self.requests.get(request.0).map_or(&[], |r| self.blocks.block_table(r.sequence, group))
    }

    fn block_size(&self) -> u32 {
        self.blocks.block_size().get()
    }
}
