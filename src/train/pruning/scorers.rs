//! The modules that are trained: behind each prune layer a perceptron that gives each token a score.

use crate::train::export::save_tensors;
use crate::train::kernels::linear;
use crate::train::noise::Noise;
use crate::train::optimise::Weights;
use anyhow::{Context, Result};
use candle_core::{Device, Tensor, Var};
use std::collections::HashMap;
use std::path::Path;

/// `W2 gelu(W1 x + b1) + b2` for each prune layer, with W1 of a quarter of the model's width.
pub struct Scorers {
    /// Weights under the names of a PyTorch state dict, such as `4.scorer.0.weight`.
    pub weights: Weights,
}

impl Scorers {
    /// Fresh modules behind `layers` of a model of width `hidden`, drawn from `seed` as PyTorch draws linear layers: uniform
    /// between -1 and 1 over the square root of the inputs.
    pub fn new(layers: &[u16], hidden: usize, seed: u64) -> Result<Self> {
        let inner = hidden / 4;
        let mut tensors = HashMap::new();
        for &layer in layers {
            let parts = [
                ("0.weight", vec![inner, hidden], hidden),
                ("0.bias", vec![inner], hidden),
                ("2.weight", vec![1, inner], inner),
                ("2.bias", vec![1], inner),
            ];
            for (part, (name, shape, inputs)) in (0u64..).zip(parts) {
                let mut noise = Noise::new(seed, "scorers", u64::from(layer) * 4 + part);
                let bound = 1.0 / (inputs as f32).sqrt();
                let count = shape.iter().product::<usize>();
                let values: Vec<f32> = (0..count).map(|_| bound * (2.0 * noise.uniform() - 1.0)).collect();
                tensors
                    .insert(format!("{layer}.scorer.{name}"), Tensor::from_vec(values, shape, &Device::Cpu)?);
            }
        }
        Self::from_tensors(&tensors)
    }

    /// Modules of these tensors.
    pub fn from_tensors(tensors: &HashMap<String, Tensor>) -> Result<Self> {
        let vars = tensors.iter().map(|(name, tensor)| Ok((name.clone(), Var::from_tensor(tensor)?)));
        Ok(Self { weights: vars.collect::<Result<_>>()? })
    }

    /// The scores of the tokens whose residual rows behind `layer` are `x`: `[rows]`.
    pub fn score(&self, layer: u16, x: &Tensor) -> Result<Tensor> {
        let get = |name: &str| {
            let name = format!("{layer}.scorer.{name}");
            self.weights.get(&name).with_context(|| format!("there is no {name}"))
        };
        let inner = linear(x, get("0.weight")?)?.broadcast_add(get("0.bias")?)?.gelu_erf()?;
        Ok(linear(&inner, get("2.weight")?)?.broadcast_add(get("2.bias")?)?.squeeze(1)?)
    }

    /// Writes the file that a prune spec names as `modules`.
    pub fn save(&self, file: &Path) -> Result<()> {
        let tensors = self.weights.iter().map(|(name, var)| (name.clone(), var.as_detached_tensor()));
        save_tensors(file, &tensors.collect())
    }
}
