use crate::acceptance::{Common, Learnt};
use crate::draft_search::{Base, Proposing, Search};
use crate::live_curve::LiveCurve;
use crate::probing::{Prices, Probing, Step};
use crate::scheduler::FlightRow;
use crate::{DraftReport, RequestKey, RowOutcome, StepCosts, StepTimes};

/// Steps over which catching up with a request is written off, at most.
const HORIZON: f64 = 256.0;
/// Trials below which whoever has to be woken is woken a few at a time.
const BEGINNER: f64 = 24.0;
/// Standard deviations by which the acceptance of a request that has to be woken is taken to be worse, for each step's
/// time that waking all would take; at least and at most.
const DOUBT: (f64, f64, f64) = (0.5, 0.5, 2.0);
/// Steps within which giving drafts up is a relapse, how many count, and what of them is forgotten in a step.
const RELAPSE: (u32, f64, f64) = (256, 3.0, 1.0 / 4096.0);
/// By how much drafts have to beat none before they are taken up again.
const HYSTERESIS: f64 = 0.005;

/// Steps for which a decision for no drafts holds while the same number of requests decode and none drafts.
const REST: u32 = 8;

/// What is known of the request at a place.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    generation: u32,
    /// Tokens whose KV the proposer has.
    drafted: u32,
    wanted: u16,
    learnt: Learnt,
}

/// A request that may draft in the step being planned.
#[derive(Clone, Copy, Debug)]
struct Member {
    at: u32,
    group: u16,
    wakes: bool,
}

/// The work of the step that was applied last, as its costs see it.
#[derive(Clone, Debug, Default)]
struct Work {
    rows: u32,
    prefill_rows: u32,
    context: f64,
    /// Context tokens of all sequences, each counted once.
    read: f64,
    asked: u32,
    caught_up: u32,
    /// Requests that drafted, by depth.
    drafting: Vec<u32>,
}

/// Chooses the draft length of every request in every step, from the acceptance it has seen and what a step costs.
///
/// The choice maximises expected tokens over expected time. With acceptance `a` a request gives
/// `(1 - a^(k+1)) / (1 - a)` tokens from `k` drafts (Leviathan et al. 2023, equation 1). A step takes the target's
/// forward of all its rows, a forward of the proposer for each depth, and what the proposer has to catch up with,
/// written off over what is left of the request. Where drafts do not pay it is 0, and a request is probed now and
/// then, at a price of 0.6 % of the time.
///
/// It is a function of what it was told ([`Scheduler::apply`](crate::Scheduler::apply) and
/// [`Scheduler::observe`](crate::Scheduler::observe)) and of nothing else. Counts are per request, shrunk to what all
/// requests showed, and forgotten slowly. A decision takes a few microseconds and no heap allocation.
#[derive(Clone, Debug)]
pub struct DraftControl {
    max: u16,
    keeps_kv: bool,
    target: LiveCurve,
    draft: LiveCurve,
    per_step_us: f64,
    overhead_us: f64,
    common: Common,
    slots: Vec<Slot>,
    members: Vec<Member>,
    search: Search,
    probing: Probing,
    base: Base,
    /// Running requests.
    running: f64,
    /// Microseconds of the step decided last, without drafts.
    off_us: f64,
    work: Work,
    on: bool,
    /// Steps for which the last decision still holds.
    rest: u32,
    /// Steps since drafts were taken up.
    steps_on: u32,
    /// How often they were given up again soon, lately.
    relapses: f64,
    report: DraftReport,
}

impl DraftControl {
    /// A control that knows what a step costs and has seen no draft. It asks for `max` drafts a request at most.
    /// Numbers in `costs` that are negative or no numbers count as 0.
    #[must_use]
    pub fn new(max: u16, costs: &StepCosts) -> Self {
        let (target, draft) = (LiveCurve::new(&costs.target), LiveCurve::new(&costs.draft));
        let valid = |us: f64| if us.is_finite() { us.max(0.0) } else { 0.0 };
        Self {
            max,
            keeps_kv: costs.proposer_keeps_kv,
            search: Search::new(max, &target),
            target,
            draft,
            per_step_us: valid(costs.draft_per_step_us),
            overhead_us: valid(costs.overhead_us),
            common: Common::default(),
            slots: Vec::new(),
            members: Vec::new(),
            probing: Probing::default(),
            base: Base::default(),
            running: 0.0,
            off_us: 0.0,
            work: Work { drafting: vec![0; usize::from(max)], ..Work::default() },
            on: false,
            rest: 0,
            steps_on: 0,
            relapses: 0.0,
            report: DraftReport { chosen: vec![0; usize::from(max) + 1], ..DraftReport::default() },
        }
    }

    /// Drafts a request may be given at most.
    #[must_use]
    pub fn max(&self) -> u16 {
        self.max
    }

    /// What it has decided and learnt.
    #[must_use]
    pub fn report(&self) -> DraftReport {
        DraftReport {
            acceptance: self.common.accepted.value(),
            target_scale: self.target.scale(),
            draft_scale: self.draft.scale(),
            overhead_us: self.overhead_us,
            probes: self.probing.started(),
            ..self.report.clone()
        }
    }

