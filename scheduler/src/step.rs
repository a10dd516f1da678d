use std::num::NonZeroU32;

use crate::error::of;
use crate::piece::{ByGroup, Piece};
use crate::queues::Visit;
use crate::request::Request;
use crate::scheduler::FlightRow;
use crate::segments::Budget;
use crate::{Error, Kind, Phase, PlanRow, Policy, RequestKey, Scheduler, StepId, StepPlan};

impl Scheduler {
    /// Writes the next plan. It has rows whenever there are unfinished requests.
    ///
    /// Running requests come first, in the order of their admission, each with a token at least, then waiting ones
    /// while budget, seats and blocks last, unless somebody was preempted.
    ///
    /// A step that is still in flight is given up first: the requests of its rows are preempted, so that whatever
    /// it may have written is computed again. That is how an engine goes on after a failed step.
    ///
    /// # Errors
    ///
    /// [`Error::Blocks`], [`Error::NoRoom`] and [`Error::NoSuchRequest`], faults of the scheduler's own book-keeping,
    /// which name the request. No step is in flight then. What was told to nobody yet, who was preempted and who
    /// finished, is in `plan`, and the next plan has it as well.
    pub fn step(&mut self, plan: &mut StepPlan) -> Result<(), Error> {
        plan.begin(StepId(self.next_step), self.segments.num_groups());
        plan.preempted.append(&mut self.preempted);
        let planned = self.plan(plan);
        if planned.is_err() {
            // Nothing runs. Whoever was preempted here is told with the plan that does.
            plan.rows.clear();
            plan.copies.clear();
            self.preempted.extend_from_slice(&plan.preempted);
            return planned;
        }
        if plan.rows.is_empty() {
            return Ok(());
        }
        plan.finished.append(&mut self.finished);
        self.next_step += 1;
        self.flight.step = Some(plan.id);
        self.flight.rows.extend(plan.rows.iter().map(|row| FlightRow {
            request: row.request,
            start: row.tokens.start,
            end: row.tokens.end,
            segments: (row.segments.start, row.segments.end),
            canvas: match &row.kind {
                Kind::Denoise { block, .. } => NonZeroU32::new(block.end - block.start),
                _ => None,
            },
            drafts_max: row.drafts_max,
            samples: row.samples,
            decodes: matches!(row.kind, Kind::Decode | Kind::Verify),
        }));
        self.flight.needs.clone_from(&plan.needs);
        Ok(())
    }

    fn plan(&mut self, plan: &mut StepPlan) -> Result<(), Error> {
        self.give_up_flight(plan)?;
        self.preempt_lost(plan)?;
        for key in self.ended.drain(..) {
            self.requests.remove(key.0);
            self.finished.push(key);
        }
        let mut budget = Budget::new(self.config.max_num_batched_tokens, self.segments.count());
        let given_up = plan.preempted.len();
        self.decide_drafts();
        self.plan_running(plan, &mut budget)?;
        if plan.preempted.len() == given_up {
            self.plan_waiting(plan, &mut budget)?;
        }
        debug_assert!(!plan.rows.is_empty() || !self.has_unfinished(), "an empty plan with requests left");
        Ok(())
    }

    #[inline(never)]
    fn give_up_flight(&mut self, plan: &mut StepPlan) -> Result<(), Error> {
        self.flight.step = None;
        let mut fault = Ok(());
        // Last row first: each goes to the front of the queue, so that they keep their order.
        while let Some(row) = self.flight.rows.pop() {
            let Some(request) = self.requests.get(row.request.0) else {
                continue;
            };
            let done = if matches!(request.phase, Phase::Ended(_)) {
                self.blocks.free(request.sequence).map_err(of(row.request))
            } else {
                plan.preempted.push(row.request);
                self.preempt(row.request)
            };
            fault = fault.and(done);
        }
        fault
    }

    /// Preempts the requests whose KV was lost in the last step, last row first, so that they keep their order.
    fn preempt_lost(&mut self, plan: &mut StepPlan) -> Result<(), Error> {
        while let Some(key) = self.lost.pop() {
            if self.requests.get(key.0).is_some_and(|request| request.phase == Phase::Running) {
                plan.preempted.push(key);
                self.preempt(key)?;
            }
        }
        Ok(())
    }

