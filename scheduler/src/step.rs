use pagedraft_block_manager::{Error as BlockError, PrefixHit};

use crate::queues::{Behind, Visit};
use crate::request::Request;
use crate::scheduler::FlightRow;
use crate::{Kind, Phase, PlanRow, Policy, RequestKey, Scheduler, StepId, StepPlan};

/// What became of a waiting request's turn.
enum Turn {
    Admitted,
    /// It has to wait for its parent; those behind it may go first.
    NotReady,
    /// No room in the pool or the budget; nobody behind it goes first.
    NoRoom,
}

impl Scheduler {
    /// Writes the next plan. It has rows whenever there are unfinished requests.
    ///
    /// Running requests come first, in the order of their admission, each with a token at least, then waiting ones while budget, seats and blocks last, unless somebody was preempted.
    ///
    /// A step that is still in flight is given up first: the requests of its rows are preempted, so that whatever
    /// it may have written is computed again. That is how an engine goes on after a failed step.
    pub fn step(&mut self, plan: &mut StepPlan) {
        plan.rows.clear();
        plan.copies.clear();
        plan.preempted.clear();
        plan.finished.clear();
        plan.id = StepId(self.next_step);
        self.give_up_flight(plan);
        for key in self.ended.drain(..) {
            self.requests.remove(key.0);
            self.finished.push(key);
        }

        let mut budget = self.config.max_num_batched_tokens;
        let given_up = plan.preempted.len();
        self.decide_drafts();
        self.plan_running(plan, &mut budget);
        if plan.preempted.len() == given_up {
            self.plan_waiting(plan, &mut budget);
        }
        debug_assert!(!plan.rows.is_empty() || !self.has_unfinished(), "an empty plan with requests left");

        if plan.rows.is_empty() {
            return;
        }
        plan.finished.append(&mut self.finished);
        self.next_step += 1;
        self.flight.step = Some(plan.id);
        self.flight.rows.extend(plan.rows.iter().map(|row| FlightRow {
            request: row.request,
            start: row.tokens.start,
            end: row.tokens.end,
            drafts_max: row.drafts_max,
            samples: row.samples,
            decodes: matches!(row.kind, Kind::Decode | Kind::Verify),
        }));
    }

    fn give_up_flight(&mut self, plan: &mut StepPlan) {
        self.flight.step = None;
        // Last row first: each goes to the front of the queue, so that they keep their order.
        while let Some(row) = self.flight.rows.pop() {
            let Some(request) = self.requests.get(row.request.0) else {
                continue;
            };
            if matches!(request.phase, Phase::Ended(_)) {
                let freed = self.blocks.free(request.sequence);
                debug_assert!(freed.is_ok(), "an aborted request freed twice: {freed:?}");
            } else {
                self.preempt(row.request);
                plan.preempted.push(row.request);
            }
        }
    }

    fn plan_running(&mut self, plan: &mut StepPlan, budget: &mut u32) {
        let mut visit = std::mem::take(&mut self.visit);
        visit.begin(self.running.keys());
        if self.config.num_speculative_tokens > 0 {
            visit.count(|key| self.lacks(key));
        }
        while let Some(key) = visit.next() {
            let preempted_before = self.requests.get(key.0).is_none_or(|r| r.phase != Phase::Running);
            if preempted_before {
                continue;
            }
            debug_assert!(
                *budget > visit.behind().rows,
                "more requests were admitted than the budget serves"
            );
            if self.make_room(key, plan, budget, &mut visit) {
                self.plan_running_row(key, plan, budget, visit.behind());
            }
        }
        self.visit = visit;
    }

    /// Blocks that a running request lacks for its next row without drafts, whatever is left of the budget by then.
    fn lacks(&self, key: RequestKey) -> u32 {
        let Some(request) = self.requests.get(key.0) else {
            return 0;
        };
        let upto = request.computed + self.piece(request, self.config.max_num_batched_tokens);
        self.blocks.missing(request.sequence, upto).unwrap_or_default()
    }

