//! The canary runs a replayed graph again now and then, operation by operation, and compares the results.
//!
//! A graph that does not compute what its step asks for can go unnoticed: it still gives tokens, only fewer drafts are
//! accepted (in one run of another engine, 0.343 of them instead of 0.490). The executor asks [`Canary::due`] whether
//! to shadow a replayed step, runs it again eagerly, and hands both results to [`Canary::observe`].
//!
//! There are two detectors. *Exact* is for devices on which replay and eager execution agree bit by bit, as all devices
//! of this engine do in its deterministic mode: one token, count or logit that differs is an alarm, and there are no
//! false alarms. *Drift* is for devices whose bits may differ: it compares row by row how many drafts each way accepts,
//! and raises an alarm when one way accepts more too often to be chance.
//!
//! # The test of drift
//!
//! It is a paired sign test whose result may be looked at after every step. Rows on which both ways accept the same
//! number say nothing. If nothing is wrong, each other row is "fewer" or "more" with equal probability, whatever came
//! before. A bettor who stakes a fixed fraction of his wealth on one of the two, at even odds each time, then has a
//! wealth that is a martingale, and it ever grows to c times its start with probability 1 / c at most (Ville 1939).
//! There are six bettors with different fractions. At each shadowed step, a bettor who has lost begins anew with a
//! wealth of 1. The alarm is at c = 6 * 10^8, so by the union bound the probability of a false alarm in 100,000 steps
//! is below 1/1000, at any rate. This uses no approximation, but it needs rows that are fair coins: a disturbance that
//! pushes all rows of a step the same way breaks it. Rows are counted, not drafts, because the drafts of one row fall
//! together.
//!
//! An alarm needs 32 rows on which the graph accepts less (if there is none on which it accepts more). At a rate of
//! 0.05 that would take too long, so in this mode a wealth of 100 makes every step due until it grows to an alarm or is
//! lost. The bound still holds, since the choice of steps may depend on what was seen. Measured at a rate of 0.05 with
//! 8 rows of 2 drafts, of which one decision in 100 was disturbed either way: when a third of what eager execution
//! accepts is rejected, 99 of 100 alarms come within 245 steps at an acceptance of 0.5, 152 steps at 0.6 and 107 at
//! 0.8. A healthy engine shadows up to 3 % more steps than the rate says, and not one of 600,000 raised an alarm
//! (`canary/tests.rs`).

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
    /// The request.
    pub request: RequestKey,
    /// The index of its row in the plan.
    pub plan_row: u32,
    /// The number of drafts it had, which may be 0.
    pub drafts: u16,
    /// The number of those drafts that were accepted from the graph's logits.
    pub accepted_graph: u16,
    /// The number of those drafts that were accepted from the shadow's logits.
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
    /// The number of steps that were shadowed.
    pub shadow_steps: u64,
    /// The number of shadowed steps at which an alarm was raised.
    pub alarms: u64,
    /// The first step at which an alarm was raised.
    pub first_alarm_step: Option<u64>,
    /// The number of drafts in shadowed steps.
    pub drafted: u64,
    /// The number of those drafts that were accepted from the graph's logits.
    pub accepted_graph: u64,
    /// The number of those drafts that were accepted from the shadow's logits.
    pub accepted_eager: u64,
}

/// A replayed graph and its eager shadow do not agree.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CanaryAlarm {
    /// They differ although their bits must be equal.
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
        /// What differs: tokens, accepted drafts or logits.
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
        /// The step at which the evidence sufficed.
        step: u64,
        /// The first step whose rows count.
        since: u64,
        /// The row that completed the evidence.
        row: ShadowRow,
        /// The number of rows on which the graph accepted fewer drafts.
        fewer: u32,
        /// The number of rows on which the graph accepted more drafts.
        more: u32,
        /// From each step that the counting may begin at, a healthy engine gets here with probability 1 / odds at most.
        odds: f64,
    },
}

impl Canary {
    /// A canary that shadows this share of steps, from 0 for never to 1 for always. A number outside counts as the
    /// nearer bound, and NaN as 0. It begins with the exact detector.
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

    /// Sets whether every difference is an alarm, as after [`new`](Self::new), or only drift.
    #[must_use]
    pub fn exact(mut self, exact: bool) -> Self {
        self.exact = exact;
        self
    }

    /// Whether to shadow this step. In exact mode this is a function of the rate, the seed and the step's number. In drift
    /// mode, a suspicion makes every step due as well. Of each run of 1 / rate numbers exactly one is due, at a place that
    /// depends on the seed, so at least one of 2 / rate numbers in a row is due. Only the steps that can be shadowed, which
    /// are the replayed ones, should be numbered: if some numbers never come, the share is kept only on average.
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

    /// The first alarm that was raised.
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
