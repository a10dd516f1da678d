//! The choice of a token for one masked position.

use crate::sampling::{Noise, SamplingError};

/// The token that would fill a masked position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    pub position: u32,
    pub token: u32,
    /// The probability of the token, or a drawn number.
    pub confidence: f64,
}

/// Chooses a token from the logits of a position: the one with the greatest logit, or, with a temperature, the greatest sum of logit and Gumbel
/// noise times temperature. The mask is never chosen. Equal ones go lowest id first. The confidence is the token's probability at temperature
/// 1 in f64.
///
/// # Errors
///
/// A logit is not a number or infinite, or all but that of the mask are minus infinity.
pub(super) fn choose(
    logits: &[f32],
    position: u32,
    mask: u32,
    noise: Option<(Noise, f64)>,
) -> Result<Candidate, SamplingError> {
    let (mut best, mut best_score) = (None, f64::NEG_INFINITY);
    let mut greatest = f64::NEG_INFINITY;
    for (token, &logit) in (0u32..).zip(logits) {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(SamplingError::BadLogit { token, value: logit });
        }
        let logit = f64::from(logit);
        greatest = greatest.max(logit);
        let score = match noise {
            None => logit,
            Some((noise, temperature)) => logit + temperature * noise.gumbel(token),
        };
        if token != mask && score > best_score {
            (best, best_score) = (Some(token), score);
        }
    }
    let token = best.ok_or(SamplingError::NoToken { vocab: logits.len() })?;
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - greatest).exp()).sum();
    let confidence = (f64::from(logits[token as usize]) - greatest).exp() / sum;
    Ok(Candidate { position, token, confidence })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greatest_logit_but_the_masks_is_chosen_and_its_probability_counts_the_mask() {
        let chosen = choose(&[1.0, 3.0, 3.0, 9.0], 7, 3, None).unwrap();
        assert_eq!((chosen.position, chosen.token), (7, 1));
        let e = |x: f64| (x - 9.0).exp();
        assert!((chosen.confidence - e(3.0) / (e(1.0) + 2.0 * e(3.0) + 1.0)).abs() < 1e-12);
        assert!(choose(&[1.0, f32::NAN], 7, 0, None).is_err());
        assert!(choose(&[f32::NEG_INFINITY, 5.0], 7, 1, None).is_err());
    }
}
