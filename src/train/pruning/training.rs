//! The training loop of pruning modules.

use super::keep::Way;
use super::losses::{ranking, squared_error, targets};
use super::scorers::Scorers;
use crate::prune::PruneSpec;
use crate::train::checkpoint::{self, Best, Progress};
use crate::train::kernels::{Take, with_floats};
use crate::train::llama::Llama;
use crate::train::loss::cross_entropy;
use crate::train::noise::Noise;
use crate::train::optimise::{AdamW, learning_rate, mean};
use crate::train::quiz::right;
use crate::train::saliency::Salience;
use crate::train::samples::Sample;
use crate::train::shards::in_shards;
use anyhow::{Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// Gradients are clipped to this length.
const CLIP: f32 = 1.0;
/// Steps between two lines of the log and of the curve.
const LOG_EVERY: u64 = 10;

/// How modules are trained; see the options of the same names.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "documented as options in TrainPruningArgs")]
pub struct Recipe {
    /// A spec for each of --keep-ratio. A sample is pruned by one of them, drawn.
    pub specs: Vec<PruneSpec>,
    pub epochs: u64,
    pub until: u64,
    pub batch: usize,
    pub shards: usize,
    pub lr: f64,
    pub warmup: u64,
    pub weight_decay: f32,
    pub temperature: f64,
    pub mse_weight: f64,
    pub rank_weight: f64,
    pub lm_weight: f64,
    pub checkpoint_every: u64,
    pub seed: u64,
    pub out: PathBuf,
    pub checkpoint: PathBuf,
}

/// Losses of a step, or their sums over some.
#[derive(Debug, Clone, Copy, Default)]
pub struct Losses {
    /// Of the response, nats a token.
    pub lm: f64,
    /// Squared error, the mean over prune points.
    pub mse: f64,
    /// Order of pairs, the mean over prune points.
    pub rank: f64,
    /// Over how many samples these are summed.
    pub samples: f64,
}

/// What a model knows of responses: the mean loss, and the share of the samples whose first response token is the likeliest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Knows {
    /// Nats a token of a response, the mean over samples.
    pub loss: f64,
    /// The share of samples.
    pub right: f64,
}

/// By what tokens are kept when modules are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// All stay.
    Nothing,
    /// The modules' scores.
    Scorers,
    /// Random numbers.
    Chance,
}

impl Recipe {
    /// Steps in all for so many samples.
    pub fn steps(&self, samples: usize) -> u64 {
        self.epochs * samples.div_ceil(self.batch) as u64
    }

