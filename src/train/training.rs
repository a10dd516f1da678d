//! The training loop.

use super::checkpoint::{self, Progress};
use super::corpus::{Batch, Corpus, windows};
use super::evaluate::detached;
use super::export;
use super::llama::{Dropping, Llama};
use super::loss::weighted_cross_entropy;
use super::masking::masked;
use super::noise::Noise;
use super::optimise::{AdamW, learning_rate, mean};
use super::shards::in_shards;
use anyhow::{Result, ensure};
use candle_core::backprop::GradStore;
use std::path::PathBuf;
use std::time::Instant;

/// How a model is trained; see the options of the same names.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "documented as options in RunArgs and TrainLmArgs")]
pub struct Recipe {
    pub steps: u64,
    pub until: u64,
    pub long_steps: u64,
    pub batch: usize,
    pub shards: usize,
    pub seq_len: usize,
    pub long_seq_len: usize,
    pub lr: f64,
    pub warmup: u64,
    pub weight_decay: f32,
    pub dropout: f32,
    pub teacher_share: f32,
    pub validate_every: u64,
    pub checkpoint_every: u64,
    pub seed: u64,
    pub out: PathBuf,
    pub checkpoint: PathBuf,
}

/// Gradients are clipped to this length.
const CLIP: f32 = 1.0;
/// Validation tokens read each time, at most.
const VALIDATION: usize = 24 * 1024;

/// The batch as the model learns from it: with masks if it is a model that fills masks.
fn hide(model: &Llama, batch: Batch, noise: Noise) -> Batch {
    match model.config.mask {
        None => batch,
        Some(mask) => masked(batch, mask, noise),
    }
}

impl Recipe {
    /// Batch number `step`: short rows first, and long ones in the last `long_steps` steps, with
    /// about as many tokens.
    pub fn batch(&self, corpus: &Corpus, step: u64) -> Batch {
        let short = self.steps.saturating_sub(self.long_steps);
        if step < short {
            return corpus.batch(self.seed, step * self.batch as u64, self.batch, self.seq_len);
        }
        let rows = (self.batch * self.seq_len / self.long_seq_len).max(1);
        let seed = self.seed ^ 0x6c6f_6e67;
        corpus.batch(seed, (step - short) * rows as u64, rows, self.long_seq_len)
    }

    /// One step: returns the objective (what is minimised) before it. Each shard of the batch is
    /// worked on by one thread.
    pub fn step(
        &self,
        model: &Llama,
        teacher: Option<&Llama>,
        optimiser: &mut AdamW,
        batch: &Batch,
        step: u64,
    ) -> Result<f32> {
        let shards: Vec<(u64, Batch)> = (0..).zip(batch.shards(self.shards)).collect();
        let done = in_shards(&shards, shards.len(), |(index, shard)| {
            let key = Noise::new(self.seed, "dropout", step * 64 + index).bits();
            self.gradients(model, teacher, shard, key)
        })?;
        let (values, gradients): (Vec<f32>, Vec<GradStore>) = done.into_iter().unzip();
        let value = values.iter().sum::<f32>() / values.len() as f32;
        ensure!(
            value.is_finite(),
            "the loss of step {} is {value}: lower --lr (now {}) and --resume",
            step + 1,
            self.lr
        );
        let lr = learning_rate(self.lr, step, self.warmup, self.steps);
        optimiser.step(&model.weights, &mean(&model.weights, &gradients)?, lr as f32, step + 1)?;
        Ok(value)
    }

    fn gradients(
        &self,
        model: &Llama,
        teacher: Option<&Llama>,
        batch: &Batch,
        key: u64,
    ) -> Result<(f32, GradStore)> {
        let dropping = Dropping { rate: self.dropout, key };
        let wanted = teacher.map(|teacher| detached(teacher, &batch.inputs, batch.time)).transpose()?;
        let logits = model.forward(&batch.inputs, batch.time, Some(dropping))?;
        let wanted = wanted.as_ref().map(|wanted| (wanted, self.teacher_share));
        let loss = weighted_cross_entropy(&logits, &batch.next, &batch.weights, wanted)?;
        Ok((loss.objective.to_scalar::<f32>()?, loss.objective.backward()?))
    }

