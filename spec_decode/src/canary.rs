//! A canary: now and then a replayed graph is run again operation by operation, and both must say the same.
//!
//! A graph that does not compute what its step asks for can go unnoticed: tokens come out, only fewer drafts are accepted
//! (in one run of another engine 0.343 of them instead of 0.490). The executor asks
//! [`Canary::due`] whether to shadow a replayed step, runs it again eagerly, and hands both to [`Canary::observe`].
//!
//! Two detectors. *Exact*, for devices on which replay and eager agree bit by bit (all of this engine in its deterministic
//! mode): one differing token, count or logit is an alarm, there are no false ones. *Drift*, for devices whose bits may
//! differ: compares how many drafts either way accepts, row by row, and raises an alarm when one of them accepts more too
//! often to be chance.
//!
//! # The test of drift
//!
//! A paired sign test that may be looked at after every step. Rows on which both accept as many say nothing. If nothing is
//! wrong, the others are "fewer" or "more" with equal chances, whatever came before, so a stake of which a fixed fraction
//! is bet on either, each time at even odds, is a martingale, and ever grows to c times itself with probability 1 / c at
//! most (Ville 1939). At each shadowed step, stakes that lost are put down afresh at 1, for six fractions; the alarm is at
//! c = 6 * 10^8, so that by the union bound a false alarm in 100,000 steps, at any rate, has a probability below 1/1000.
//! That takes no approximation, but it takes rows to be fair coins: a perturbation that pushes all rows of a step the same
//! way breaks it. Rows are counted and not drafts, because drafts of one row fall together.
//!
//! It takes 32 rows on which the graph accepts less (and none on which it accepts more) to raise an alarm, more than a rate
//! of 0.05 brings together in time. So in this mode a stake of 100 has every step due until it grew or went away: which
//! steps are looked at may depend on what was seen, the bound holds. Measured at a rate of 0.05,
//! 8 rows of 2 drafts, with one of 100 decisions disturbed either way: when a third of what eager accepts falls, 99 of 100
//! alarms come within 245 steps where it accepts a draft with probability 0.5, 152 at 0.6 and 107 at 0.8; a healthy engine
//! shadows up to 3 % more steps than the rate says, and not one of 600,000 raised an alarm (`canary/tests.rs`).

mod due;
mod sign_test;
#[cfg(test)]
mod tests;

use pagedraft_scheduler::RequestKey;
use serde::Serialize;

use due::Due;
use sign_test::SignTest;

/// A row of a step that was replayed and run again eagerly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShadowRow {
    /// Whose.
    pub request: RequestKey,
    /// Its row in the plan.
    pub plan_row: u32,
    /// Drafts it had; may be 0.
    pub drafts: u16,
    /// Of those, accepted from the graph's logits.
    pub accepted_graph: u16,
    /// Of those, accepted from the shadow's logits.
    pub accepted_eager: u16,
    /// Whether both emit the same tokens.
    pub tokens_equal: bool,
    /// Whether the logits of the row have the same bits.
    pub logits_equal: bool,
}

/// Compares replayed steps with their shadows.
#[derive(Clone, Debug)]
pub struct Canary {
    due: Due,
    exact: bool,
    drift: SignTest,
    report: CanaryReport,
    alarm: Option<CanaryAlarm>,
}

/// What a canary saw.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CanaryReport {
    /// Steps that were shadowed.
    pub shadow_steps: u64,
    /// Shadowed steps at which an alarm was raised.
    pub alarms: u64,
    /// The first of them.
    pub first_alarm_step: Option<u64>,
    /// Drafts of shadowed steps.
    pub drafted: u64,
    /// Of those, accepted from the graph's logits.
    pub accepted_graph: u64,
    /// Of those, accepted from the shadow's logits.
    pub accepted_eager: u64,
}

