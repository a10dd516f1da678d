//! The sparse model as a pupil of the trainer.

use super::export;
use super::model::{Attention, Sparse};
use crate::train::drill::{Pass, Pupil, Reading};
use crate::train::kernels::with_floats;
use crate::train::noise::Noise;
use crate::train::optimise::Weights;
use crate::train::rows::Rows;
use crate::train::stage::Kind;
use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use std::collections::HashMap;
use std::path::Path;

/// How far a router's bias moves in a step, towards equal loads.
const BALANCE: f32 = 1e-3;

/// A sparse model and how its indexers learn.
pub struct Apprentice {
    /// The model.
    pub model: Sparse,
    /// Share of the token rows that the indexers learn from, beside those of answers.
    pub lesson_share: f32,
}

impl Pupil for Apprentice {
    fn weights(&self) -> &Weights {
        &self.model.weights
    }

    fn with_weights(&self, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        Ok(Self { model: Sparse::from_tensors(self.model.shape.clone(), tensors)?, ..*self })
    }

    fn parameters(&self) -> usize {
        self.model.shape.parameters()
    }

    fn read(&self, rows: &Rows, Reading { kind, dropping }: Reading) -> Result<Pass> {
        let lessons = match kind {
            Kind::Dense => Vec::new(),
            Kind::Index | Kind::Sparse => lessons(rows, self.lesson_share, dropping.key),
        };
        let attention = if kind == Kind::Sparse { Attention::Sparse } else { Attention::Dense };
        self.model.forward(&rows.inputs, rows.time, attention, &lessons, Some(dropping))
    }

    fn logits(&self, hidden: &Tensor, rows: Vec<usize>) -> Result<Tensor> {
        self.model.logits(hidden, rows)
    }

    fn balance(&self, loads: &[Vec<(String, Vec<f32>)>]) -> Result<()> {
        balance(&self.model, loads)
    }

    fn export(&self, specials: (u32, u32), folder: &Path) -> Result<()> {
        export::save(&self.model, specials, DType::BF16, folder)
    }
}

/// The rows that the indexers learn from: all that precede an answer, and `share` of the others at random.
pub fn lessons(rows: &Rows, share: f32, key: u64) -> Vec<(usize, usize, f32)> {
    let mut noise = Noise::new(key, "lessons", 0);
    let mut answers = rows.answers.iter().map(|&(at, _)| at).peekable();
    let mut taken = Vec::new();
    for at in 0..rows.inputs.len() {
        let answers = answers.next_if_eq(&at).is_some();
        if noise.uniform() < share || answers {
            taken.push(at);
        }
    }
    let weight = 1.0 / taken.len().max(1) as f32;
    taken.into_iter().map(|at| (at / rows.time, at % rows.time, weight)).collect()
}

/// Moves each router's bias towards equal loads (Wang et al., 2024).
fn balance(model: &Sparse, shards: &[Vec<(String, Vec<f32>)>]) -> Result<()> {
    let Some((first, rest)) = shards.split_first() else { return Ok(()) };
    for (index, (name, loads)) in first.iter().enumerate() {
        let mut loads = loads.clone();
        for (_, more) in rest.iter().filter_map(|shard| shard.get(index)) {
            loads.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
        }
        let even = loads.iter().sum::<f32>() / loads.len() as f32;
        let Some(var) = model.weights.get(name) else { continue };
        let mut bias = with_floats(var, <[f32]>::to_vec)?;
        for (bias, load) in bias.iter_mut().zip(&loads) {
            *bias += if *load < even { BALANCE } else { -BALANCE };
        }
        var.set(&Tensor::from_vec(bias, var.shape(), &Device::Cpu)?)?;
    }
    Ok(())
}
