//! Speculative sampling by rejection (Leviathan, Kalman, Matias 2023, theorem 3.5; Chen et al. 2023).
//!
//! With p the target's distribution and q the proposer's, a draft d ~ q stands when u < p(d) / q(d), and in place of one
//! that falls comes x with probability max(p(x) - q(x), 0) / sum of max(p - q, 0). The token is then distributed as p:
//! min(p, q) comes from drafts, the rest of p from the residual. A draft without stated probabilities counts as certain
//! (q = 1 at d, 0 elsewhere): it stands with probability p(d), and the residual is p without d.
//!
//! u and the residual's draw are numbers of their own of (seed, sample, position), so that neither depends on what the
//! proposer drew with, even if that was the target's own noise.

use super::finding::Finding;
use crate::sampling::{Noise, Purpose, SamplingError};

/// Whether u < p(d) / q(d). A draft that its own proposer says is impossible falls.
pub(super) fn judge(
    p: &[f64],
    q: Option<&[f64]>,
    draft: u32,
    noise: Noise,
) -> Result<Finding, SamplingError> {
    let target = p.get(draft as usize).copied().unwrap_or_default();
    let stated = match q {
        Some(q) => checked(draft, q.get(draft as usize).copied().unwrap_or_default())?,
        None => 1.0,
    };
    let u = noise.uniform(Purpose::Acceptance, 0);
    Ok(Finding::stands_if(stated > 0.0 && u < target / stated))
}

/// A token of the residual, by the inverse of its cumulative sum in the order of the ids.
pub(super) fn correct(p: &[f64], q: Option<&[f64]>, draft: u32, noise: Noise) -> Result<u32, SamplingError> {
    let u = noise.uniform(Purpose::Residual, 0);
    let residual = match q {
        Some(q) => {
            for (token, &stated) in (0..).zip(q) {
                checked(token, stated)?;
            }
            draw(p.iter().zip(q).map(|(p, q)| (p - q).max(0.0)), u)
        }
        None => draw((0..).zip(p).map(|(token, &p)| if token == draft { 0.0 } else { p }), u),
    };
    // Only rounding leaves nothing of a residual whose draft fell: p and q are then one distribution.
    Ok(residual.or_else(|| draw(p.iter().copied(), u)).unwrap_or_default())
}

/// The first token at which the running sum of the weights passes `u` of their total; `None` if that is not above 0.
fn draw(weights: impl Iterator<Item = f64> + Clone, u: f64) -> Option<u32> {
    let goal = u * weights.clone().fold(0.0, |sum, weight| sum + weight);
    let mut sum = 0.0;
    // The sum passes the goal at a token of weight above 0 only.
    (0..).zip(weights).find_map(|(token, weight)| {
        sum += weight;
        (sum > goal).then_some(token)
    })
}

fn checked(token: u32, value: f64) -> Result<f64, SamplingError> {
    // Softmaxes taken in a lower precision overshoot a little.
    if (0.0..=1.0 + 1e-3).contains(&value) {
        return Ok(value);
    }
    Err(SamplingError::BadProbability { token, value })
}
