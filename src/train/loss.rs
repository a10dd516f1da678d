//! Cross entropy against the text, a teacher's distribution, or a mixture of the two.

use super::kernels::{exp, with_floats};
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

/// What the predictions of one batch were worth.
pub struct Loss {
    /// The scalar to call `backward` on: cross entropy against the mixture, nats a token.
    pub objective: Tensor,
    /// Cross entropy against the text alone, nats a token.
    pub text: f32,
}

/// Carries a gradient that was worked out together with the loss.
struct Scored {
    value: f32,
    gradient: Tensor,
}

impl CustomOp1 for Scored {
    fn name(&self) -> &'static str {
        "train-loss"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok((CpuStorage::F32(vec![self.value]), Shape::from(())))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let scale = grad.to_scalar::<f32>()?;
        if scale == 1.0 {
            return Ok(Some(self.gradient.clone()));
        }
        Ok(Some(self.gradient.affine(f64::from(scale), 0.0)?))
    }
}

/// The greatest score of a row, and the logarithm of the sum of the exponentials of all of them.
pub fn log_sum_exp(row: &[f32]) -> (f32, f32) {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = row.iter().map(|x| exp(x - top)).sum();
    (top, top + sum.ln())
}

/// Cross entropy of `logits` `[rows, vocab]` against `share` parts of the teacher's softmax (`[rows,
/// vocab]`, temperature 1) and `1 - share` parts of the tokens that followed (`next`, one a row).
///
/// With a teacher this is, up to the teacher's entropy, the KL divergence of Hinton et al. (2015).
pub fn cross_entropy(logits: &Tensor, next: &[u32], teacher: Option<(&Tensor, f32)>) -> Result<Loss> {
    weighted_cross_entropy(logits, next, &[], teacher)
}

/// The same, each row counting for so much (all for 1 if there are no weights); the sum is divided by the number of rows all the same.
pub fn weighted_cross_entropy(
    logits: &Tensor,
    next: &[u32],
    weights: &[f32],
    teacher: Option<(&Tensor, f32)>,
) -> Result<Loss> {
    let (rows, vocab) = logits.dims2()?;
    let score = |logits: &[f32], wanted: Option<(&[f32], f32)>| {
        let mut gradient = vec![0f32; rows * vocab];
        let losses: Vec<(f32, f32)> = gradient
            .par_chunks_mut(vocab)
            .zip(logits.par_chunks(vocab))
            .with_min_len(16)
            .enumerate()
            .map(|(row, (gradient, logits))| {
                let counts = weights.get(row).copied().unwrap_or(1.0);
                if counts == 0.0 {
                    return (0.0, 0.0);
                }
                let (_, norm) = log_sum_exp(logits);
                let token = next[row] as usize;
                let text = norm - logits[token];
                let weight = counts / rows as f32;
                for (g, x) in gradient.iter_mut().zip(logits) {
                    *g = weight * exp(x - norm);
                }
                let Some((teacher, share)) = wanted else {
                    gradient[token] -= weight;
                    return (counts * text, counts * text);
                };
                let teacher = &teacher[row * vocab..][..vocab];
                let (_, teacher_norm) = log_sum_exp(teacher);
                let mut soft = 0f32;
                for ((g, x), t) in gradient.iter_mut().zip(logits).zip(teacher) {
                    let p = exp(t - teacher_norm);
                    soft += p * (norm - x);
                    *g -= weight * share * p;
                }
                gradient[token] -= weight * (1.0 - share);
                (counts * (share * soft + (1.0 - share) * text), counts * text)
            })
            .collect();
        let mean = |pick: fn(&(f32, f32)) -> f32| {
            (losses.iter().map(|l| f64::from(pick(l))).sum::<f64>() / rows as f64) as f32
        };
        (gradient, mean(|l| l.0), mean(|l| l.1))
    };
    let (gradient, value, text) = match teacher {
        None => with_floats(logits, |x| score(x, None))?,
        Some((teacher, share)) => {
            with_floats(teacher, |t| with_floats(logits, |x| score(x, Some((t, share)))))??
        }
    };
    let gradient = Tensor::from_vec(gradient, (rows, vocab), logits.device())?;
    let objective = logits.apply_op1(Scored { value, gradient })?;
    Ok(Loss { objective, text })
}
