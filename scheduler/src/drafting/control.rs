use pagedraft_block_manager::SideTable;

use super::acceptance::{Common, Learnt};
use super::live_costs::{LiveCosts, StepWork};
use super::probing::{Prices, ProbeStep, Probing};
use super::search::{Base, ProposalCosts, Search, Wake};
use crate::scheduler::FlightRow;
use crate::{DraftReport, RequestKey, RowOutcome, StepCosts, StepTimes};

/// The cost of waking a request (recomputing the draft KV it lags behind) is spread over at most this many steps.
const HORIZON: f64 = 256.0;
/// While fewer trials than this were seen, only a few requests are woken in one step.
const BEGINNER: f64 = 24.0;
/// Before a request is woken, its estimated acceptance is lowered by this many standard deviations for each step's
/// time that waking all running requests would take.
const DOUBT_PER_STEP: f64 = 0.5;
/// The least number of standard deviations by which it is lowered.
const DOUBT_MIN: f64 = 0.5;
/// The greatest number of standard deviations by which it is lowered, as long as there was no relapse.
const DOUBT_MAX: f64 = 2.0;
/// Giving drafts up within this many steps of taking them up is a relapse.
const RELAPSE_STEPS: u32 = 256;
/// At most this many relapses count.
const RELAPSES_MAX: f64 = 3.0;
/// The share of the relapses that is forgotten in each step.
const RELAPSES_FORGOTTEN: f64 = 1.0 / 4096.0;
/// Drafts must beat no drafts by this share of the throughput before they are taken up again.
const HYSTERESIS: f64 = 0.005;
/// A decision for no drafts holds for this many steps, as long as the same number of requests decode.
const REST: u32 = 8;

/// What the control knows of the drafts of one request.
#[derive(Clone, Copy, Debug, Default)]
struct History {
    /// The number of tokens whose KV the proposer has.
    drafted: u32,
    /// Drafts chosen for the request in the step decided last.
    wanted: u16,
    learnt: Learnt,
}

/// A request that may draft in the step being planned.
#[derive(Clone, Copy, Debug)]
struct Member {
    request: RequestKey,
    /// The cohort of the [`Search`] that it was counted in.
    cohort: u16,
    /// Whether the proposer must first catch up with it.
    wakes: bool,
}

/// Chooses the draft length of every request in every step, from the acceptance it has seen and what a step costs.
///
/// The choice maximises expected tokens over expected time. With acceptance `a` a request gives
/// `(1 - a^(k+1)) / (1 - a)` tokens from `k` drafts (Leviathan et al. 2023, equation 1). A step takes one forward of
/// the target over all rows, one forward of the proposer for each depth, and the time in which the proposer catches up
/// with requests it has not drafted for, spread over the steps such a request has left. Where drafts do not pay, the
/// length is 0 and a request is probed now and then, for 0.6 % of the time.
///
/// The choice depends only on what the control was told ([`Scheduler::apply`](crate::Scheduler::apply) and
/// [`Scheduler::observe`](crate::Scheduler::observe)). Acceptance is counted for each request, mixed with what all
/// requests showed, and forgotten slowly. A decision takes a few microseconds and allocates no heap memory.
#[derive(Clone, Debug)]
pub struct DraftControl {
    max: u16,
    /// Whether the proposer keeps KV of its own, so that it can lag behind a request.
    keeps_kv: bool,
    costs: LiveCosts,
    common: Common,
    /// What is known of each request.
    histories: SideTable<History>,
    members: Vec<Member>,
    search: Search,
    probing: Probing,
    base: Base,
    /// The number of running requests.
    running: f64,
    /// Microseconds that the most recently decided step would take without drafts.
    off_us: f64,
    work: StepWork,
    /// Whether drafts paid in the most recent decision.
    on: bool,
    /// The number of further steps for which the last decision holds.
    rest: u32,
    /// The number of steps since drafts were taken up.
    steps_on: u32,
    /// The number of recent relapses: see [`RELAPSE_STEPS`]. It decays with every step.
    relapses: f64,
    report: DraftReport,
}

impl DraftControl {
    /// A control that knows what a step costs and has seen no draft. It asks for `max` drafts a request at most.
    /// Numbers in `costs` that are negative or not finite count as 0.
    #[must_use]
    pub fn new(max: u16, costs: &StepCosts) -> Self {
        let live = LiveCosts::new(costs);
        Self {
            max,
            keeps_kv: costs.proposer_keeps_kv,
            search: Search::new(max, &live.target),
            costs: live,
            common: Common::default(),
            histories: SideTable::default(),
            members: Vec::new(),
            probing: Probing::default(),
            base: Base::default(),
            running: 0.0,
            off_us: 0.0,
            work: StepWork { drafting: vec![0; usize::from(max)], ..StepWork::default() },
            on: false,
            rest: 0,
            steps_on: 0,
            relapses: 0.0,
            report: DraftReport { chosen: vec![0; usize::from(max) + 1], ..DraftReport::default() },
        }
    }

