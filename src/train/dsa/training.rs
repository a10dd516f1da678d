//! The training loop of the sparse model.

use super::model::{Attention, Sparse};
use super::rows::{Rows, Words, add_recall, add_text, lessons, recall};
use super::stage::{Kind, Stage};
use super::{evaluate, export};
use crate::train::checkpoint::{self, Progress};
use crate::train::corpus::Corpus;
use crate::train::kernels::with_floats;
use crate::train::llama::Dropping;
use crate::train::loss::cross_entropy;
use crate::train::noise::Noise;
use crate::train::optimise::{AdamW, learning_rate, mean};
use anyhow::{Result, anyhow, ensure};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor};
use pagedraft_workloads::tasks::RecallGenerator;
use std::path::PathBuf;
use std::time::Instant;
use tokenizers::Tokenizer;

/// Gradients are clipped to this length.
const CLIP: f32 = 1.0;
/// How far a router's bias moves in a step, towards equal loads.
const BALANCE: f32 = 1e-3;
/// Steps between two lines of the log.
const LOG_EVERY: u64 = 20;

/// How a model is trained; see the options of the same names.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "documented as options in TrainDsaArgs")]
pub struct Recipe {
    pub stages: Vec<Stage>,
    pub until: u64,
    pub tokens: usize,
    pub text_share: f64,
    pub answer_weight: f64,
    pub lesson_share: f32,
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

impl Recipe {
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
        recall(source.tokenizer, &source.text, &source.words.trained, (time + 1, least..=most, most), seed)
    }

    fn rows(&self, source: &Source<'_>, generator: &RecallGenerator, step: u64, stage: &Stage) -> Rows {
        let count = (self.tokens / stage.time).max(2);
        let text = ((count as f64 * self.text_share).round() as usize).min(count - 1);
        let mut rows = Rows { time: stage.time, ..Rows::default() };
        let seed = Noise::new(self.seed, "text", stage.time as u64).bits();
        add_text(&mut rows, source.corpus, seed, step * text as u64, text);
        let recalled = count - text;
        add_recall(&mut rows, generator, step * recalled as u64, recalled, source.specials.1);
        rows
    }

    fn work(
        &self,
        model: &Sparse,
        rows: &Rows,
        all: &Rows,
        kind: Kind,
        key: u64,
        shards: f64,
    ) -> Result<Worked> {
        let dropping = Dropping { rate: self.dropout, key };
        let lessons = match kind {
            Kind::Dense => Vec::new(),
            Kind::Index | Kind::Sparse => lessons(rows, self.lesson_share, key),
        };
        let attention = if kind == Kind::Sparse { Attention::Sparse } else { Attention::Dense };
        let pass = model.forward(&rows.inputs, rows.time, attention, &lessons, Some(dropping))?;
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
                sums.right = share * evaluate::right(&logits, &next)?.iter().filter(|r| **r).count() as f64
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
        model: &Sparse,
        optimiser: &mut AdamW,
        rows: &Rows,
        (step, kind): (u64, Kind),
    ) -> Result<Sums> {
        let shards = rows.shards(self.shards);
        let done = std::thread::scope(|scope| {
            let running: Vec<_> = (0u64..)
                .zip(&shards)
                .map(|(index, shard)| {
                    let key = Noise::new(self.seed, "dropout", step * 64 + index).bits();
                    let shards = shards.len() as f64;
                    scope.spawn(move || {
                        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build()?;
                        pool.install(|| self.work(model, shard, rows, kind, key, shards))
                    })
                })
                .collect();
            let joined = running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(anyhow!("a training thread panicked"))));
            joined.collect::<Result<Vec<_>>>()
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
        optimiser.step(&model.weights, &mean(&model.weights, &gradients)?, lr as f32, step + 1)?;
        balance(model, &loads)?;
        Ok(sums)
    }

    /// Trains `model` (continuing from the checkpoint with `resume`), exporting it with each checkpoint.
    pub fn run(&self, mut model: Sparse, source: &Source<'_>, resume: bool) -> Result<()> {
        let mut optimiser = AdamW::new(&model.weights, self.weight_decay, CLIP);
        let mut progress = Progress { step: 0, seconds: 0.0, best: f64::INFINITY };
        if resume {
            let state = checkpoint::load(&self.checkpoint)?;
            model = state.model(|tensors| Sparse::from_tensors(model.shape, tensors))?;
            (optimiser.moments, progress) = (state.moments, state.progress);
            println!("resumed after step {}", progress.step);
        }
        let (words, steps) = (&source.words, self.steps());
        println!(
            "{} parameters, {} training tokens, {} and {} words, {steps} steps of {} tokens",
            model.shape.parameters(),
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
                checkpoint::save(&self.checkpoint, &model.weights, &optimiser, &none, &progress)?;
                export::save(&model, source.specials, DType::BF16, &self.out)?;
            }
        }
        println!("{} steps in {:.0} s, {}", progress.step, progress.seconds, self.out.display());
        Ok(())
    }
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
