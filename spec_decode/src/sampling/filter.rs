//! Decides which tokens may be chosen: min-p, then top-k, then top-p.

use std::cmp::Ordering;

use super::params::SamplingParams;
use super::row::Row;
use super::series::{exp, ln};

/// A logit and its token. Better candidates come first, and among equal logits the lower token.
pub(super) type Candidate = (f32, u32);

pub(super) fn best_first(a: &Candidate, b: &Candidate) -> Ordering {
    let by_logit = b.0.partial_cmp(&a.0).unwrap_or(Ordering::Equal);
    by_logit.then(a.1.cmp(&b.1))
}

/// Finds the tokens that a request's filters keep. It holds only buffers, so that a steady state allocates nothing.
#[derive(Default)]
pub(super) struct Filter {
    candidates: Vec<Candidate>,
    edge: Vec<Candidate>,
    kept: Vec<u32>,
}

impl Filter {
    /// The kept tokens in ascending order, at least one. The parameters must be valid, with a temperature above 0. The
    /// time is linear in the vocabulary, since only the tokens around the edge of top-p are sorted.
    pub fn kept(&mut self, row: Row<'_>, params: &SamplingParams) -> &[u32] {
        let floor = min_p_floor(row, params);
        // No filter keeps a token whose logit is not finite.
        let passes = |logit: f32| logit > f32::NEG_INFINITY && f64::from(logit) >= floor;
        match params.top_k {
            Some(k) if (k as usize) < row.logits.len() => {
                top(&mut self.candidates, row.logits, k as usize, passes);
            }
            _ => {
                self.candidates.clear();
                let all = (0..).zip(row.logits).map(|(token, &logit)| (logit, token));
                self.candidates.extend(all.filter(|c| passes(c.0)));
            }
        }
        if params.top_p < 1.0 {
            self.top_p(row.max, params);
        }
        self.kept.clear();
        self.kept.extend(self.candidates.iter().map(|c| c.1));
        self.kept.sort_unstable();
        &self.kept
    }

    /// Keeps the fewest best candidates whose weights reach the share `top_p` of the total. The best candidate must be
    /// among them, and its logit is `max`.
    ///
    /// The weights are summed in buckets of nearby logits, and only the bucket in which the share is reached is sorted.
    fn top_p(&mut self, max: f32, params: &SamplingParams) {
        let scale = Below::new(max, params.temperature);
        let mut mass = [0u128; BUCKETS];
        let mut total = 0u128;
        for block in self.candidates.chunks(BLOCK) {
            // The weights of a whole block are computed first, because that loop vectorises.
            let mut weights = [0.0; BLOCK];
            for (weight, c) in weights.iter_mut().zip(block) {
                *weight = real_weight(scale.nats(c.0));
            }
            for (weight, c) in weights.iter().zip(block) {
                let weight = u128::from(*weight as u64);
                mass[scale.bucket(c.0)] += weight;
                total += weight;
            }
        }
        let target = f64::from(params.top_p) * total as f64;
        let mut sum = 0u128;
        let mut at = 0;
        for (number, &mass) in mass.iter().enumerate() {
            at = number;
            if (sum + mass) as f64 >= target {
                break;
            }
            sum += mass;
        }
        // The better buckets are kept whole, and this one in order until the share is reached.
        let edge = &mut self.edge;
        edge.clear();
        self.candidates.retain(|c| {
            let bucket = scale.bucket(c.0);
            if bucket == at {
                edge.push(*c);
            }
            bucket < at
        });
        edge.sort_unstable_by(best_first);
        for c in edge.iter() {
            if sum as f64 >= target && !self.candidates.is_empty() {
                break;
            }
            sum += u128::from(weight(scale.nats(c.0)));
            self.candidates.push(*c);
        }
    }
}

/// The least logit that min-p keeps. The condition p_i >= min_p * p_max is the same as (logit_i - max) / T >= ln min_p,
/// so no probability is needed.
fn min_p_floor(row: Row<'_>, params: &SamplingParams) -> f64 {
    if params.min_p <= 0.0 {
        return f64::NEG_INFINITY;
    }
    let max = f64::from(row.max);
    // Rounding must not remove the most likely token.
    (max + f64::from(params.temperature) * ln(f64::from(params.min_p))).min(max)
}

/// Collects the `k` best of the tokens that pass, in no particular order.
pub(super) fn top(candidates: &mut Vec<Candidate>, logits: &[f32], k: usize, passes: impl Fn(f32) -> bool) {
    candidates.clear();
    if k == 0 {
        return;
    }
    // We collect up to 2k candidates, then drop the worse half and from then on all that are no better than the worst
    // kept one. Among equals the earlier token is better, and it is there already.
    let room = k.saturating_mul(2).max(64);
    let mut bar = f32::NEG_INFINITY;
    for (token, &logit) in (0..).zip(logits) {
        if logit > bar && passes(logit) {
            candidates.push((logit, token));
            if candidates.len() == room {
                keep_best(candidates, k);
                bar = candidates.get(k - 1).map_or(bar, |c| c.0);
            }
        }
    }
    keep_best(candidates, k);
}

/// Keeps the `k` best candidates and puts the worst of them last.
fn keep_best(candidates: &mut Vec<Candidate>, k: usize) {
    if candidates.len() > k {
        candidates.select_nth_unstable_by(k - 1, best_first);
        candidates.truncate(k);
    }
}

/// A bucket of top-p is 1/32 of a nat wide.
const BUCKETS_A_NAT: f64 = 32.0;
/// The buckets cover 32 nats. Candidates further down weigh nothing (see `weight`).
const BUCKETS: usize = 1024;

/// The weights of this many candidates are computed together.
const BLOCK: usize = 64;

/// Tells how far below the best logit another one is, in nats at a temperature.
#[derive(Clone, Copy)]
pub(super) struct Below {
    max: f64,
    inverse_temperature: f64,
}

impl Below {
    pub fn new(max: f32, temperature: f32) -> Below {
        Below { max: f64::from(max), inverse_temperature: 1.0 / f64::from(temperature) }
    }

    pub fn nats(self, logit: f32) -> f64 {
        (self.max - f64::from(logit)) * self.inverse_temperature
    }

    fn bucket(self, logit: f32) -> usize {
        ((self.nats(logit) * BUCKETS_A_NAT) as usize).min(BUCKETS - 1)
    }
}

/// The weight of a token in top-p: e^-nats as a whole multiple of 2^-44. Sums of whole numbers are exact, so they do
/// not depend on the order.
pub(super) fn weight(nats: f64) -> u64 {
    real_weight(nats) as u64
}

fn real_weight(nats: f64) -> f64 {
    exp(-nats) * 17_592_186_044_416.0 + 0.5
}
