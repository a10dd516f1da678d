//! AdamW (Loshchilov and Hutter, 2019), the learning rate's course, and clipping.
//!
//! candle-nn's AdamW keeps its moments to itself; a run that is to be resumed has to save them.

use super::kernels::with_floats;
use anyhow::{Context, Result};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// A model's weights by tensor name.
pub type Weights = BTreeMap<String, Var>;

/// Decay of the mean of gradients.
const BETA1: f32 = 0.9;
/// Decay of the mean of squared gradients.
const BETA2: f32 = 0.98;
/// What keeps the division finite.
const EPS: f32 = 1e-8;

/// The two running means of one tensor's gradient.
#[derive(Debug, Clone, PartialEq)]
pub struct Moments {
    /// Mean of gradients.
    pub first: Vec<f32>,
    /// Mean of squared gradients.
    pub second: Vec<f32>,
}

/// The optimiser and its state.
pub struct AdamW {
    /// Decay of weights a step, times the learning rate; norms don't decay.
    pub weight_decay: f32,
    /// Gradients longer than this (over all tensors together) are scaled down to it.
    pub clip: f32,
    /// State by tensor name.
    pub moments: BTreeMap<String, Moments>,
}

impl AdamW {
    /// A fresh optimiser for `weights`.
    pub fn new(weights: &Weights, weight_decay: f32, clip: f32) -> Self {
        let moments = weights.iter().map(|(name, var)| {
            let zeros = vec![0f32; var.elem_count()];
            (name.clone(), Moments { first: zeros.clone(), second: zeros })
        });
        Self { weight_decay, clip, moments: moments.collect() }
    }

    /// Moves the weights by one step (`number` counts from 1) and returns the gradient's length
    /// before clipping. A tensor without a gradient stays as it is.
    pub fn step(
        &mut self,
        weights: &Weights,
        gradients: &BTreeMap<String, Vec<f32>>,
        lr: f32,
        number: u64,
    ) -> Result<f32> {
        let square: f64 = gradients
            .values()
            .flat_map(|g| g.chunks(16384))
            .map(|g| f64::from(g.iter().map(|g| g * g).sum::<f32>()))
            .sum();
        let length = square.sqrt() as f32;
        let shrink = if length > self.clip { self.clip / length } else { 1.0 };
        let (c1, c2) = (1.0 - BETA1.powi(number as i32), 1.0 - BETA2.powi(number as i32));
        for (name, grad) in gradients {
            let var = weights.get(name).with_context(|| format!("there is no tensor {name}"))?;
            let state = self.moments.get_mut(name).with_context(|| format!("{name} has no state"))?;
            let decay = if var.rank() > 1 { 1.0 - lr * self.weight_decay } else { 1.0 };
            let mut values = with_floats(var, <[f32]>::to_vec)?;
            let moments = state.first.par_iter_mut().zip(&mut state.second);
            let all = values.par_iter_mut().zip(moments).zip(grad).with_min_len(16384);
            all.for_each(|((w, (m, v)), g)| {
                let g = g * shrink;
                *m = BETA1 * *m + (1.0 - BETA1) * g;
                *v = BETA2 * *v + (1.0 - BETA2) * g * g;
                *w = *w * decay - lr * (*m / c1) / ((*v / c2).sqrt() + EPS);
            });
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?)?;
        }
        Ok(length)
    }
}

/// The mean of the shards' gradients, by tensor name, added up in the order of the shards. A tensor that
/// no shard used is left out.
pub fn mean(weights: &Weights, shards: &[GradStore]) -> Result<BTreeMap<String, Vec<f32>>> {
    let share = 1.0 / shards.len() as f32;
    let mut all = BTreeMap::new();
    for (name, var) in weights {
        let mut sum: Option<Vec<f32>> = None;
        for grad in shards.iter().filter_map(|grads| grads.get(var)) {
            let sum = sum.get_or_insert_with(|| vec![0f32; var.elem_count()]);
            with_floats(grad, |g| sum.iter_mut().zip(g).for_each(|(sum, g)| *sum += share * g))?;
        }
        if let Some(sum) = sum {
            all.insert(name.clone(), sum);
        }
    }
    Ok(all)
}

/// The learning rate of step `step` (from 0) of `steps`: linear to `peak` over `warmup` steps, then
/// half a cosine down to a fiftieth of it.
pub fn learning_rate(peak: f64, step: u64, warmup: u64, steps: u64) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let done = (step - warmup) as f64 / (steps.saturating_sub(warmup)).max(1) as f64;
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * done.min(1.0)).cos());
    peak * (0.02 + 0.98 * cosine)
}