    /// The greatest number of drafts that a request may be given.
    #[must_use]
    pub fn max(&self) -> u16 {
        self.max
    }

    /// What the control has decided and learnt so far.
    #[must_use]
    pub fn report(&self) -> DraftReport {
        DraftReport {
            acceptance: self.common.accepted.value(),
            target_scale: self.costs.target.scale(),
            draft_scale: self.costs.draft.scale(),
            overhead_us: self.costs.overhead_us,
            probes: self.probing.started(),
            ..self.report.clone()
        }
    }

    /// Forgets the requests, because their keys belong to another scheduler, and keeps what was learnt from them.
    pub(crate) fn forget_requests(&mut self) {
        self.rest = 0;
        self.histories.clear();
        self.probing.stop();
    }

    /// The request was preempted: it lost its KV blocks, and the proposer lost its KV of the request too.
    pub(crate) fn preempted(&mut self, key: RequestKey) {
        if let Some(history) = self.histories.get_mut(key) {
            history.drafted = 0;
        }
    }

    /// Chooses no drafts for any request in this step.
    pub(crate) fn stop(&mut self) {
        for history in self.histories.values_mut() {
            history.wanted = 0;
        }
    }

    /// Whether the last decision, which was for no drafts, holds in this step too. It does when nothing happened since
    /// from which the control could have learnt.
    pub(crate) fn rests(&mut self, running: usize) -> bool {
        if self.rest == 0 || self.members.len() != running || !self.probing.rest() {
            return false;
        }
        self.rest -= 1;
        self.relapses *= 1.0 - RELAPSES_FORGOTTEN;
        self.report.decisions += 1;
        self.report.chosen[0] += running as u64;
        true
    }

    /// Begins the decision for a step with `running` running requests.
    pub(crate) fn begin(&mut self, running: usize) {
        self.rest = 0;
        self.members.clear();
        self.members.reserve(running);
        self.search.clear();
        self.probing.begin();
        self.running = running as f64;
        self.base = Base { overhead_us: self.costs.overhead_us, ..Base::default() };
    }

    /// The step will have a prefill row with `rows` token rows.
    pub(crate) fn add_prefill(&mut self, rows: u32) {
        self.base.prefill_rows += rows;
    }

    /// The step will have a decode row. Its request is `len` tokens long, reads `context` tokens (averaged over the layers,
    /// since layers with a sliding window read less) and may become `left` tokens longer.
    pub(crate) fn add_decode(&mut self, key: RequestKey, len: u32, context: u32, left: u32) {
        self.base.decode_rows += 1;
        self.base.context += f64::from(context);
        let Some(claimed) = self.histories.claim(key) else {
            return;
        };
        let history = claimed.value;
        if claimed.is_left_over {
            *history = History::default();
        }
        history.wanted = 0;
        if left < 2 {
            return;
        }
        let mut estimate = history.learnt.estimate(self.common.estimate(), len);
        // A proposer that drafted in the last step lags by one token, the newest, or by two: the newest and the last
        // draft, which was accepted. Whatever lags further must be woken.
        let lag = if self.keeps_kv { len.saturating_sub(history.drafted) } else { 0 };
        let wakes = lag > 2;
        let tail_us = self.costs.draft.tail_us();
        if (wakes || !self.on) && self.common.seen >= BEGINNER {
            // Its draft KV lags behind, so the first draft must pay for recomputing it. We therefore lower its
            // acceptance estimate by the uncertainty.
            let steps = f64::from(lag) * tail_us * self.running / self.off_us.max(1e-9);
            let surer = 1.0 + self.relapses;
            let doubt = (DOUBT_PER_STEP * steps * surer).clamp(DOUBT_MIN, DOUBT_MAX * surer);
            estimate.accepted -= doubt * history.learnt.deviation(&self.common, estimate.accepted, len);
            estimate.accepted = estimate.accepted.max(0.0);
        }
        let horizon = (f64::from(left) * (1.0 - estimate.accepted)).clamp(1.0, HORIZON);
        let rows = if wakes { f64::from(lag - 1) / horizon } else { 0.0 };
        let cohort = self.search.add(estimate, context, Wake { rows, us: rows * tail_us });
        self.members.push(Member { request: key, cohort, wakes });
        self.probing.consider(key, lag, left);
    }

