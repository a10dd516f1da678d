//! Fits a cost model to measured steps.

use std::collections::BTreeMap;

use pagedraft_scheduler::CostCurve;
use serde::{Deserialize, Serialize};

use super::least_squares::Measurements;
use super::{CostModel, DraftCost, Overhead, StepCost, StepShape};

/// The numbers of token rows that may become points of a curve.
const KNOTS: [u32; 24] = [
    1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144,
    8192,
];
/// A knot becomes a point only if at least this many steps lie between it and the point before.
const STEPS_OF_A_KNOT: usize = 5;
/// The costs of idleness are fitted only if at least this many steps followed idleness.
const AFTER_IDLE: usize = 10;
/// A step is attributed to another program if it took this many times as long as predicted, and at least
/// `NEIGHBOUR_US` microseconds longer.
const NEIGHBOUR: f64 = 2.5;
const NEIGHBOUR_US: f64 = 5_000.0;
/// An engine that took this many microseconds or more to wake had waited for another program to leave the
/// core.
const WOKE_US: f64 = 2_000.0;
/// One of this many runs of steps is held out.
const HELD_OUT: u64 = 4;

/// A step, and the time that its stages took.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MeasuredStep {
    /// The work that it had.
    #[serde(flatten)]
    pub shape: StepShape,
    /// The time that it took.
    pub took: StepCost,
    /// The microseconds from the arrival of its first request until the engine, which was idle, noticed it.
    pub woke_us: Option<f64>,
    /// The proposer, if one was asked for drafts.
    pub proposer: Option<String>,
    /// The run of steps that it belongs to. Neighbouring steps are alike, so whole runs are held out.
    pub run: u64,
}

/// How well a model predicts the times of steps that it was not fitted to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct FitQuality {
    /// The number of steps that it was fitted to.
    pub fitted_steps: usize,
    /// The number of steps that it was not fitted to (held out).
    pub held_out_steps: usize,
    /// The median of |predicted - measured| / measured over the held-out steps; `null` if there are none.
    pub median_error: Option<f64>,
    /// The 90th percentile of the same.
    pub p90_error: Option<f64>,
    /// The sum of the predicted times of the held-out steps, divided by the sum of the measured ones.
    pub sum_told_to_measured: Option<f64>,
}

/// A model and its quality.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CostFit {
    /// The model, without a name or acceptances.
    pub model: CostModel,
    /// The quality over all held-out steps.
    pub all: FitQuality,
    /// The quality over steps with prefill, over steps without, and over those with drafts of each
    /// proposer.
    pub parts: BTreeMap<String, FitQuality>,
}

/// Fits a model to measured steps. Each stage is fitted to its own times. `keeps_kv` says for each proposer
/// whether it has a model and KV of its own. If so its passes are priced, otherwise only its rows.
///
/// Residuals count as shares of a step's time, so that short steps matter as much as long ones. A first fit
/// finds what is typical, and ignores steps that lie far from it. A second fit finds the means, leaving out
/// steps that took so long that another program must have used the core. A curve's points never fall.
#[must_use]
pub fn fit(steps: &[MeasuredStep], keeps_kv: &BTreeMap<String, bool>) -> CostFit {
    // Runs are chosen by a hash, because a calibration measures kinds of steps in turn, and every fourth
    // run would be of the same kind.
    let is_held_out = |step: &&MeasuredStep| {
        let hash = step.run.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 32).is_multiple_of(HELD_OUT)
    };
    let fitted: Vec<&MeasuredStep> = steps.iter().filter(|step| !is_held_out(step)).collect();
    let held_out: Vec<&MeasuredStep> = steps.iter().filter(is_held_out).collect();
    let mut model = CostModel::default();
    fit_target(&fitted, &mut model);
    for (name, &keeps_kv) in keeps_kv {
        let of_it = fitted.iter().copied().filter(|step| step.proposer.as_deref() == Some(name));
        let of_it: Vec<&MeasuredStep> = of_it.filter(|step| !step.shape.draft_passes.is_empty()).collect();
        if !of_it.is_empty() {
            model.proposers.insert(name.clone(), fit_proposer(&of_it, keeps_kv, &model));
        }
    }
    let of = |part: &dyn Fn(&MeasuredStep) -> bool| {
        quality(
            &model,
            fitted.iter().filter(|s| part(s)).count(),
            held_out.iter().copied().filter(|s| part(s)),
        )
    };
    let mut parts = BTreeMap::new();
    parts.insert("prefill".to_owned(), of(&prefills));
    parts.insert("decode".to_owned(), of(&|step| !prefills(step) && step.proposer.is_none()));
    for name in model.proposers.keys() {
        parts.insert(name.clone(), of(&|step| !prefills(step) && step.proposer.as_ref() == Some(name)));
    }
    let all = of(&|_| true);
    CostFit { all, parts, model }
}

