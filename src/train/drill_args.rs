//! The options that the trainers on texts and recall tasks share.

use super::bpe;
use super::corpus::{self, Corpus};
use super::drill::{Drill, Pupil, Source};
use super::quiz::Quiz;
use super::renaming::Renaming;
use super::rows::Words;
use super::run_args::checkpoint_beside;
use super::stage::Stage;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

/// How a run on texts and recall tasks goes.
#[derive(Debug, Clone, clap::Args)]
pub struct DrillArgs {
    /// Directory of the model: written when training, read with --evaluate
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
    /// Plain texts (UTF-8) to train on and to hide statements in
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub text: Vec<PathBuf>,
    /// Tail of each text that is not trained on, as a share of it
    #[arg(long, default_value_t = 0.05)]
    pub validation: f64,
    /// Use this tokenizer.json (by default that of --out)
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Start from the weights of this model, in its shape, in place of fresh ones; moments and learning rate start afresh
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,
    /// Stop after this step, leaving a checkpoint to --resume from, perhaps with other options
    #[arg(long, value_name = "STEP")]
    pub until: Option<u64>,
    /// Tokens a step
    #[arg(long, default_value_t = 2048)]
    pub tokens: usize,
    /// Share of the rows that are text; the others ask questions
    #[arg(long, default_value_t = 0.25)]
    pub text_share: f64,
    /// Share of the samples with questions in which other tokens stand for keys and values
    #[arg(long, default_value_t = 0.5)]
    pub renamed_share: f32,
    /// Weight of the loss on answers; that on text has 1
    #[arg(long, default_value_t = 1.0)]
    pub answer_weight: f64,
    /// Parts of a batch that are worked on at the same time, each by one thread
    #[arg(long, default_value_t = 2)]
    pub shards: usize,
    /// Highest learning rate
    #[arg(long, default_value_t = 2e-3)]
    pub lr: f64,
    /// Steps over which it rises
    #[arg(long, default_value_t = 30)]
    pub warmup: u64,
    /// Decay of weights (AdamW)
    #[arg(long, default_value_t = 0.05)]
    pub weight_decay: f32,
    /// Probability of dropping an element of a residual branch
    #[arg(long, default_value_t = 0.0)]
    pub dropout: f32,
    /// Seed of weights, rows and dropout
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Steps between checkpoints
    #[arg(long, default_value_t = 20)]
    pub checkpoint_every: u64,
    /// Directory of the checkpoint (by default that of --out with `.checkpoint` added)
    #[arg(long, value_name = "DIR")]
    pub checkpoint: Option<PathBuf>,
    /// Go on from the checkpoint
    #[arg(long)]
    pub resume: bool,
    /// Don't train: print how often the model in --out finds what texts hide
    #[arg(long)]
    pub evaluate: bool,
    /// With --evaluate: lengths of the samples
    #[arg(long, value_name = "TOKENS", num_args = 1.., default_values_t = [1024, 2048])]
    pub lengths: Vec<usize>,
    /// With --evaluate: samples of each kind
    #[arg(long, default_value_t = 200)]
    pub samples: usize,
}

/// The texts and the tokenizer of a run.
pub struct Materials {
    tokenizer: Tokenizer,
    corpus: Corpus,
    heads: String,
    tails: String,
    renamed_share: f32,
    seed: u64,
}

impl Materials {
    /// What rows are drawn from.
    pub fn source(&self) -> Result<Source<'_>> {
        let tokenizer = &self.tokenizer;
        let words = Words::of(tokenizer)?;
        let renaming = (self.renamed_share > 0.0)
            .then(|| Renaming::new(tokenizer, &words, self.renamed_share, self.seed))
            .transpose()?;
        Ok(Source {
            corpus: &self.corpus,
            text: self.heads.clone(),
            held_out: self.tails.clone(),
            words,
            renaming,
            tokenizer,
            specials: (bpe::special(tokenizer, bpe::BOS)?, bpe::special(tokenizer, bpe::EOS)?),
        })
    }
}

