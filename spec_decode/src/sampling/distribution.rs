//! The exact distribution that a choice is drawn from.

use super::choose::Sampler;
use super::error::SamplingError;
use super::params::SamplingParams;
use super::row::Row;
use super::series::exp;

/// The probability of every token after temperature and filters, summing to 1: what
/// [`Sampler::choose`] draws from, for rejection sampling and for tests. At temperature 0 the best
/// token has it all.
///
/// # Errors
/// Those of [`Sampler::choose`].
pub fn distribution(logits: &[f32], params: &SamplingParams) -> Result<Vec<f64>, SamplingError> {
    let kept = Sampler::default().kept(logits, params)?;
    let row = Row::new(logits)?;
    let mut probabilities = vec![0.0; logits.len()];
    if params.is_greedy() {
        if let Some(best) = probabilities.get_mut(row.best as usize) {
            *best = 1.0;
        }
        return Ok(probabilities);
    }
    let temperature = f64::from(params.temperature);
    let mut total = 0.0;
    for token in kept {
        let token = token as usize;
        if let (Some(p), Some(&logit)) = (probabilities.get_mut(token), logits.get(token)) {
            *p = exp((f64::from(logit) - f64::from(row.max)) / temperature);
            total += *p;
        }
    }
    for p in &mut probabilities {
        *p /= total;
    }
    Ok(probabilities)
}