    /// The samples of a step: each epoch goes through all of them, in another order.
    fn batch<'a>(&self, samples: &'a [Sample], step: u64) -> Vec<(u64, &'a Sample)> {
        let steps = samples.len().div_ceil(self.batch) as u64;
        let mut noise = Noise::new(self.seed, "epoch", step / steps);
        let mut order: Vec<usize> = (0..samples.len()).collect();
        (1..order.len()).rev().for_each(|last| order.swap(last, noise.below(last + 1)));
        let place = (step % steps) as usize * self.batch;
        let taken = order.iter().skip(place).take(self.batch);
        let key = |index: u64| Noise::new(self.seed, "sample", step * self.batch as u64 + index).bits();
        (0u64..).map(key).zip(taken.map(|&index| &samples[index])).collect()
    }

    /// The losses of a sample, and their gradient.
    pub fn work(
        &self,
        model: &Llama,
        scorers: &Scorers,
        salience: &Salience,
        (key, sample): (u64, &Sample),
    ) -> Result<(Losses, GradStore)> {
        let mut noise = Noise::new(key, "keep", 0);
        let spec = &self.specs[noise.below(self.specs.len())];
        let mut way = Way::new(spec, sample.prompt);
        let inputs = sample.inputs();
        let zero = || Tensor::new(0f32, &Device::Cpu);
        let (mut mse, mut rank) = (zero()?, zero()?);
        let mut visible: Option<Tensor> = None;
        let points = spec.layers.len() as f64;
        let hidden = model.hidden(inputs, inputs.len(), None, &mut |layer, x| {
            let Some(&(layer, ratio)) = spec.layers.iter().find(|(cut, _)| usize::from(*cut) == layer) else {
                return Ok((x, None));
            };
            let scores = scorers.score(layer, &x.detach())?;
            let rows = way.kept.iter().map(|&position| position as usize).collect();
            let reach = scores.unsqueeze(1)?.apply_op1(Take { rows })?.squeeze(1)?;
            let saliency = salience.of(sample, usize::from(layer))?;
            let targets = targets(way.kept.iter().map(|&position| saliency[position as usize]));
            mse = (&mse + squared_error(&reach, &targets)?)?;
            if let Some(loss) = ranking(&reach, &targets, &mut noise)? {
                rank = (&rank + loss)?;
            }
            let values = with_floats(&scores, <[f32]>::to_vec)?;
            if let Some(cut) = way.cut(ratio, &values)? {
                let more = cut.soft(&scores, self.temperature, &mut noise)?;
                visible = Some(match visible.take() {
                    Some(sum) => (sum + more)?,
                    None => more,
                });
            }
            Ok((x, visible.clone()))
        })?;
        let (places, next) = sample.predictions();
        let lm = cross_entropy(&model.logits(&hidden, places)?, next, None)?.objective;
        let value =
            |loss: &Tensor, share: f64| -> Result<f64> { Ok(f64::from(loss.to_scalar::<f32>()?) * share) };
        let losses = Losses {
            lm: value(&lm, 1.0)?,
            mse: value(&mse, 1.0 / points)?,
            rank: value(&rank, 1.0 / points)?,
            samples: 1.0,
        };
        let total =
            (mse.affine(self.mse_weight / points, 0.0)? + rank.affine(self.rank_weight / points, 0.0)?)?;
        // Where nothing is dropped, the language model's loss depends on no module.
        let total = if visible.is_some() { (total + lm.affine(self.lm_weight, 0.0)?)? } else { total };
        Ok((losses, total.backward()?))
    }

    /// What the model knows of the samples' responses with tokens hidden as a served request would have them.
    pub fn judge(
        &self,
        model: &Llama,
        scorers: &Scorers,
        spec: &PruneSpec,
        samples: &[Sample],
        by: By,
    ) -> Result<Knows> {
        let all: Vec<(u64, &Sample)> = (0..).zip(samples).collect();
        let known = in_shards(&all, self.shards, |&(index, sample)| {
            let mut noise = Noise::new(self.seed, "chance", index);
            let mut way = Way::new(spec, sample.prompt);
            let inputs = sample.inputs();
            let hidden = model.hidden(inputs, inputs.len(), None, &mut |layer, x| {
                let found = spec.layers.iter().find(|(cut, _)| usize::from(*cut) == layer);
                let (Some(&(layer, ratio)), true) = (found, by != By::Nothing) else { return Ok((x, None)) };
                let scores = match by {
                    By::Chance => (0..inputs.len()).map(|_| noise.uniform()).collect(),
                    _ => with_floats(&scorers.score(layer, &x)?, <[f32]>::to_vec)?,
                };
                way.cut(ratio, &scores)?;
                let visible = way.hard(inputs.len())?;
                Ok((x, Some(visible)))
            })?;
            let (places, next) = sample.predictions();
            let logits = model.logits(&hidden.detach(), places)?;
            let first = right(&logits, next)?.first().copied().unwrap_or(false);
            Ok((f64::from(cross_entropy(&logits, next, None)?.text), f64::from(u8::from(first))))
        })?;
        let count = known.len().max(1) as f64;
        let (loss, right): (Vec<f64>, Vec<f64>) = known.into_iter().unzip();
        Ok(Knows { loss: loss.iter().sum::<f64>() / count, right: right.iter().sum::<f64>() / count })
    }

    /// One step; each sample is worked on by one thread.
    fn step(
        &self,
        model: &Llama,
        scorers: &Scorers,
        salience: &Salience,
        optimiser: &mut AdamW,
        (samples, step): (&[Sample], u64),
    ) -> Result<Losses> {
        let batch = self.batch(samples, step);
        let done = in_shards(&batch, self.shards, |&sample| self.work(model, scorers, salience, sample))?;
        let (losses, gradients): (Vec<Losses>, Vec<GradStore>) = done.into_iter().unzip();
        let sum = losses.iter().fold(Losses::default(), Losses::plus);
        let value = sum.lm + sum.mse + sum.rank;
        ensure!(
            value.is_finite(),
            "the loss of step {} is {value}: lower --lr (now {}) and --resume",
            step + 1,
            self.lr
        );
        let lr = learning_rate(self.lr, step, self.warmup, self.steps(samples.len())) as f32;
        optimiser.step(&scorers.weights, &mean(&scorers.weights, &gradients)?, lr, step + 1)?;
        Ok(sum)
    }

    /// Trains modules on `samples` (continuing from the checkpoint with `resume`), writing them with each checkpoint. `held` are samples that
    /// are not trained on.
    pub fn run(
        &self,
        model: &Llama,
        mut scorers: Scorers,
        salience: &Salience,
        (samples, held): (&[Sample], &[Sample]),
        resume: bool,
    ) -> Result<Scorers> {
        let mut optimiser = AdamW::new(&scorers.weights, self.weight_decay, CLIP);
        let mut progress = Progress { step: 0, seconds: 0.0, best: f64::INFINITY };
        let mut curve = Vec::new();
        let curve_file = self.out.with_extension("curve.jsonl");
        if resume {
            let state = checkpoint::load(&self.checkpoint)?;
            scorers = state.model(Scorers::from_tensors)?;
            (optimiser.moments, progress) = (state.moments, state.progress);
            let known = std::fs::read_to_string(&curve_file).unwrap_or_default();
            // Each line of the curve stands for so many steps, but for the last one of a run.
            curve =
                known.lines().take(progress.step.div_ceil(LOG_EVERY) as usize).map(str::to_owned).collect();
            println!("resumed after step {}", progress.step);
        }
        let steps = self.steps(samples.len());
        println!("{} samples, {} held out, {steps} steps of {}", samples.len(), held.len(), self.batch);
        let (started, spent) = (Instant::now(), progress.seconds);
        let mut sum = Losses::default();
        while progress.step < self.until.min(steps) {
            let step = (samples, progress.step);
            sum = sum.plus(&self.step(model, &scorers, salience, &mut optimiser, step)?);
            progress.step += 1;
            progress.seconds = spent + started.elapsed().as_secs_f64();
            let last = progress.step == self.until.min(steps);
            if progress.step.is_multiple_of(LOG_EVERY) || last {
                let [lm, mse, rank] = [sum.lm, sum.mse, sum.rank].map(|loss| loss / sum.samples);
                let (step, seconds) = (progress.step, progress.seconds);
                println!("step {step}/{steps}  lm {lm:.4}  mse {mse:.4}  ranking {rank:.4}  {seconds:.0} s");
                let line = json!({"step": step, "lm": lm, "mse": mse, "ranking": rank, "seconds": seconds});
                curve.push(line.to_string());
                sum = Losses::default();
            }
            if progress.step.is_multiple_of(self.checkpoint_every) || last {
                checkpoint::save(&self.checkpoint, &scorers.weights, &optimiser, &Best::new(), &progress)?;
                scorers.save(&self.out)?;
                crate::train::export::write_whole(&curve_file, (curve.join("\n") + "\n").as_bytes())?;
            }
        }
        Ok(scorers)
    }
}

impl Losses {
    fn plus(self, other: &Self) -> Self {
        Self {
            lm: self.lm + other.lm,
            mse: self.mse + other.mse,
            rank: self.rank + other.rank,
            samples: self.samples + other.samples,
        }
    }
}