    /// Reserves what the next row of a running request needs without drafts, preempting others if it must. `false`
    /// when the request itself was the one to go.
    fn make_room(
        &mut self,
        key: RequestKey,
        plan: &mut StepPlan,
        budget: &mut u32,
        visit: &mut Visit,
    ) -> bool {
        loop {
            let Some(request) = self.requests.get(key.0) else {
                return false;
            };
            let upto = request.computed + self.piece(request, budget.saturating_sub(visit.behind().rows));
            match self.blocks.reserve(request.sequence, upto) {
                Ok(Some(())) => return true,
                Ok(None) => {}
                Err(fault) => {
                    debug_assert!(false, "{fault}");
                    return false;
                }
            }
            let Some(victim) = self.victim() else {
                return false;
            };
            if let Some(row) = plan.rows.iter().position(|row| row.request == victim) {
                let row = plan.rows.remove(row);
                *budget += row.tokens.end - row.tokens.start + u32::from(row.drafts_max);
            } else {
                visit.leave(victim);
            }
            self.preempt(victim);
            plan.preempted.push(victim);
            if victim == key {
                return false;
            }
        }
    }

    fn plan_running_row(&mut self, key: RequestKey, plan: &mut StepPlan, budget: &mut u32, behind: Behind) {
        let Some(request) = self.requests.get(key.0) else {
            return;
        };
        let (start, len) = (request.computed, request.len());
        // A token for each of those behind.
        let mut left = budget.saturating_sub(behind.rows);
        let end = start + self.piece(request, left);
        left -= end - start;
        let mut drafts_max = 0;
        if self.config.num_speculative_tokens > 0 && request.is_decoding() {
            drafts_max = self.drafts(key, request, left, behind.blocks);
            let reserved = self.blocks.reserve(request.sequence, len + u32::from(drafts_max));
            debug_assert_eq!(reserved, Ok(Some(())), "the room was counted before");
            left -= u32::from(drafts_max);
        }
        *budget = left + behind.rows;
        let kind = match drafts_max {
            0 if request.is_decoding() => Kind::Decode,
            0 => Kind::Prefill,
            _ => Kind::Verify,
        };
        plan.rows.push(PlanRow { request: key, kind, tokens: start..end, drafts_max, samples: end == len });
    }

    /// Drafts a decode row may have. They never cost anyone a block: the rows behind still get those that they `lack`.
    fn drafts(&self, key: RequestKey, request: &Request, budget: u32, lack: u32) -> u16 {
        let len = request.len();
        let groups = self.blocks.groups().len() as u32;
        let spare = self.blocks.pool().num_free().saturating_sub(lack) / groups;
        let held = self.blocks.block_table(request.sequence, Default::default()).len() as u32;
        let room = (held + spare).saturating_mul(self.config.block_size);
        // One more token than drafts comes out of the row at most.
        let most = (request.max_len - len - 1).min(budget).min(room.saturating_sub(len));
        let wanted = self.control.as_ref().map_or(u16::MAX, |control| control.wanted(key));
        self.config.num_speculative_tokens.min(wanted).min(u16::try_from(most).unwrap_or(u16::MAX))
    }

    /// Known tokens that the next row of a request computes under what is left of the budget.
    fn piece(&self, request: &Request, budget: u32) -> u32 {
        let chunk = self.config.prefill_chunk.unwrap_or(u32::MAX);
        (request.len() - request.computed).min(budget).min(chunk)
    }

    /// Who loses its blocks next.
    fn victim(&self) -> Option<RequestKey> {
        let running = self.running.keys();
        match self.config.policy {
            Policy::Fcfs => running.last().copied(),
            Policy::Priority => {
                let rank = |key: &&RequestKey| self.requests.get(key.0).map(Request::rank);
                running.iter().max_by_key(rank).copied()
            }
        }
    }

    fn plan_waiting(&mut self, plan: &mut StepPlan, budget: &mut u32) {
        let mut at = 0;
        while *budget > 0 && self.running.len() < self.config.max_num_seqs as usize {
            let Some(key) = self.waiting.get(at) else {
                return;
            };
            match self.turn(key, plan, budget) {
                Ok(Turn::Admitted) => self.waiting.remove_at(at),
                Ok(Turn::NotReady) => at += 1,
                Ok(Turn::NoRoom) => return,
                Err(fault) => {
                    debug_assert!(false, "{fault}");
                    return;
                }
            }
        }
    }

