//! Training on texts and recall tasks: the loop that the sparse model and the dense one share.

use super::checkpoint::{self, Progress};
use super::corpus::Corpus;
use super::llama::Dropping;
use super::loss::cross_entropy;
use super::noise::Noise;
use super::optimise::{AdamW, Weights, learning_rate, mean};
use super::quiz;
use super::renaming::Renaming;
use super::rows::{Rows, Sizes, Words, add_recall, add_text, recall};
use super::shards::in_shards;
use super::stage::{Kind, Stage};
use anyhow::{Result, ensure};
use candle_core::backprop::GradStore;
use candle_core::{Device, Tensor};
use pagedraft_workloads::tasks::RecallGenerator;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokenizers::Tokenizer;

/// Gradients are clipped to this length.
const CLIP: f32 = 1.0;
/// Steps between two lines of the log.
const LOG_EVERY: u64 = 20;

/// What one pass through a model gave.
pub struct Pass {
    /// The residual stream behind the last layer, `[batch * time, hidden]`.
    pub hidden: Tensor,
    /// The mean divergence of indexers from attention, where lessons were asked for.
    pub divergence: Option<Tensor>,
    /// Rows that went to each expert, by the layer's name of the router's bias.
    pub loads: Vec<(String, Vec<f32>)>,
}

/// How rows are read in a step.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// What the stage trains.
    pub kind: Kind,
    /// What is dropped; its key also keys other draws of the step.
    pub dropping: Dropping,
}

/// A model that can be trained on texts and recall tasks.
pub trait Pupil: Sized + Sync {
    /// Its weights by tensor name.
    fn weights(&self) -> &Weights;
    /// The same model with other weights.
    fn with_weights(&self, tensors: &HashMap<String, Tensor>) -> Result<Self>;
    /// The number of its parameters.
    fn parameters(&self) -> usize;
    /// One pass over rows.
    fn read(&self, rows: &Rows, reading: Reading) -> Result<Pass>;
    /// Scores of the next token at some rows of what a pass gave: `[rows, vocab]`.
    fn logits(&self, hidden: &Tensor, rows: Vec<usize>) -> Result<Tensor>;
    /// Moves what has no gradient, given the loads of each shard.
    fn balance(&self, loads: &[Vec<(String, Vec<f32>)>]) -> Result<()>;
    /// Writes the model's directory. `specials` begin and end a text.
    fn export(&self, specials: (u32, u32), folder: &Path) -> Result<()>;
}

/// How a model is trained; see the options of the same names.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "documented as options in DrillArgs")]
pub struct Drill {
    pub stages: Vec<Stage>,
    pub until: u64,
    pub tokens: usize,
    pub text_share: f64,
    pub answer_weight: f64,
    pub most_hops: usize,
    pub shards: usize,
    pub lr: f64,
    pub warmup: u64,
    pub weight_decay: f32,
    pub dropout: f32,
    pub checkpoint_every: u64,
    pub seed: u64,
    pub out: PathBuf,
    pub checkpoint: PathBuf,
}

/// What rows are drawn from.
pub struct Source<'a> {
    /// The texts as tokens.
    pub corpus: &'a Corpus,
    /// The texts that statements are hidden in.
    pub text: String,
    /// The tails of the texts, which nothing is trained on.
    pub held_out: String,
    /// Keys and values.
    pub words: Words,
    /// What stands in their place in some samples of training.
    pub renaming: Option<Renaming>,
    /// The tokenizer of them all.
    pub tokenizer: &'a Tokenizer,
    /// Begin and end of a text.
    pub specials: (u32, u32),
}

/// Sums over a step, or over some.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    text: f64,
    answers: f64,
    right: f64,
    divergence: f64,
    steps: f64,
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.text += other.text;
        self.answers += other.answers;
        self.right += other.right;
        self.divergence += other.divergence;
        self.steps += other.steps;
    }
}

