//! Computes the exact distribution that a choice is drawn from.

use super::choose::Sampler;
use super::error::SamplingError;
use super::params::SamplingParams;
use super::row::Row;
use super::series::exp;

/// The exponentials of this many tokens are computed together.
const BLOCK: usize = 64;

/// The probability of every token after temperature and filters. The probabilities sum to 1. This is what
/// [`Sampler::choose`] draws from; rejection sampling and tests need it. At temperature 0 the best token has
/// probability 1.
///
/// # Errors
/// Those of [`Sampler::choose`].
pub fn distribution(logits: &[f32], params: &SamplingParams) -> Result<Vec<f64>, SamplingError> {
    let mut probabilities = Vec::new();
    Sampler::default().distribution_into(logits, params, &mut probabilities)?;
    Ok(probabilities)
}

impl Sampler {
    /// Computes the same bits as [`distribution`] into a buffer, which becomes `[vocab]`. Nothing is allocated once the
    /// buffer has been that long.
    ///
    /// # Errors
    /// The errors of [`Sampler::choose`]. The buffer then has no meaning.
    pub fn distribution_into(
        &mut self,
        logits: &[f32],
        params: &SamplingParams,
        probabilities: &mut Vec<f64>,
    ) -> Result<(), SamplingError> {
        params.validate()?;
        let row = Row::new(logits)?;
        probabilities.clear();
        probabilities.resize(logits.len(), 0.0);
        if params.is_greedy() {
            if let Some(best) = probabilities.get_mut(row.best as usize) {
                *best = 1.0;
            }
            return Ok(());
        }
        let max = f64::from(row.max);
        let temperature = f64::from(params.temperature);
        let power = |logit: f32| exp((f64::from(logit) - max) / temperature);
        // Both ways sum in the order of the ids, and a token that the filters removed adds 0.
        let mut total = 0.0;
        if params.keeps_all() {
            for (powers, logits) in probabilities.chunks_mut(BLOCK).zip(logits.chunks(BLOCK)) {
                // The exponentials are computed first, because that loop vectorises.
                for (p, &logit) in powers.iter_mut().zip(logits) {
                    *p = power(logit);
                }
                total = powers.iter().fold(total, |t, p| t + p);
            }
            for p in probabilities {
                *p /= total;
            }
            return Ok(());
        }
        let kept = self.filter.kept(row, params);
        for &token in kept {
            let token = token as usize;
            if let (Some(p), Some(&logit)) = (probabilities.get_mut(token), logits.get(token)) {
                *p = power(logit);
                total += *p;
            }
        }
        for &token in kept {
            if let Some(p) = probabilities.get_mut(token as usize) {
                *p /= total;
            }
        }
        Ok(())
    }
}