    /// Objective and text loss over the validation tokens, in rows as long as the longest trained on:
    /// weights that don't know late positions yet must not be kept as the best.
    pub fn validate(&self, model: &Llama, teacher: Option<&Llama>, tokens: &[u32]) -> Result<(f64, f64)> {
        let (mut objective, mut text, mut count) = (0.0, 0.0, 0.0);
        let time = if self.long_steps > 0 { self.long_seq_len } else { self.seq_len };
        let rows = (self.batch * self.seq_len / time).max(1);
        for (index, batch) in (0..).zip(windows(&tokens[..tokens.len().min(VALIDATION)], time, rows)) {
            let batch = hide(model, batch, Noise::new(0, "validation masks", index));
            let logits = detached(model, &batch.inputs, batch.time)?;
            let wanted = teacher.map(|teacher| detached(teacher, &batch.inputs, batch.time)).transpose()?;
            let wanted = wanted.as_ref().map(|wanted| (wanted, self.teacher_share));
            let loss = weighted_cross_entropy(&logits, &batch.next, &batch.weights, wanted)?;
            let rows = batch.next.len() as f64;
            objective += rows * f64::from(loss.objective.to_scalar::<f32>()?);
            text += rows * f64::from(loss.text);
            count += rows;
        }
        Ok((objective / count, text / count))
    }

    /// Trains `model` (continuing from the checkpoint with `resume`), exporting it whenever the
    /// validation loss falls below its lowest so far.
    pub fn run(
        &self,
        mut model: Llama,
        teacher: Option<&Llama>,
        corpus: &Corpus,
        specials: (u32, u32),
        resume: bool,
    ) -> Result<()> {
        let mut optimiser = AdamW::new(&model.weights, self.weight_decay, CLIP);
        let mut progress = Progress { step: 0, seconds: 0.0, best: f64::INFINITY };
        let mut best = checkpoint::Best::new();
        if resume {
            let state = checkpoint::load(&self.checkpoint)?;
            model = state.model(|tensors| Llama::from_tensors(model.config, tensors))?;
            (optimiser.moments, best, progress) = (state.moments, state.best, state.progress);
            println!("resumed after step {}", progress.step);
        }
        println!(
            "{} parameters, {} training and {} validation tokens, {} steps of {} x {}",
            model.config.parameters(),
            corpus.train.len(),
            corpus.validation.len(),
            self.steps,
            self.batch,
            self.seq_len
        );
        let (mut since, mut tokens, mut loss) = (Instant::now(), 0usize, 0f64);
        let (mut steps, spent) = (0u64, progress.seconds);
        let started = Instant::now();
        while progress.step < self.until {
            let noise = Noise::new(self.seed, "masks", progress.step);
            let batch = hide(&model, self.batch(corpus, progress.step), noise);
            loss += f64::from(self.step(&model, teacher, &mut optimiser, &batch, progress.step)?);
            progress.step += 1;
            progress.seconds = spent + started.elapsed().as_secs_f64();
            tokens += batch.inputs.len();
            steps += 1;
            let last = progress.step == self.until;
            if progress.step.is_multiple_of(20) || last {
                let speed = tokens as f64 / since.elapsed().as_secs_f64();
                let left = (self.steps - progress.step) as f64 * tokens as f64 / steps as f64 / speed;
                println!(
                    "step {}/{}  loss {:.4}  {speed:.0} tokens/s  {:.0} s spent, {left:.0} s to go",
                    progress.step,
                    self.steps,
                    loss / steps as f64,
                    progress.seconds,
                );
                (since, tokens, loss, steps) = (Instant::now(), 0, 0.0, 0);
            }
            if progress.step.is_multiple_of(self.validate_every) || last {
                let (objective, text) = self.validate(&model, teacher, &corpus.validation)?;
                println!("step {}: validation {objective:.4} (text {text:.4})", progress.step);
                if objective < progress.best {
                    progress.best = objective;
                    best = checkpoint::copy(&model.weights)?;
                    export::save(&model.config, &best, specials, &self.out)?;
                }
                since = Instant::now();
            }
            if progress.step.is_multiple_of(self.checkpoint_every) || last {
                checkpoint::save(&self.checkpoint, &model.weights, &optimiser, &best, &progress)?;
            }
        }
        println!(
            "{} steps in {:.0} s: validation {:.4}, {}",
            progress.step,
            progress.seconds,
            progress.best,
            self.out.display()
        );
        Ok(())
    }
}
