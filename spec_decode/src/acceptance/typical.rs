//! Typical acceptance (Cai et al. 2024, "Medusa", section 2.3.1; the constants and the shape are vLLM V0's).
//!
//! A draft d is accepted when p(d) > min(threshold, alpha * exp(-H)), where p is the target's distribution after
//! temperature and filters and H = -sum over x of p(x) ln(p(x) + 1e-5) is its entropy in nats. The less certain the
//! target is, the less probability a draft needs. The first rejected draft is replaced by the argmax of p. The output
//! follows neither p nor the proposer's distribution.

use super::finding::Finding;
use crate::sampling::series::{exp, ln};

/// Keeps the logarithm finite. The value is vLLM's.
const TINY: f64 = 1e-5;

/// Decides whether p(d) > min(threshold, alpha exp(-H)).
pub(super) fn judge(p: &[f64], draft: u32, threshold: f32, alpha: f32) -> Finding {
    let p_draft = p.get(draft as usize).copied().unwrap_or_default();
    // These two cases do not need the entropy, because the bound is at most the threshold and at least 0.
    if p_draft > f64::from(threshold) {
        return Finding::Stands;
    }
    if p_draft <= 0.0 {
        return Finding::Falls;
    }
    let bound = f64::from(alpha) * power(-entropy(p));
    Finding::stands_if(p_draft > bound)
}

/// The argmax of p. Among equals it is the lowest token id.
pub(super) fn correct(p: &[f64]) -> u32 {
    let mut best = (0, f64::NEG_INFINITY);
    for (token, &p) in (0..).zip(p) {
        if p > best.1 {
            best = (token, p);
        }
    }
    best.0
}

/// The entropy of p in nats. It may be -1e-5 if one token has probability 1.
fn entropy(p: &[f64]) -> f64 {
    let mut sum = 0.0;
    for &p in p {
        // A token that the filters removed adds nothing.
        if p > 0.0 {
            sum -= p * ln(p + TINY);
        }
    }
    sum
}

/// e^x for x up to slightly above 0, although the series is only defined for x up to 0.
fn power(x: f64) -> f64 {
    if x > 0.0 { 1.0 / exp(-x) } else { exp(x) }
}