/// Graph and eager do not agree.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CanaryAlarm {
    /// A difference where there may be none.
    #[error(
        "step {step}, request {} (row {} of the plan): the replayed graph and its eager shadow differ in their {what}; \
         they accepted {} and {} of {} drafts. The graph does not compute what the step asks for: run with \
         --enforce-eager, and look at the key that the graph was captured for",
        row.request, row.plan_row, row.accepted_graph, row.accepted_eager, row.drafts
    )]
    Difference {
        /// The step.
        step: u64,
        /// Its first row that differs.
        row: ShadowRow,
        /// How: tokens, accepted drafts or logits.
        what: &'static str,
    },
    /// One of them accepts more drafts than chance allows.
    #[error(
        "step {step}, last seen at request {} (row {} of the plan): of the rows shadowed since step {since}, the replayed \
         graph accepted fewer drafts than its eager shadow in {fewer} and more in {more}; the \
         odds against chance are {odds:.0} to 1. Replayed graphs and eager steps draw from different distributions: run with --enforce-eager, and \
         look at the keys that graphs were captured for",
        row.request, row.plan_row
    )]
    Drift {
        /// The step at which it was too much.
        step: u64,
        /// The first step that counted.
        since: u64,
        /// The row that made it so.
        row: ShadowRow,
        /// Rows on which the graph accepted fewer drafts.
        fewer: u32,
        /// Rows on which it accepted more.
        more: u32,
        /// A healthy engine comes to this with probability 1 / odds at most, from each step that it is counted from.
        odds: f64,
    },
}

impl Canary {
    /// A canary that shadows this share of steps: 0 is never, 1 always; what lies outside, or is no number, is taken as
    /// the nearer of both, or as never. It begins with the exact detector.
    #[must_use]
    pub fn new(rate: f64, seed: u64) -> Self {
        Self {
            due: Due::new(rate, seed),
            drift: SignTest::new(),
            exact: true,
            report: CanaryReport::default(),
            alarm: None,
        }
    }

    /// Whether every difference is an alarm (as from [`new`](Self::new)), or only drift.
    #[must_use]
    pub fn exact(mut self, exact: bool) -> Self {
        self.exact = exact;
        self
    }

    /// Whether to shadow this step. In exact mode a function of rate, seed and number; in drift mode a suspicion makes every
    /// step due besides. Of each run of 1 / rate numbers exactly one is
    /// due, at a place that depends on the seed, so that of 2 / rate numbers in a row at least one is. Number the steps that
    /// can be shadowed (those replayed): if only some of all step numbers ever come, the share is kept only on average.
    #[must_use]
    pub fn due(&self, step_id: u64) -> bool {
        self.due.at(step_id) || (!self.exact && self.drift.suspects())
    }

    /// Takes in a shadowed step, and says whether it raised an alarm.
    pub fn observe(&mut self, step: u64, rows: &[ShadowRow]) -> bool {
        self.report.shadow_steps += 1;
        for row in rows {
            self.report.drafted += u64::from(row.drafts);
            self.report.accepted_graph += u64::from(row.accepted_graph);
            self.report.accepted_eager += u64::from(row.accepted_eager);
        }
        let found = if self.exact { difference(step, rows) } else { self.drift.observe(step, rows) };
        let Some(alarm) = found else { return false };
        self.report.alarms += 1;
        self.report.first_alarm_step.get_or_insert(step);
        self.alarm.get_or_insert(alarm);
        true
    }

    /// The first alarm.
    #[must_use]
    pub fn alarm(&self) -> Option<&CanaryAlarm> {
        self.alarm.as_ref()
    }

    /// What was seen so far.
    #[must_use]
    pub fn report(&self) -> &CanaryReport {
        &self.report
    }
}

fn difference(step: u64, rows: &[ShadowRow]) -> Option<CanaryAlarm> {
    let what = |row: &ShadowRow| match row {
        ShadowRow { tokens_equal: false, .. } => Some("tokens"),
        row if row.accepted_graph != row.accepted_eager => Some("accepted drafts"),
        ShadowRow { logits_equal: false, .. } => Some("logits"),
        _ => None,
    };
    rows.iter().find_map(|row| Some(CanaryAlarm::Difference { step, row: *row, what: what(row)? }))
}
