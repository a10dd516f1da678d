//! Speculative sampling by rejection (Leviathan, Kalman, Matias 2023, theorem 3.5; Chen et al. 2023).
//!
//! Let p be the target's distribution and q the proposer's. A draft d drawn from q is accepted when u < p(d) / q(d). A
//! rejected draft is replaced by x with probability max(p(x) - q(x), 0) / sum of max(p - q, 0). The token then has
//! distribution p: min(p, q) comes from drafts, and the rest of p from this residual. A draft without stated
//! probabilities counts as certain (q = 1 at d, 0 elsewhere): it is accepted with probability p(d), and the residual is
//! p without d.
//!
//! The number u and the draw from the residual are separate functions of (seed, sample, position), so neither depends
//! on the noise that the proposer drew with, even if that was the target's own.

use super::finding::Finding;
use crate::sampling::{Noise, Purpose, SamplingError};

/// Decides whether u < p(d) / q(d). A draft to which its own proposer gives probability 0 is rejected.
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

/// Draws a token from the residual by inverting its cumulative sum, in the order of the token ids.
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
    // If the draft was rejected, only rounding can leave an empty residual. Then p and q are equal, so a draw from p is
    // right.
    Ok(residual.or_else(|| draw(p.iter().copied(), u)).unwrap_or_default())
}

/// The first token at which the running sum of the weights passes the share `u` of their total. `None` if the total is
/// not above 0.
fn draw(weights: impl Iterator<Item = f64> + Clone, u: f64) -> Option<u32> {
    let goal = u * weights.clone().fold(0.0, |sum, weight| sum + weight);
    let mut sum = 0.0;
    // The sum can pass the goal only at a token whose weight is above 0.
    (0..).zip(weights).find_map(|(token, weight)| {
        sum += weight;
        (sum > goal).then_some(token)
    })
}

fn checked(token: u32, value: f64) -> Result<f64, SamplingError> {
    // A softmax computed in a lower precision may exceed 1 a little.
    if (0.0..=1.0 + 1e-3).contains(&value) {
        return Ok(value);
    }
    Err(SamplingError::BadProbability { token, value })
}
