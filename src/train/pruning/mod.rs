//! `pagedraft train pruning`: modules that learn which prompt tokens matter.
//!
//! The second stage of saliency-driven token pruning (SDTP, arXiv:2504.04514). Behind each prune layer a small perceptron scores tokens. It
//! learns from three losses, the model being frozen: squared error against the [saliency](super::saliency) of the same sample, found by the
//! sample's id; the order of pairs of tokens; and the model's own loss on the response while tokens are hidden by chance, the likelier the
//! lower they score. Positions are those of the whole prompt (`"positions": "original"`).
//!
//! A run shuffles samples, draws a keep ratio for each, and keys everything random by `--seed`, so that a killed run goes on with `--resume`
//! as if it had not been killed. One sample in ten is not trained on. Beside the modules lies a curve (JSON lines).
//!
//! ```text
//! pagedraft train pruning --model builtin:recall --samples a.jsonl --saliency saliency.safetensors --out modules.safetensors
//! ```

pub mod keep;
pub mod losses;
pub mod scorers;
#[cfg(test)]
mod tests;
pub mod training;

use super::llama::Llama;
use super::run_args::checkpoint_beside;
use super::saliency::Salience;
use super::samples::{Sample, SampleArgs};
use crate::prune::{Preset, PruneSpec};
use crate::session::{ModelRef, open_checkpoint};
use anyhow::{Result, ensure};
use scorers::Scorers;
use serde_json::json;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use training::{By, Recipe};

/// One sample in so many is not trained on.
const HELD_OUT: usize = 10;

/// Trains modules that learn which prompt tokens matter.
#[derive(Debug, Clone, clap::Args)]
pub struct TrainPruningArgs {
    /// A directory of the Llama or Qwen family, or builtin:NAME
    #[arg(long, value_name = "DIR|builtin:NAME")]
    pub model: OsString,
    /// Which samples
    #[command(flatten)]
    pub samples: SampleArgs,
    /// What `train saliency` wrote of the same samples
    #[arg(long, value_name = "FILE")]
    pub saliency: PathBuf,
    /// The file of modules that is written (safetensors)
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Layers to prune behind (by default those of the presets keep09, keep08, keep07 and sdtp)
    #[arg(long, value_name = "LAYER", num_args = 1..)]
    pub layers: Vec<u16>,
    /// Shares of the tokens that each layer keeps; a sample is pruned by one of them, drawn
    #[arg(long, value_name = "RATIO", num_args = 1.., default_values_t = [0.9, 0.8, 0.7])]
    pub keep_ratio: Vec<f64>,
    /// Times that each sample is used
    #[arg(long, default_value_t = 2)]
    pub epochs: u64,
    /// Stop after this step, leaving a checkpoint to --resume from
    #[arg(long, value_name = "STEP")]
    pub until: Option<u64>,
    /// Samples a step
    #[arg(long, default_value_t = 4)]
    pub batch: usize,
    /// Samples that are worked on at the same time, each by one thread
    #[arg(long, default_value_t = 2)]
    pub shards: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 3e-3)]
    pub lr: f64,
    /// Steps over which it rises
    #[arg(long, default_value_t = 20)]
    pub warmup: u64,
    /// Decay of weights (AdamW)
    #[arg(long, default_value_t = 0.01)]
    pub weight_decay: f32,
    /// Temperature of the keep decision: how far from the threshold a score must lie to be safe
    #[arg(long, default_value_t = 0.5)]
    pub temperature: f64,
    /// Weight of the squared error against saliency
    #[arg(long, default_value_t = 1.0)]
    pub mse_weight: f64,
    /// Weight of the order of pairs
    #[arg(long, default_value_t = 1.0)]
    pub rank_weight: f64,
    /// Weight of the language model's loss
    #[arg(long, default_value_t = 1.0)]
    pub lm_weight: f64,
    /// Seed of modules, order and noise
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Steps between checkpoints
    #[arg(long, default_value_t = 50)]
    pub checkpoint_every: u64,
    /// Directory of the checkpoint (by default --out with `.checkpoint` added)
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint
    #[arg(long)]
    pub resume: bool,
}