/// Whether the step computes prompts: it computes more rows than it samples from.
fn prefills(step: &MeasuredStep) -> bool {
    step.shape.token_rows > step.shape.logit_rows
}

fn quality<'a>(
    model: &CostModel,
    fitted_steps: usize,
    held_out: impl Iterator<Item = &'a MeasuredStep>,
) -> FitQuality {
    let (mut told, mut measured, mut errors) = (0.0, 0.0, Vec::new());
    for step in held_out {
        let proposer = step.proposer.as_ref().and_then(|name| model.proposers.get(name));
        let (says, took) = (model.step(&step.shape, proposer).total_us(), step.took.total_us());
        if took > 0.0 {
            told += says;
            measured += took;
            errors.push((says - took).abs() / took);
        }
    }
    errors.sort_by(f64::total_cmp);
    let percentile = |p| crate::latency::percentile(&errors, p);
    FitQuality {
        fitted_steps,
        held_out_steps: errors.len(),
        median_error: percentile(50.0),
        p90_error: percentile(90.0),
        sum_told_to_measured: (measured > 0.0).then(|| told / measured),
    }
}

fn fit_target(all: &[&MeasuredStep], model: &mut CostModel) {
    let (idle, steps): (Vec<&MeasuredStep>, Vec<&MeasuredStep>) =
        all.iter().partition(|step| step.shape.after_idle());
    let knots = Knots::new(steps.iter().map(|step| step.shape.rows_run()));
    let typical: Vec<f64> = steps.iter().map(|step| step.took.total_us()).collect();
    fit_stages(&steps, &typical, &knots, Measurements::fit, model);
    // What is typical is not the mean. A simulation adds times up, so the slow tail must count. The
    // residuals are scaled by the predicted time, because scaled by the measured one, slow steps would
    // count for little.
    let (own, scales): (Vec<&MeasuredStep>, Vec<f64>) = steps
        .iter()
        .filter(|step| !is_neighbours(step, model))
        .map(|step| (*step, told(step, model).total_us()))
        .unzip();
    fit_stages(&own, &scales, &knots, Measurements::mean, model);
    fit_idleness(&idle, model);
}

