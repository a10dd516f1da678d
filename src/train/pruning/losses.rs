//! What scores should be: close to saliency, and in its order.

use super::keep::log_sigmoid;
use crate::train::kernels::Take;
use crate::train::noise::Noise;
use anyhow::Result;
use candle_core::{Device, Tensor};

/// Pairs that are compared, for each token.
const PAIRS: usize = 8;

/// Saliency as a target: the square root of its size with its sign, less the mean, over the deviation. Raw saliency spans many orders of
/// magnitude, in which a few tokens would be all of a squared error.
pub fn targets(saliency: impl Iterator<Item = f32>) -> Vec<f32> {
    let roots: Vec<f32> = saliency.map(|s| s.signum() * s.abs().sqrt()).collect();
    let count = roots.len().max(1) as f32;
    let mean = roots.iter().sum::<f32>() / count;
    let deviation = (roots.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / count).sqrt();
    roots.iter().map(|x| (x - mean) / deviation.max(1e-12)).collect()
}

/// The mean squared error of `scores` `[n]`.
pub fn squared_error(scores: &Tensor, targets: &[f32]) -> Result<Tensor> {
    let targets = Tensor::from_slice(targets, targets.len(), &Device::Cpu)?;
    Ok((scores - targets)?.sqr()?.mean_all()?)
}

/// The mean of `ln(1 + e^-(s_i - s_j) sign(t_i - t_j))` over random pairs of tokens with different targets (SDTP, equation 6, sums over
/// all pairs). `None` if no pair is different.
pub fn ranking(scores: &Tensor, targets: &[f32], noise: &mut Noise) -> Result<Option<Tensor>> {
    let draw = |noise: &mut Noise| (noise.below(targets.len()), noise.below(targets.len()));
    let pairs = (0..PAIRS * targets.len()).map(|_| draw(noise));
    let (mut better, mut worse) = (Vec::new(), Vec::new());
    for (i, j) in pairs {
        if targets[i] != targets[j] {
            let (high, low) = if targets[i] > targets[j] { (i, j) } else { (j, i) };
            better.push(high);
            worse.push(low);
        }
    }
    if better.is_empty() {
        return Ok(None);
    }
    let column = scores.unsqueeze(1)?.contiguous()?;
    let take = |rows: Vec<usize>| column.apply_op1(Take { rows });
    let difference = (take(better)? - take(worse)?)?;
    Ok(Some(log_sigmoid(&difference)?.neg()?.mean_all()?))
}