impl DrillArgs {
    /// The model of --from, which `load` reads, or a `fresh` one. Its `vocabulary` must be the tokenizer's.
    pub fn start<M>(
        &self,
        source: &Source<'_>,
        load: impl FnOnce(&Path) -> Result<M>,
        vocabulary: impl FnOnce(&M) -> usize,
        fresh: impl FnOnce(usize) -> Result<M>,
    ) -> Result<M> {
        let tokens = source.tokenizer.get_vocab_size(true);
        let Some(folder) = &self.from else { return fresh(tokens) };
        let model = load(folder).context("--from")?;
        let found = vocabulary(&model);
        ensure!(
            found == tokens,
            "--from {}: the model has {found} tokens and the tokenizer {tokens}: give the model's own with --tokenizer",
            folder.display()
        );
        Ok(model)
    }

    /// Reads texts and tokenizer. The longest row that will be drawn has `longest` tokens.
    pub fn materials(&self, longest: usize) -> Result<Materials> {
        ensure!((0.0..1.0).contains(&self.dropout), "--dropout {} isn't in [0, 1)", self.dropout);
        ensure!((0.0..=1.0).contains(&self.text_share), "--text-share {} isn't in [0, 1]", self.text_share);
        ensure!(
            (0.0..=1.0).contains(&self.renamed_share),
            "--renamed-share {} isn't in [0, 1]",
            self.renamed_share
        );
        ensure!(
            self.validation > 0.0 && self.validation < 0.5,
            "--validation {} isn't between 0 and 0.5",
            self.validation
        );
        let texts = self.text.iter().map(|file| corpus::read(file)).collect::<Result<Vec<_>>>()?;
        let (heads, tails) = Corpus::split(&texts, self.validation);
        let tokenizer = bpe::load(self.tokenizer.as_ref().unwrap_or(&self.out.join("tokenizer.json")))?;
        let corpus = Corpus::new(&tokenizer, &heads, &tails, &self.text, longest)?;
        let (heads, tails) = (heads.concat(), tails.concat());
        Ok(Materials { tokenizer, corpus, heads, tails, renamed_share: self.renamed_share, seed: self.seed })
    }

    /// Trains `model` through `stages`, with chains of up to `most_hops` statements.
    pub fn run<P: Pupil>(
        &self,
        stages: Vec<Stage>,
        most_hops: usize,
        model: P,
        source: &Source<'_>,
    ) -> Result<()> {
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("{} can't be made", self.out.display()))?;
        bpe::save(source.tokenizer, &self.out)?;
        let drill = Drill {
            stages,
            until: self.until.unwrap_or(u64::MAX),
            tokens: self.tokens,
            text_share: self.text_share,
            answer_weight: self.answer_weight,
            most_hops,
            shards: self.shards.max(1),
            lr: self.lr,
            warmup: self.warmup,
            weight_decay: self.weight_decay,
            dropout: self.dropout,
            checkpoint_every: self.checkpoint_every.max(1),
            seed: self.seed,
            out: self.out.clone(),
            checkpoint: self.checkpoint.clone().unwrap_or_else(|| checkpoint_beside(&self.out)),
        };
        drill.run(model, source, self.resume)
    }

    /// The questions of --evaluate, for each length: so many statements, in chains of so many, of words that were keys and
    /// values in training, and of others.
    pub fn quizzes(&self, kinds: &[(usize, usize)]) -> Vec<Quiz> {
        let words = |(needles, hops)| [false, true].map(|new_words| (needles, hops, new_words));
        let kinds: Vec<_> = kinds.iter().copied().flat_map(words).collect();
        let quiz = |length, (needles, hops, new_words)| {
            // The seed is none of training's, whose seeds come out of a mixer.
            Quiz { length, needles, hops, samples: self.samples, new_words, seed: self.seed }
        };
        self.lengths.iter().flat_map(|&length| kinds.iter().map(move |&kind| quiz(length, kind))).collect()
    }
}
