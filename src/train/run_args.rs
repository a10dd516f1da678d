//! The options that the trainers on plain texts share.

use super::bpe;
use super::corpus::{self, Corpus};
use super::llama::Llama;
use super::training::Recipe;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// How a run on plain texts goes.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// Directory of the model: written when training, read with --evaluate
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Plain texts (UTF-8) to train on
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub text: Vec<PathBuf>,
    /// Tail of each text kept for validation, as a share of it
    #[arg(long, default_value_t = 0.05)]
    pub validation: f64,
    /// Steps in all
    #[arg(long, default_value_t = 1300)]
    pub steps: u64,
    /// Stop after this step, leaving a checkpoint to --resume from, perhaps with other options
    #[arg(long, value_name = "STEP")]
    pub until: Option<u64>,
    /// Rows a step
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    /// Parts of a batch that are worked on at the same time, each by one thread
    #[arg(long, default_value_t = 2)]
    pub shards: usize,
    /// Tokens a row
    #[arg(long, default_value_t = 256)]
    pub seq_len: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 2e-3)]
    pub lr: f64,
    /// Steps over which it rises
    #[arg(long, default_value_t = 100)]
    pub warmup: u64,
    /// Decay of weights (AdamW)
    #[arg(long, default_value_t = 0.1)]
    pub weight_decay: f32,
    /// Probability of dropping an element of a residual branch
    #[arg(long, default_value_t = 0.2)]
    pub dropout: f32,
    /// Seed of weights, batches, masks and dropout
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Steps between validations
    #[arg(long, default_value_t = 200)]
    pub validate_every: u64,
    /// Steps between checkpoints
    #[arg(long, default_value_t = 100)]
    pub checkpoint_every: u64,
    /// Directory of the checkpoint (by default that of --out with `.checkpoint` added)
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint
    #[arg(long)]
    pub resume: bool,
}

/// Where the checkpoint of a model lies by default.
pub(super) fn checkpoint_beside(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".checkpoint");
    PathBuf::from(name)
}

impl RunArgs {
    /// Refuses what no run can have, naming the option.
    pub fn check(&self) -> Result<()> {
        ensure!(self.batch > 0, "--batch is 0; give at least 1");
        ensure!(self.seq_len > 0, "--seq-len is 0; give at least 1");
        ensure!((0.0..1.0).contains(&self.dropout), "--dropout {} isn't in [0, 1)", self.dropout);
        ensure!(
            self.validation > 0.0 && self.validation < 0.5,
            "--validation {} isn't between 0 and 0.5",
            self.validation
        );
        Ok(())
    }

    /// The recipe, without a teacher and with rows of one length.
    pub fn recipe(&self) -> Recipe {
        Recipe {
            steps: self.steps,
            until: self.until.unwrap_or(self.steps).min(self.steps),
            long_steps: 0,
            batch: self.batch,
            shards: self.shards.max(1),
            seq_len: self.seq_len,
            long_seq_len: self.seq_len,
            lr: self.lr,
            warmup: self.warmup,
            weight_decay: self.weight_decay,
            dropout: self.dropout,
            teacher_share: 0.0,
            validate_every: self.validate_every.max(1),
            checkpoint_every: self.checkpoint_every.max(1),
            seed: self.seed,
            out: self.out.clone(),
            checkpoint: self.checkpoint.clone().unwrap_or_else(|| checkpoint_beside(&self.out)),
        }
    }

    /// The texts of --text.
    pub fn texts(&self) -> Result<Vec<String>> {
        self.text.iter().map(|file| corpus::read(file)).collect()
    }

    /// Writes the tokenizer beside the model and trains by `recipe`.
    pub fn train(
        &self,
        recipe: &Recipe,
        model: Llama,
        teacher: Option<&Llama>,
        corpus: &Corpus,
        tokenizer: &Tokenizer,
    ) -> Result<()> {
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("{} can't be made", self.out.display()))?;
        bpe::save(tokenizer, &self.out)?;
        let specials = (bpe::special(tokenizer, bpe::BOS)?, bpe::special(tokenizer, bpe::EOS)?);
        recipe.run(model, teacher, corpus, specials, self.resume)
    }
}