    /// Decides the draft lengths. `room` is the number of drafts that fit the token budget beside all rows.
    pub(crate) fn decide(&mut self, room: u32) {
        if self.members.is_empty() {
            return;
        }
        self.base.room = room;
        let per_step_us = self.costs.per_step_us();
        let costs = ProposalCosts {
            target: &self.costs.target,
            draft: &self.costs.draft,
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
                let wanted = self.search.take(member.cohort);
                wakes -= u32::from(member.wakes && wanted > 0);
                if let Some(history) = self.histories.get_mut(member.request) {
                    history.wanted = wanted;
                }
                drafts += u64::from(wanted);
            }
        }
        let (rows, off_us) = (f64::from(self.base.decode_rows), rates.off_us);
        let draft_us = |requests: u32, read: u32| {
            let rows_us = self.costs.target.us(rows + f64::from(requests)) - self.costs.target.us(rows);
            per_step_us + rows_us + self.costs.draft.us(f64::from(read))
        };
        let prices = Prices { off_us, rows: self.base.decode_rows, room, draft_us };
        let step = self.probing.step(self.on, &prices);
        if step != ProbeStep::None {
            if step == ProbeStep::Begins {
                self.common.doubt();
            }
            for key in self.probing.requests() {
                let Some(history) = self.histories.get_mut(key) else {
                    continue;
                };
                history.wanted = self.max.min(1);
                drafts += u64::from(history.wanted);
                if step == ProbeStep::Begins {
                    history.learnt.doubt();
                }
            }
        }
        if !self.on && step == ProbeStep::None {
            self.rest = REST;
        }
        self.record(drafts);
    }

    /// Takes drafts up or gives them up. Doing both in quick succession means that the decision was wrong, and the
    /// requests were woken for nothing: the control then has to be surer the next time.
    fn switch(&mut self, on: bool) {
        self.relapses *= 1.0 - RELAPSES_FORGOTTEN;
        if on {
            self.steps_on = if self.on { self.steps_on.saturating_add(1) } else { 0 };
        } else if self.on && self.steps_on < RELAPSE_STEPS {
            self.relapses = (self.relapses + 1.0).min(RELAPSES_MAX);
        } else if self.on {
            self.relapses = 0.0;
        }
        self.on = on;
    }

    fn record(&mut self, drafts: u64) {
        for member in &self.members {
            let wanted = self.histories.get(member.request).map_or(0, |history| history.wanted);
            if let Some(count) = self.report.chosen.get_mut(usize::from(wanted)) {
                *count += 1;
            }
        }
        self.report.decisions += 1;
        self.report.last_mean = drafts as f64 / self.members.len().max(1) as f64;
    }

    /// The number of drafts chosen for a request when it decoded last. Its row has fewer where KV blocks, the token
    /// budget or the request's length limit do not allow as many.
    #[must_use]
    pub fn wanted(&self, key: RequestKey) -> u16 {
        self.histories.get(key).map_or(0, |history| history.wanted)
    }

    /// Begins to learn from the rows of an applied step.
    pub(crate) fn begin_step(&mut self) {
        let mut drafting = std::mem::take(&mut self.work.drafting);
        if self.work.asked > 0 {
            drafting.fill(0);
        }
        self.work = StepWork { drafting, ..StepWork::default() };
    }

    /// Learns from one row of the applied step and what came of it. A query of the row read `context` tokens, averaged
    /// over the layers; its known tokens were worth `known` rows of the whole model.
    pub(crate) fn learn(&mut self, row: &FlightRow, context: u32, known: u32, result: &RowOutcome) {
        let new = row.end - row.start;
        let (given, accepted) = (result.num_drafts, result.num_accepted);
        let rows = new + u32::from(given);
        self.work.context += f64::from(rows) * f64::from(context);
        self.work.read += f64::from(context);
        self.work.rows += if row.decodes { rows } else { known };
        if !row.decodes {
            self.work.prefill_rows += known;
            return;
        }
        if row.drafts_max == 0 {
            return;
        }
        self.work.asked += 1;
        let key = row.request;
        let Some(history) = self.histories.get_mut(key) else {
            return;
        };
        self.common.learn(&mut history.learnt, row.end, row.drafts_max, given, accepted);
        self.probing.learn(key, given, accepted);
        if given == 0 {
            return;
        }
        for count in self.work.drafting.iter_mut().take(usize::from(given)) {
            *count += 1;
        }
        if self.keeps_kv {
            self.work.caught_up += row.end.saturating_sub(history.drafted + 1);
            // The proposer returned its last draft without computing that draft's KV.
            history.drafted = row.end + u32::from(accepted.min(given - 1));
        }
    }

    /// Corrects the costs by the measured times of the applied step.
    pub(crate) fn observe(&mut self, times: &StepTimes) {
        self.costs.observe(&self.work, times);
        // A step counts once, even if its times are told twice.
        self.work.rows = 0;
    }
}