    fn plan_running(&mut self, plan: &mut StepPlan, budget: &mut Budget) -> Result<(), Error> {
        let mut visit = std::mem::take(&mut self.visit);
        visit.begin(self.running.keys(), self.segments.num_groups());
        if std::mem::take(&mut self.any_starved) {
            visit.first(|key| self.requests.get(key.0).is_some_and(|request| request.starved));
        }
        let mut planned = if self.config.num_speculative_tokens > 0 {
            visit.count(|key| self.may_lack(key), |key, blocks| self.lacks(key, blocks))
        } else {
            Ok(())
        };
        while planned.is_ok()
            && let Some(key) = visit.next()
        {
            match self.plan_usual_row(key, plan, budget, &visit) {
                Some(drafts) if drafts > 0 && self.drafts_have_kv => {
                    let need = plan.needs.row_mut(plan.rows.len() - 1);
                    planned = self.reserve_draft_kv(key, drafts, need);
                }
                Some(_) => {}
                None => planned = self.plan_one(key, plan, budget, &mut visit),
            }
        }
        self.visit = visit;
        planned
    }

    #[inline(never)]
    fn plan_one(
        &mut self,
        key: RequestKey,
        plan: &mut StepPlan,
        budget: &mut Budget,
        visit: &mut Visit,
    ) -> Result<(), Error> {
        let preempted_before = self.requests.get(key.0).is_none_or(|r| r.phase != Phase::Running);
        if preempted_before {
            return Ok(());
        }
        match self.make_room(key, plan, budget, visit)? {
            Some(piece) => self.plan_running_row(key, piece, plan, budget, visit),
            None => Ok(()),
        }
    }

    /// Adds the blocks by group that a running request lacks for its next row without drafts, whatever is left of the
    /// budget by then.
    fn lacks(&self, key: RequestKey, blocks: &mut [u32]) -> Result<(), Error> {
        let Some(request) = self.requests.get(key.0) else {
            return Ok(());
        };
        let whole = Budget::new(self.config.max_num_batched_tokens, self.segments.count());
        let piece = self.piece(request, &whole, 0);
        let mut need = ByGroup::default();
        let need = &mut need[..blocks.len()];
        self.need(request, &piece, 0, need).map_err(of(key))?;
        self.blocks.missing(request.sequence, need, blocks).map_err(of(key))
    }

    /// Reserves what the next row of a running request needs without drafts, preempting others if it must. `None` when
    /// the request itself was the one to go, or when its row does not fit what is left of the budget.
    fn make_room(
        &mut self,
        key: RequestKey,
        plan: &mut StepPlan,
        budget: &mut Budget,
        visit: &mut Visit,
    ) -> Result<Option<Piece>, Error> {
        let groups = self.segments.num_groups();
        loop {
            let Some(request) = self.requests.get_mut(key.0) else {
                return Err(Error::NoSuchRequest { request: key });
            };
            request.starved = false;
            let Some(request) = self.requests.get(key.0) else {
                return Err(Error::NoSuchRequest { request: key });
            };
            let mut piece = self.piece(request, budget, visit.behind_rows());
            if piece.is_empty() && plan.rows.is_empty() {
                // A pass over a canvas is whole. The first row of a step may have the tokens of those behind it: else a
                // canvas might wait for ever.
                piece = self.piece(request, budget, 0);
            }
            if piece.is_empty() {
                if let Some(request) = self.requests.get_mut(key.0) {
                    request.starved = true;
                }
                self.any_starved = true;
                return Ok(None);
            }
            let mut need = ByGroup::default();
            let need = &mut need[..groups];
            self.need(request, &piece, 0, need).map_err(of(key))?;
            if self.blocks.reserve(request.sequence, need).map_err(of(key))?.is_some() {
                plan.needs.push().copy_from_slice(need);
                return Ok(Some(piece));
            }
            let Some(victim) = self.victim() else {
                return Err(Error::NoRoom { request: key });
            };
            if let Some(row) = plan.rows.iter().position(|row| row.request == victim) {
                plan.needs.remove(row);
                let row = plan.rows.remove(row);
                if let Some(request) = self.requests.get(victim.0) {
                    Piece::of(&row).give_back_to(request, u32::from(row.drafts_max), budget);
                }
            } else {
                visit.leave(victim);
            }
            plan.preempted.push(victim);
            self.preempt(victim)?;
            if victim == key {
                return Ok(None);
            }
        }
    }