    /// Forgets the requests, keeps what they taught: their keys are of another scheduler.
    pub(crate) fn forget_requests(&mut self) {
        self.rest = 0;
        self.slots.clear();
        self.probing.stop();
    }

    /// The request lost its blocks, and the proposer's with them.
    pub(crate) fn preempted(&mut self, key: RequestKey) {
        if let Some(slot) = self.slots.get_mut(key.index()) {
            slot.drafted = 0;
        }
    }

    /// No request drafts in this step.
    pub(crate) fn stop(&mut self) {
        for slot in &mut self.slots {
            slot.wanted = 0;
        }
    }

    /// Whether the last decision, for no drafts, holds in this step too: there was nothing to learn from since.
    pub(crate) fn rests(&mut self, running: usize) -> bool {
        if self.rest == 0 || self.members.len() != running || !self.probing.rest() {
            return false;
        }
        self.rest -= 1;
        self.relapses *= 1.0 - RELAPSE.2;
        self.report.decisions += 1;
        self.report.chosen[0] += running as u64;
        true
    }

    /// Begins a decision.
    pub(crate) fn begin(&mut self, running: usize) {
        self.rest = 0;
        self.members.clear();
        self.members.reserve(running);
        self.search.clear();
        self.probing.begin();
        self.running = running as f64;
        self.base = Base { overhead_us: self.overhead_us, ..Base::default() };
    }

    /// A row of the step that prefills.
    pub(crate) fn add_prefill(&mut self, rows: u32) {
        self.base.prefill_rows += rows;
    }

    /// A row of the step that decodes: its request is `len` tokens long and may become `left` longer.
    pub(crate) fn add_decode(&mut self, key: RequestKey, len: u32, left: u32) {
        self.base.decode_rows += 1;
        self.base.context += f64::from(len);
        let at = key.index();
        if self.slots.len() <= at {
            self.slots.resize(at + 1, Slot::default());
        }
        let slot = &mut self.slots[at];
        if slot.generation != key.generation() {
            *slot = Slot { generation: key.generation(), ..Slot::default() };
        }
        slot.wanted = 0;
        if left < 2 {
            return;
        }
        let mut estimate = slot.learnt.estimate(self.common.estimate(), len);
        // One token behind is its newest, two are that and a draft that was accepted last.
        let lag = if self.keeps_kv { len.saturating_sub(slot.drafted) } else { 0 };
        let wakes = lag > 2;
        if (wakes || !self.on) && self.common.seen >= BEGINNER {
            // To wake it is to buy: what is not known well is worth less.
            let steps = f64::from(lag) * self.draft.tail() * self.running / self.off_us.max(1e-9);
            let surer = 1.0 + self.relapses;
            let doubt = (DOUBT.0 * steps * surer).clamp(DOUBT.1, DOUBT.2 * surer);
            estimate.0 -= doubt * slot.learnt.deviation(&self.common, estimate.0, len);
            estimate.0 = estimate.0.max(0.0);
        }
        let horizon = (f64::from(left) * (1.0 - estimate.0)).clamp(1.0, HORIZON);
        let wake = if wakes { f64::from(lag - 1) / horizon } else { 0.0 };
        let group = self.search.add(estimate, len, (wake, wake * self.draft.tail()));
        self.members.push(Member { at: at as u32, group, wakes });
        self.probing.consider(key, lag, left);
    }

    /// Decides: `room` drafts fit the budget beside the rows.
    pub(crate) fn decide(&mut self, room: u32) {
        if self.members.is_empty() {
            return;
        }
        self.base.room = room;
        let per_step_us = self.per_step_us * self.draft.scale();
        let costs = Proposing {
            target: &self.target,
            draft: &self.draft,
            per_step_us,
            further: self.common.further(),
        };
        let rates = self.search.choose(&self.base, costs, if self.on { 0.0 } else { HYSTERESIS });
        self.switch(rates.best > rates.off);
        self.off_us = rates.off_us;
        let mut wakes =
            if self.common.seen < BEGINNER { (self.members.len() as u32 / 8).clamp(1, 8) } else { u32::MAX };
        let mut drafts = 0;
        if self.on {
            for member in &self.members {
                if member.wakes && wakes == 0 {
                    continue;
                }
                let wanted = self.search.take(member.group);
                wakes -= u32::from(member.wakes && wanted > 0);
                self.slots[member.at as usize].wanted = wanted;
                drafts += u64::from(wanted);
            }
        }
        let (rows, off_us) = (f64::from(self.base.decode_rows), rates.off_us);
        let draft_us = |requests: u32, read: u32| {
            let rows_us = self.target.us(rows + f64::from(requests)) - self.target.us(rows);
            per_step_us + rows_us + self.draft.us(f64::from(read))
        };
        let prices = Prices { off_us, rows: self.base.decode_rows, room, draft_us };
        let step = self.probing.step(self.on, &prices);
        if step != Step::None {
            if step == Step::Begins {
                self.common.doubt();
            }
            for key in self.probing.requests() {
                let Some(slot) = self.slots.get_mut(key.index()) else {
                    continue;
                };
                if slot.generation == key.generation() {
                    slot.wanted = self.max.min(1);
                    drafts += u64::from(slot.wanted);
                    if step == Step::Begins {
                        slot.learnt.doubt();
                    }
                }
            }
        }
        if !self.on && step == Step::None {
            self.rest = REST;
        }
        self.record(drafts);
    }