/// What a shard gave.
struct Worked {
    sums: Sums,
    gradients: GradStore,
    loads: Vec<(String, Vec<f32>)>,
}

impl Drill {
    /// Steps in all.
    pub fn steps(&self) -> u64 {
        self.stages.iter().map(|stage| stage.steps).sum()
    }

    /// The stage of a step, and how many of its steps come before it.
    fn stage(&self, step: u64) -> Option<(&Stage, u64)> {
        let mut before = 0;
        for stage in &self.stages {
            if step < before + stage.steps {
                return Some((stage, step - before));
            }
            before += stage.steps;
        }
        None
    }

    /// The generator of a stage. Short rows are full of statements, so that there is much to learn from; long ones have
    /// any number of them.
    fn generator(&self, source: &Source<'_>, time: usize) -> Result<RecallGenerator> {
        let most = (time / 20).clamp(1, 16);
        let least = if time < 512 { most.div_ceil(2) } else { 1 };
        let seed = Noise::new(self.seed, "recall", time as u64).bits();
        let (needles, hops) = (least..=most, 1..=self.most_hops);
        let sizes = Sizes { length: time + 1, needles, questions: most, hops };
        recall(source.tokenizer, &source.text, &source.words.trained, sizes, seed)
    }

    fn rows(&self, source: &Source<'_>, generator: &RecallGenerator, step: u64, stage: &Stage) -> Rows {
        let count = (self.tokens / stage.time).max(2);
        let text = ((count as f64 * self.text_share).round() as usize).min(count - 1);
        let mut rows = Rows { time: stage.time, ..Rows::default() };
        let seed = Noise::new(self.seed, "text", stage.time as u64).bits();
        add_text(&mut rows, source.corpus, seed, step * text as u64, text);
        let recalled = count - text;
        let pad = source.specials.1;
        add_recall(&mut rows, generator, step * recalled as u64, recalled, pad, source.renaming.as_ref());
        rows
    }

    fn work(
        &self,
        model: &impl Pupil,
        rows: &Rows,
        all: &Rows,
        reading: Reading,
        shards: f64,
    ) -> Result<Worked> {
        let pass = model.read(rows, reading)?;
        let mut sums = Sums::default();
        let mut objective = Tensor::new(0f32, &Device::Cpu)?;
        for (wanted, whole, weight, answers) in
            [(&rows.text, &all.text, 1.0, false), (&rows.answers, &all.answers, self.answer_weight, true)]
        {
            if wanted.is_empty() {
                continue;
            }
            let (places, next): (Vec<usize>, Vec<u32>) = wanted.iter().copied().unzip();
            let logits = model.logits(&pass.hidden, places)?;
            let loss = cross_entropy(&logits, &next, None)?;
            // The mean over the whole batch is the mean of what the shards give.
            let share = wanted.len() as f64 / whole.len() as f64;
            objective = (objective + loss.objective.affine(weight * share * shards, 0.0)?)?;
            if answers {
                sums.answers = share * f64::from(loss.text);
                sums.right = share * quiz::right(&logits, &next)?.iter().filter(|r| **r).count() as f64
                    / next.len() as f64;
            } else {
                sums.text = share * f64::from(loss.text);
            }
        }
        if let Some(divergence) = &pass.divergence {
            sums.divergence = f64::from(divergence.to_scalar::<f32>()?) / shards;
            objective = (objective + divergence)?;
        }
        Ok(Worked { sums, gradients: objective.backward()?, loads: pass.loads })
    }