/// Fits each stage to its own times. Residuals count as shares of `scales`.
fn fit_stages(
    steps: &[&MeasuredStep],
    scales: &[f64],
    knots: &Knots,
    solve: fn(&Measurements) -> Vec<f64>,
    model: &mut CostModel,
) {
    let mut execute = Measurements::new(knots.len() + 8);
    let [mut metadata, mut sample, mut other] = [3, 2, 6].map(Measurements::new);
    for (step, &scale) in steps.iter().zip(scales) {
        let (shape, took) = (&step.shape, &step.took);
        let (rows, tokens) = (f64::from(shape.plan_rows), f64::from(shape.token_rows));
        let logit_rows = f64::from(shape.logit_rows);
        let more = [
            shape.context_reads as f64,
            shape.context_pairs as f64,
            f64::from(shape.metadata_rows),
            logit_rows,
            f64::from(u8::from(!shape.replayed)),
            f64::from(shape.rows_displacing()),
            shape.single_reads as f64,
            shape.prefill_pairs as f64,
        ];
        execute.push(knots.ramps([shape.rows_run()]).into_iter().chain(more), took.execute, scale);
        metadata.push([1.0, rows, tokens], took.metadata, scale);
        sample.push([1.0, logit_rows], took.sample, scale);
        let happens = [shape.prefills, shape.begun, shape.ended].map(f64::from);
        other.push([1.0, rows, tokens].into_iter().chain(happens), took.other + took.schedule, scale);
    }
    let found = solve(&execute);
    let (ramps, more) = found.split_at(knots.len());
    let at = |i: usize| more.get(i).copied().unwrap_or(0.0);
    model.target = CostCurve { points: knots.points(ramps), us_per_read: at(0), us_per_context: at(1) };
    model.us_per_metadata_row = at(2);
    model.us_per_logit_row = at(3);
    model.us_per_eager_step = at(4);
    model.us_per_row_before = at(5);
    model.us_per_single_read = at(6);
    model.us_per_prefill_pair = at(7);
    model.metadata = overhead(&solve(&metadata));
    let (sample, other) = (solve(&sample), solve(&other));
    let happens = |i: usize| other.get(3 + i).copied().unwrap_or(0.0);
    (model.us_per_prefill, model.us_per_begun, model.us_per_ended) = (happens(0), happens(1), happens(2));
    let other = overhead(&other);
    model.us_per_sampled_row = sample.get(1).copied().unwrap_or(0.0);
    model.us_per_step = other.us_per_step + sample.first().copied().unwrap_or(0.0);
    model.us_per_row = other.us_per_row;
    model.us_per_token = other.us_per_token;
}

/// Fits how much longer steps after idleness take, by their rows and by the length of the idleness: cores
/// and caches must wake up.
fn fit_idleness(idle: &[&MeasuredStep], model: &mut CostModel) {
    if idle.len() < AFTER_IDLE {
        return;
    }
    let woke: Vec<f64> = idle.iter().filter_map(|step| step.woke_us).filter(|us| *us < WOKE_US).collect();
    model.us_to_wake = woke.iter().sum::<f64>() / woke.len().max(1) as f64;
    let mut late = Measurements::new(4);
    for step in idle.iter().filter(|step| !is_neighbours(step, model)) {
        let told = told(step, model).total_us();
        late.push(step.shape.coldness(), step.took.total_us() - told, told);
    }
    let found = late.mean();
    let at = |i: usize| found.get(i).copied().unwrap_or(0.0);
    model.us_after_idle = at(0);
    model.us_per_row_after_idle = at(1);
    model.us_per_idle_s = at(2);
    model.us_per_row_and_idle_s = at(3);
}

/// The predicted times of a step. Proposing is left as measured, because it is predicted separately.
fn told(step: &MeasuredStep, model: &CostModel) -> StepCost {
    StepCost { propose: step.took.propose, ..model.step(&step.shape, None) }
}

/// Whether a step took so much longer than predicted that another program must have used the core.
fn is_neighbours(step: &MeasuredStep, model: &CostModel) -> bool {
    let (told, took) = (told(step, model).total_us(), step.took.total_us());
    took > NEIGHBOUR * told && took > told + NEIGHBOUR_US
}

fn overhead(found: &[f64]) -> Overhead {
    let at = |i: usize| found.get(i).copied().unwrap_or(0.0);
    Overhead { us_per_step: at(0), us_per_row: at(1), us_per_token: at(2) }
}