    fn plan_running_row(
        &mut self,
        key: RequestKey,
        piece: Piece,
        plan: &mut StepPlan,
        budget: &mut Budget,
        visit: &Visit,
    ) -> Result<(), Error> {
        let Some(request) = self.requests.get(key.0) else {
            return Err(Error::NoSuchRequest { request: key });
        };
        piece.take_from(request, 0, budget);
        let mut drafts_max = 0;
        let row = plan.rows.len();
        if self.config.num_speculative_tokens > 0 && request.is_decoding() {
            // A token for each of those behind.
            let left = budget.least().saturating_sub(visit.behind_rows());
            drafts_max = self.drafts(key, request, &piece, left, visit.behind_blocks())?;
            if drafts_max > 0 {
                let need = plan.needs.row_mut(row);
                self.need(request, &piece, u32::from(drafts_max), need).map_err(of(key))?;
                let sequence = request.sequence;
                if self.blocks.reserve(sequence, need).map_err(of(key))?.is_none() {
                    return Err(Error::NoRoom { request: key });
                }
                (0..piece.segments.end).for_each(|segment| budget.take(segment, u32::from(drafts_max)));
                self.reserve_draft_kv(key, drafts_max, need)?;
            }
        }
        let Some(request) = self.requests.get(key.0) else {
            return Err(Error::NoSuchRequest { request: key });
        };
        let kind = if drafts_max > 0 { Kind::Verify } else { Self::kind(request) };
        let (samples, thins) = (self.samples(request, &piece), request.is_thinning());
        plan.rows.push(PlanRow {
            request: key,
            kind,
            tokens: piece.tokens,
            segments: piece.segments,
            thins,
            drafts_max,
            samples,
        });
        Ok(())
    }

    /// Drafts a decode row may have. They never cost anyone a block: the rows behind still get the blocks by group that
    /// they `lack`.
    fn drafts(
        &self,
        key: RequestKey,
        request: &Request,
        piece: &Piece,
        budget: u32,
        lack: &[u32],
    ) -> Result<u16, Error> {
        // One more token than drafts comes out of the row at most.
        let most = (request.most_emitted() - 1).min(budget);
        let wanted = self.control.as_ref().map_or(u16::MAX, |control| control.wanted(key));
        let most =
            self.config.num_speculative_tokens.min(wanted).min(u16::try_from(most).unwrap_or(u16::MAX));
        let fits = |drafts: u16| {
            let (mut need, mut blocks) = (ByGroup::default(), ByGroup::default());
            let (need, blocks) = (&mut need[..lack.len()], &mut blocks[..lack.len()]);
            self.need(request, piece, u32::from(drafts), need)?;
            self.blocks.missing(request.sequence, need, blocks)?;
            if blocks.iter().all(|&missing| missing == 0) {
                return Ok(true);
            }
            blocks.iter_mut().zip(lack).for_each(|(missing, lack)| *missing += lack);
            Ok(self.blocks.has_room(blocks))
        };
        // The greatest number that fits: nearly always all of them.
        let (mut fit, mut too_many) = (0, most + 1);
        let mut at = most;
        while fit + 1 < too_many {
            if fits(at).map_err(of(key))? {
                fit = at;
            } else {
                too_many = at;
            }
            at = fit + (too_many - fit) / 2;
        }
        Ok(fit)
    }

    /// Reserves room for the drafts of a row in the proposer's own KV, where it has some: a slot for every known token
    /// and every draft but the last, whose KV is never computed. Without room the row's need there is 0, and what the
    /// request held is given back: two requests that wait for each other's blocks would wait for ever.
    #[inline(never)]
    fn reserve_draft_kv(&mut self, key: RequestKey, drafts: u16, need: &mut [u32]) -> Result<(), Error> {
        let Some(group) = self.segments.lagging().filter(|_| self.drafts_have_kv) else {
            return Ok(());
        };
        let Some(request) = self.requests.get(key.0) else {
            return Err(Error::NoSuchRequest { request: key });
        };
        let (sequence, slots) = (request.sequence, request.len() + u32::from(drafts) - 1);
        if self.blocks.block_table(sequence, group).is_empty() && request.reads_cache {
            let limit = request.len() - 1;
            self.blocks.take_group_hit(sequence, group, &request.tokens, limit).map_err(of(key))?;
        }
        let slot = &mut need[usize::from(group.0)];
        if self.blocks.reserve_group(sequence, group, slots).map_err(of(key))?.is_some() {
            *slot = slots;
        } else {
            *slot = 0;
            self.blocks.clear_group(sequence, group).map_err(of(key))?;
        }
        Ok(())
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
}