    fn turn(&mut self, key: RequestKey, plan: &mut StepPlan, budget: &mut u32) -> Result<Turn, BlockError> {
        let Some(request) = self.requests.get(key.0) else {
            return Ok(Turn::NotReady);
        };
        let parent = request.fork_of.and_then(|parent| self.requests.get(parent.0));
        match parent.map(|parent| (parent, parent.phase)) {
            Some((parent, Phase::Running)) => {
                let ready =
                    parent.computed + 1 >= request.prompt_len && parent.admitted != Some(self.next_step);
                if ready { self.admit_fork(key, parent.sequence, plan, budget) } else { Ok(Turn::NotReady) }
            }
            Some((parent, Phase::Waiting)) if parent.num_preemptions == 0 => Ok(Turn::NotReady),
            _ => self.admit(key, plan, budget),
        }
    }

    fn admit(&mut self, key: RequestKey, plan: &mut StepPlan, budget: &mut u32) -> Result<Turn, BlockError> {
        let Some(request) = self.requests.get(key.0) else {
            return Ok(Turn::NotReady);
        };
        let (len, sequence) = (request.len(), request.sequence);
        let hit = if request.reads_cache {
            self.blocks.lookup(sequence, &request.tokens, len - 1)?
        } else {
            PrefixHit::default()
        };
        let whole = !self.config.enable_chunked_prefill && len <= self.config.max_num_batched_tokens;
        if whole && len - hit.tokens > *budget {
            return Ok(Turn::NoRoom);
        }
        // The whole known sequence has to fit, though only the first piece is taken: who is admitted to fail
        // halfway has wasted the work.
        let need = self.blocks.missing(sequence, len)? - hit.blocks + hit.free_blocks;
        if need > self.blocks.pool().num_free() {
            return Ok(Turn::NoRoom);
        }
        self.blocks.prepare(sequence, request.max_len)?;
        self.blocks.take_hit(sequence, &request.tokens, hit)?;
        self.seat(key, hit.tokens, plan, budget)
    }

    fn admit_fork(
        &mut self,
        key: RequestKey,
        parent: pagedraft_block_manager::SequenceId,
        plan: &mut StepPlan,
        budget: &mut u32,
    ) -> Result<Turn, BlockError> {
        let Some(request) = self.requests.get(key.0) else {
            return Ok(Turn::NotReady);
        };
        let (sequence, shared) = (request.sequence, request.prompt_len - 1);
        // Either the copy of a cut block or the block after a whole one: one in each group.
        if self.blocks.groups().len() as u32 > self.blocks.pool().num_free() {
            return Ok(Turn::NoRoom);
        }
        self.blocks.prepare(sequence, request.max_len)?;
        match self.blocks.fork(parent, sequence, shared, &mut plan.copies)? {
            Some(()) => self.seat(key, shared, plan, budget),
            None => Ok(Turn::NoRoom),
        }
    }

    /// Makes a waiting request that has the KV of its first `computed` tokens a running one, with its first row.
    fn seat(
        &mut self,
        key: RequestKey,
        computed: u32,
        plan: &mut StepPlan,
        budget: &mut u32,
    ) -> Result<Turn, BlockError> {
        let (step, chunk) = (self.next_step, self.config.prefill_chunk);
        let Some(request) = self.requests.get_mut(key.0) else {
            return Ok(Turn::NotReady);
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
        let len = request.len();
        let new = (len - computed).min(*budget).min(chunk.unwrap_or(u32::MAX));
        let end = computed + new;
        let reserved = self.blocks.reserve(request.sequence, end)?;
        debug_assert!(reserved.is_some(), "the room was counted before");
        *budget -= new;
        let kind = if request.is_decoding() { Kind::Decode } else { Kind::Prefill };
        plan.rows.push(PlanRow {
            request: key,
            kind,
            tokens: computed..end,
            drafts_max: 0,
            samples: end == len,
        });
        self.running.push(key);
        let seats = self.running.len();
        self.running.reserve(seats);
        self.visit.reserve(seats);
        Ok(Turn::Admitted)
    }
}