    /// One step; each shard of the batch is worked on by one thread.
    fn step(
        &self,
        model: &impl Pupil,
        optimiser: &mut AdamW,
        rows: &Rows,
        (step, kind): (u64, Kind),
    ) -> Result<Sums> {
        let shards: Vec<(u64, Rows)> = (0..).zip(rows.shards(self.shards)).collect();
        let done = in_shards(&shards, shards.len(), |(index, shard)| {
            let key = Noise::new(self.seed, "dropout", step * 64 + index).bits();
            let reading = Reading { kind, dropping: Dropping { rate: self.dropout, key } };
            self.work(model, shard, rows, reading, shards.len() as f64)
        })?;
        let mut sums = Sums { steps: 1.0, ..Sums::default() };
        done.iter().for_each(|worked| sums.add(&worked.sums));
        let value = sums.text + sums.answers + sums.divergence;
        ensure!(
            value.is_finite(),
            "the loss of step {} is {value}: lower --lr (now {}) and --resume",
            step + 1,
            self.lr
        );
        let loads: Vec<_> = done.iter().map(|worked| worked.loads.clone()).collect();
        let gradients: Vec<GradStore> = done.into_iter().map(|worked| worked.gradients).collect();
        let lr = learning_rate(self.lr, step, self.warmup, self.steps());
        optimiser.step(model.weights(), &mean(model.weights(), &gradients)?, lr as f32, step + 1)?;
        model.balance(&loads)?;
        Ok(sums)
    }

    /// Trains `model` (continuing from the checkpoint with `resume`), exporting it with each checkpoint.
    pub fn run<P: Pupil>(&self, mut model: P, source: &Source<'_>, resume: bool) -> Result<()> {
        let mut optimiser = AdamW::new(model.weights(), self.weight_decay, CLIP);
        let mut progress = Progress { step: 0, seconds: 0.0, best: f64::INFINITY };
        if resume {
            let state = checkpoint::load(&self.checkpoint)?;
            model = state.model(|tensors| model.with_weights(tensors))?;
            (optimiser.moments, progress) = (state.moments, state.progress);
            println!("resumed after step {}", progress.step);
        }
        let (words, steps) = (&source.words, self.steps());
        println!(
            "{} parameters, {} training tokens, {} and {} words, {steps} steps of {} tokens",
            model.parameters(),
            source.corpus.train.len(),
            words.trained.len(),
            words.held_out.len(),
            self.tokens
        );
        let mut generator: Option<(usize, RecallGenerator)> = None;
        let (mut since, mut sums, spent) = (Instant::now(), Sums::default(), progress.seconds);
        let started = Instant::now();
        let mut read = 0;
        while progress.step < self.until.min(steps) {
            let Some((stage, _)) = self.stage(progress.step) else { break };
            if generator.as_ref().is_none_or(|(time, _)| *time != stage.time) {
                generator = Some((stage.time, self.generator(source, stage.time)?));
            }
            let Some((_, generator)) = &generator else { break };
            let rows = self.rows(source, generator, progress.step, stage);
            read += rows.inputs.len();
            sums.add(&self.step(&model, &mut optimiser, &rows, (progress.step, stage.kind))?);
            progress.step += 1;
            progress.seconds = spent + started.elapsed().as_secs_f64();
            let last = progress.step == self.until.min(steps);
            if progress.step.is_multiple_of(LOG_EVERY) || last {
                println!(
                    "step {}/{steps} ({stage})  text {:.4}  answers {:.4}, {:.1} % right  divergence {:.4}  {:.0} \
                     tokens/s  {:.0} s",
                    progress.step,
                    sums.text / sums.steps,
                    sums.answers / sums.steps,
                    100.0 * sums.right / sums.steps,
                    sums.divergence / sums.steps,
                    read as f64 / since.elapsed().as_secs_f64(),
                    progress.seconds,
                );
                (since, sums, read) = (Instant::now(), Sums::default(), 0);
            }
            if progress.step.is_multiple_of(self.checkpoint_every) || last {
                let none = checkpoint::Best::new();
                checkpoint::save(&self.checkpoint, model.weights(), &optimiser, &none, &progress)?;
                model.export(source.specials, &self.out)?;
            }
        }
        println!("{} steps in {:.0} s, {}", progress.step, progress.seconds, self.out.display());
        Ok(())
    }
}