fn fit_proposer(steps: &[&MeasuredStep], keeps_kv: bool, model: &CostModel) -> DraftCost {
    let knots = if keeps_kv {
        Knots::new(steps.iter().flat_map(|step| passes(&step.shape)))
    } else {
        Knots::default()
    };
    let fitted = |steps: &[(&MeasuredStep, f64)], solve: fn(&Measurements) -> Vec<f64>| {
        let mut propose = Measurements::new(knots.len() + 4);
        for (step, scale) in steps {
            let shape = &step.shape;
            let drafted = shape.draft_passes.first().copied().unwrap_or(0);
            let (reads, pairs) = if keeps_kv { (shape.draft_reads, shape.draft_pairs) } else { (0, 0) };
            let more = [1.0, f64::from(drafted), reads as f64, pairs as f64];
            propose.push(knots.ramps(passes(shape)).into_iter().chain(more), step.took.propose, *scale);
        }
        let found = solve(&propose);
        let (ramps, more) = found.split_at(knots.len());
        let at = |i: usize| more.get(i).copied().unwrap_or(0.0);
        DraftCost {
            pass: CostCurve { points: knots.points(ramps), us_per_read: at(2), us_per_context: at(3) },
            us_per_step: at(0),
            us_per_row: at(1),
            keeps_kv,
        }
    };
    let typical: Vec<_> = steps.iter().map(|step| (*step, step.took.total_us())).collect();
    let typical = fitted(&typical, Measurements::fit);
    let own = steps.iter().filter(|step| {
        let (told, took) = (typical.us(&step.shape), step.took.propose);
        took <= NEIGHBOUR * told || took <= told + NEIGHBOUR_US
    });
    // Scaled by the predicted time, as in `fit_target`.
    let total = |step: &MeasuredStep| model.step(&step.shape, Some(&typical)).total_us();
    let own: Vec<_> = own.map(|step| (*step, total(step))).collect();
    fitted(&own, Measurements::mean)
}

/// The numbers of token rows of the proposer's passes in a step.
fn passes(shape: &StepShape) -> impl Iterator<Item = u32> {
    let first = shape.draft_passes.first().map(|&drafted| shape.draft_catch_up.max(drafted));
    first.into_iter().chain(shape.draft_passes.iter().skip(1).copied())
}

/// The points of a curve. The fit has one coefficient per rise from one point to the next, because rises
/// can't be negative.
#[derive(Clone, Debug, Default)]
struct Knots(Vec<u32>);

impl Knots {
    /// The points that these steps can distinguish: the fewest rows, and those knots that have enough steps
    /// since the point before.
    fn new(rows: impl Iterator<Item = u32>) -> Self {
        let mut rows: Vec<u32> = rows.collect();
        rows.sort_unstable();
        let (Some(&least), Some(&most)) = (rows.first(), rows.last()) else { return Self::default() };
        let mut knots = vec![least];
        let upto = |knot: u32| rows.partition_point(|&r| r <= knot);
        let mut before = upto(least);
        for knot in KNOTS.into_iter().filter(|knot| (least + 1..=most).contains(knot)) {
            if upto(knot) - before >= STEPS_OF_A_KNOT {
                knots.push(knot);
                before = upto(knot);
            }
        }
        // The last slope goes on beyond the last point, so steps there are covered.
        if knots.len() == 1 && most > least {
            knots.push(most);
        }
        Self(knots)
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    /// The share of each rise that passes with these rows pay, all passes together. The first entry is what
    /// any pass pays.
    fn ramps(&self, passes: impl IntoIterator<Item = u32>) -> Vec<f64> {
        let mut ramps = vec![0.0; self.0.len()];
        for rows in passes {
            let mut ramps = ramps.iter_mut();
            ramps.next().into_iter().for_each(|first| *first += 1.0);
            let last = self.0.len().saturating_sub(2);
            for (i, (pair, ramp)) in self.0.windows(2).zip(ramps).enumerate() {
                let [from, to] = pair else { continue };
                let share = (f64::from(rows) - f64::from(*from)) / (f64::from(*to) - f64::from(*from));
                *ramp += if i == last { share.max(0.0) } else { share.clamp(0.0, 1.0) };
            }
        }
        ramps
    }

    fn points(&self, rises: &[f64]) -> Vec<(u32, f64)> {
        let mut us = 0.0;
        let mut point = |(&rows, &rise): (&u32, &f64)| {
            us += rise;
            (rows, us)
        };
        self.0.iter().zip(rises).map(&mut point).collect()
    }
}

#[cfg(test)]
mod tests;
