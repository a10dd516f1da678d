use pagedraft_block_manager::{PrefixHit, SequenceId};

use crate::error::of;
use crate::piece::ByGroup;
use crate::segments::Budget;
use crate::{Error, Phase, PlanRow, RequestKey, Scheduler, StepPlan};

/// What became of a waiting request's turn.
enum Turn {
    Admitted,
    /// It has to wait for its parent; those behind it may go first.
    NotReady,
    /// No room in the pool or the budget; nobody behind it goes first.
    NoRoom,
}

impl Scheduler {
    #[inline(never)]
    pub(crate) fn plan_waiting(&mut self, plan: &mut StepPlan, budget: &mut Budget) -> Result<(), Error> {
        self.deferred = 0;
        while budget.least() > 0 && self.running.len() < self.config.max_num_seqs as usize {
            let Some(key) = self.waiting.get(self.deferred) else {
                return Ok(());
            };
            match self.turn(key, plan, budget)? {
                Turn::Admitted => self.waiting.remove_at(self.deferred),
                Turn::NotReady => self.deferred += 1,
                Turn::NoRoom => return Ok(()),
            }
        }
        Ok(())
    }

    fn turn(&mut self, key: RequestKey, plan: &mut StepPlan, budget: &mut Budget) -> Result<Turn, Error> {
        let Some(request) = self.requests.get(key.0) else {
            return Err(Error::NoSuchRequest { request: key });
        };
        let parent = request.fork_of.and_then(|parent| self.requests.get(parent.0));
        match parent.map(|parent| (parent, parent.phase)) {
            // The KV of a prompt that drops tokens is shared through the cache, once all of it is there.
            Some((parent, Phase::Running)) if parent.is_thinning() => Ok(Turn::NotReady),
            Some((_, Phase::Running)) if request.shares_kept => self.admit(key, plan, budget),
            Some((parent, Phase::Running)) => {
                let ready =
                    parent.computed + 1 >= request.prompt_len && parent.admitted != Some(self.next_step);
                if ready { self.admit_fork(key, parent.sequence, plan, budget) } else { Ok(Turn::NotReady) }
            }
            Some((parent, Phase::Waiting)) if parent.num_preemptions == 0 => Ok(Turn::NotReady),
            _ => self.admit(key, plan, budget),
        }
    }

    fn admit(&mut self, key: RequestKey, plan: &mut StepPlan, budget: &mut Budget) -> Result<Turn, Error> {
        let Some(request) = self.requests.get(key.0) else {
            return Err(Error::NoSuchRequest { request: key });
        };
        let (len, sequence) = (request.len(), request.sequence);
        // Whoever drops prompt tokens has other KV behind a cut than those who keep them.
        let hit = if request.reads_cache && (request.keeps_all() || request.shares_kept) {
            self.blocks.lookup(sequence, &request.tokens, len - 1).map_err(of(key))?
        } else {
            PrefixHit::default()
        };
        let whole = !self.config.enable_chunked_prefill && len <= self.config.max_num_batched_tokens;
        if whole && len - hit.tokens > budget.least() {
            return Ok(Turn::NoRoom);
        }
        // The whole known sequence has to fit, though only the first piece is taken: who is admitted to fail
        // halfway has wasted the work.
        let mut need = ByGroup::default();
        let need = &mut need[..self.segments.num_groups()];
        self.need_of_all(request, hit.tokens, need);
        if !self.blocks.fits(sequence, &request.tokens, &hit, need).map_err(of(key))? {
            return Ok(Turn::NoRoom);
        }
        if request.canvas.is_some() && self.piece(request, budget, 0).is_empty() {
            return Ok(Turn::NoRoom);
        }
        self.blocks.prepare(sequence, request.max_len).map_err(of(key))?;
        self.blocks.take_hit(sequence, &request.tokens, &hit).map_err(of(key))?;
        self.seat(key, hit.tokens, plan, budget)
    }

    fn admit_fork(
        &mut self,
        key: RequestKey,
        parent: SequenceId,
        plan: &mut StepPlan,
        budget: &mut Budget,
    ) -> Result<Turn, Error> {
        let Some(request) = self.requests.get(key.0) else {
            return Err(Error::NoSuchRequest { request: key });
        };
        let (sequence, shared) = (request.sequence, request.prompt_len - 1);
        // Either the copy of a cut block or the block after a whole one: one in each group of the target.
        let mut one = ByGroup::default();
        let one = &mut one[..self.segments.num_groups()];
        self.need_of_all(request, shared, one);
        one.iter_mut().for_each(|blocks| *blocks = (*blocks).min(1));
        if !self.blocks.has_room(one) {
            return Ok(Turn::NoRoom);
        }
        self.blocks.prepare(sequence, request.max_len).map_err(of(key))?;
        match self.blocks.fork(parent, sequence, shared, &mut plan.copies) {
            Ok(Some(())) => self.seat(key, shared, plan, budget),
            Ok(None) => Ok(Turn::NoRoom),
            // The parent has gone on so far that it gave back blocks the fork would see: it begins on its own.
            Err(pagedraft_block_manager::Error::BehindWindow { .. }) => self.admit(key, plan, budget),
            Err(error) => Err(of(key)(error)),
        }
    }

    /// Makes a waiting request that has the KV of its first `computed` tokens a running one, with its first row.
    fn seat(
        &mut self,
        key: RequestKey,
        computed: u32,
        plan: &mut StepPlan,
        budget: &mut Budget,
    ) -> Result<Turn, Error> {
        let step = self.next_step;
        let Some(request) = self.requests.get_mut(key.0) else {
            return Err(Error::NoSuchRequest { request: key });
        };
        if request.admitted.is_none() {
            request.num_cached = computed;
        }
        request.admitted = Some(step);
        request.fork_of = None;
        request.phase = Phase::Running;
        request.computed = computed;
        let total = request.max_len as usize;
        request.tokens.reserve(total.saturating_sub(request.tokens.len()));
        let Some(request) = self.requests.get(key.0) else {
            return Err(Error::NoSuchRequest { request: key });
        };
        let piece = self.piece(request, budget, 0);
        let need = plan.needs.push();
        self.need(request, &piece, 0, need).map_err(of(key))?;
        if self.blocks.reserve(request.sequence, need).map_err(of(key))?.is_none() {
            return Err(Error::NoRoom { request: key });
        }
        piece.take_from(request, 0, budget);
        plan.rows.push(PlanRow {
            request: key,
            kind: Self::kind(request),
            samples: self.samples(request, &piece),
            thins: request.is_thinning(),
            tokens: piece.tokens,
            segments: piece.segments,
            drafts_max: 0,
        });
        self.running.push(key);
        let seats = self.running.len();
        self.running.reserve(seats);
        self.visit.reserve(seats, self.segments.num_groups());
        Ok(Turn::Admitted)
    }
}