impl TrainPruningArgs {
    /// How a model of `num_layers` layers is pruned, for each keep ratio.
    fn specs(&self, num_layers: u16) -> Result<Vec<PruneSpec>> {
        let mut layers = self.layers.clone();
        if layers.is_empty() {
            let presets = [Preset::Keep07, Preset::Sdtp].into_iter();
            layers = presets.flat_map(|preset| preset.layers(num_layers)).map(|(layer, _)| layer).collect();
        }
        layers.sort_unstable();
        layers.dedup();
        ensure!(
            layers.last().is_some_and(|&last| last + 1 < num_layers),
            "--layers {layers:?}: the model has {num_layers} layers, so that tokens can be dropped behind layers 0 to {}",
            num_layers.saturating_sub(2)
        );
        let spec = |&ratio| {
            let json = json!({"layers": layers, "keep_ratio": ratio, "scorer": "random"});
            PruneSpec::from_json(json, Path::new(""))
        };
        Ok(self.keep_ratio.iter().map(spec).collect::<Result<_, _>>()?)
    }

    fn recipe(&self, specs: Vec<PruneSpec>) -> Result<Recipe> {
        ensure!(self.batch > 0, "--batch is 0; give at least 1");
        ensure!(self.temperature > 0.0, "--temperature {}: give more than 0", self.temperature);
        Ok(Recipe {
            specs,
            epochs: self.epochs,
            until: self.until.unwrap_or(u64::MAX),
            batch: self.batch,
            shards: self.shards.max(1),
            lr: self.lr,
            warmup: self.warmup,
            weight_decay: self.weight_decay,
            temperature: self.temperature,
            mse_weight: self.mse_weight,
            rank_weight: self.rank_weight,
            lm_weight: self.lm_weight,
            checkpoint_every: self.checkpoint_every.max(1),
            seed: self.seed,
            out: self.out.clone(),
            checkpoint: self.checkpoint.clone().unwrap_or_else(|| checkpoint_beside(&self.out)),
        })
    }
}

/// Runs `train pruning`.
pub fn run(args: &TrainPruningArgs) -> Result<()> {
    let checkpoint = open_checkpoint(&ModelRef::from(args.model.clone()))?;
    let samples = args.samples.read(&checkpoint.tokenizer()?)?;
    let salience = Salience::read(&args.saliency)?;
    let model = Llama::from_checkpoint(&checkpoint)?.frozen()?;
    let recipe = args.recipe(args.specs(model.config.num_hidden_layers as u16)?)?;
    let (mut trained, mut held): (Vec<Sample>, Vec<Sample>) = (Vec::new(), Vec::new());
    for (index, sample) in samples.into_iter().enumerate() {
        if index % HELD_OUT == HELD_OUT - 1 { held.push(sample) } else { trained.push(sample) }
    }
    let layers: Vec<u16> =
        recipe.specs.iter().flat_map(|spec| &spec.layers).map(|(layer, _)| *layer).collect();
    let scorers = Scorers::new(&layers, model.config.hidden_size, args.seed)?;
    let scorers = recipe.run(&model, scorers, &salience, (&trained, &held), args.resume)?;
    for (spec, ratio) in recipe.specs.iter().zip(&args.keep_ratio) {
        print!("keep {ratio}, {} samples that were not trained on:", held.len());
        for (name, by) in [("dense", By::Nothing), ("learned", By::Scorers), ("random", By::Chance)] {
            let knows = recipe.judge(&model, &scorers, spec, &held, by)?;
            print!("  {name} loss {:.4}, {:.1} % right", knows.loss, 100.0 * knows.right);
        }
        println!();
    }
    println!("{}", args.out.display());
    Ok(())
}