    /// Takes drafts up or gives them up. Who does both in quick succession was wrong, and paid for the waking: it has
    /// to be surer the next time.
    fn switch(&mut self, on: bool) {
        self.relapses *= 1.0 - RELAPSE.2;
        if on {
            self.steps_on = if self.on { self.steps_on.saturating_add(1) } else { 0 };
        } else if self.on && self.steps_on < RELAPSE.0 {
            self.relapses = (self.relapses + 1.0).min(RELAPSE.1);
        } else if self.on {
            self.relapses = 0.0;
        }
        self.on = on;
    }

    fn record(&mut self, drafts: u64) {
        for member in &self.members {
            let wanted = self.slots[member.at as usize].wanted;
            if let Some(count) = self.report.chosen.get_mut(usize::from(wanted)) {
                *count += 1;
            }
        }
        self.report.decisions += 1;
        self.report.last_mean = drafts as f64 / self.members.len().max(1) as f64;
    }

    /// Drafts chosen for a request when it decoded last; its row has fewer where blocks, budget or lengths end.
    #[must_use]
    pub fn wanted(&self, key: RequestKey) -> u16 {
        let slot = self.slots.get(key.index()).filter(|slot| slot.generation == key.generation());
        slot.map_or(0, |slot| slot.wanted)
    }

    /// Begins to learn from the rows of an applied step.
    pub(crate) fn begin_step(&mut self) {
        let mut drafting = std::mem::take(&mut self.work.drafting);
        if self.work.asked > 0 {
            drafting.fill(0);
        }
        self.work = Work { drafting, ..Work::default() };
    }

    /// A row of the applied step, and what it gave.
    pub(crate) fn learn(&mut self, row: &FlightRow, result: &RowOutcome) {
        let new = row.end - row.start;
        let (given, accepted) = (result.num_drafts, result.num_accepted);
        let rows = new + u32::from(given);
        self.work.context += f64::from(rows) * f64::from(row.end);
        self.work.read += f64::from(row.end);
        self.work.rows += rows;
        if !row.decodes {
            self.work.prefill_rows += new;
            return;
        }
        if row.drafts_max == 0 {
            return;
        }
        self.work.asked += 1;
        let key = row.request;
        let Some(slot) = self.slots.get_mut(key.index()).filter(|slot| slot.generation == key.generation())
        else {
            return;
        };
        self.common.learn(&mut slot.learnt, row.end, row.drafts_max, given, accepted);
        self.probing.learn(key, given, accepted);
        if given == 0 {
            return;
        }
        for count in self.work.drafting.iter_mut().take(usize::from(given)) {
            *count += 1;
        }
        if self.keeps_kv {
            self.work.caught_up += row.end.saturating_sub(slot.drafted + 1);
            // The last draft was given, not read.
            slot.drafted = row.end + u32::from(accepted.min(given - 1));
        }
    }

    /// Corrects the costs by what the applied step took.
    pub(crate) fn observe(&mut self, times: &StepTimes) {
        let Work { rows, prefill_rows, context, read, asked, caught_up, .. } = self.work;
        if rows == 0 || prefill_rows * 4 > rows {
            return;
        }
        let rows = f64::from(rows);
        let predicted =
            self.target.us(rows) + context * self.target.us_per_context() + read * self.target.us_per_read();
        self.target.observe(rows, predicted, times.execute_us);
        let first = if asked > 0 { self.work.drafting.first().copied().unwrap_or_default() } else { 0 };
        let has_model = self.draft.has_points();
        if asked > 0 && !has_model {
            follow(&mut self.per_step_us, times.propose_us);
        } else if first > 0 && caught_up <= 2 * first {
            let mut predicted =
                self.per_step_us * self.draft.scale() + self.draft.us(f64::from(first + caught_up));
            for &drafting in &self.work.drafting[1..] {
                predicted += self.draft.us(f64::from(drafting));
            }
            self.draft.observe(f64::from(first), predicted, times.propose_us);
        }
        follow(&mut self.overhead_us, times.total_us - times.execute_us - times.propose_us);
        self.work.rows = 0;
    }
}

/// Moves a fixed cost towards what was measured; an outlier counts as twice the cost.
fn follow(us: &mut f64, measured: f64) {
    if measured.is_finite() {
        let most = us.mul_add(2.0, 10.0);
        *us += 0.05 * (measured.clamp(0.0, most) - *us);
    }
}
