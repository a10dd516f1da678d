//! `pagedraft train dsa`: trains the embedded sparse model, on a CPU, from plain texts and recall tasks.
//!
//! The model is a DeepSeek-V3.2 of some million parameters: latents, a lightning indexer, experts. A run goes
//! through `--stages`, from short rows to long ones: attention is dense first, then the indexers learn to foretell
//! it, then attention sees what they choose. Everything random is keyed by `--seed`, so that a killed run goes on with
//! `--resume` as if it had not been killed.
//!
//! ```text
//! pagedraft train dsa --out DIR --text TEXTS/a.txt TEXTS/b.txt --tokenizer target/tokenizer.json
//! pagedraft train dsa --out DIR --text TEXTS/a.txt TEXTS/b.txt --evaluate
//! ```

pub mod evaluate;
pub mod experts;
pub mod export;
pub mod fresh;
pub mod indexer;
pub mod latent;
pub mod model;
pub mod rows;
pub mod shape;
pub mod stage;
#[cfg(test)]
mod tests;
pub mod training;

use super::corpus::{self, Corpus};
use super::{bpe, checkpoint_beside};
use anyhow::{Context, Result, ensure};
use evaluate::{Quiz, accuracy, text_loss};
use model::{Attention, Sparse};
use rows::Words;
use shape::Shape;
use stage::Stage;
use std::path::PathBuf;
use training::{Recipe, Source};

/// Trains the sparse model, or says how good a trained one is.
#[derive(Debug, Clone, clap::Args)]
pub struct TrainDsaArgs {
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
    /// Width of the residual stream
    #[arg(long, default_value_t = 128)]
    pub hidden: usize,
    /// Layers
    #[arg(long, default_value_t = 3)]
    pub layers: usize,
    /// Heads
    #[arg(long, default_value_t = 4)]
    pub heads: usize,
    /// Width of the compressed queries
    #[arg(long, default_value_t = 128)]
    pub q_lora: usize,
    /// Width of the compressed keys and values
    #[arg(long, default_value_t = 96)]
    pub kv_lora: usize,
    /// Elements of a query head that are not rotated
    #[arg(long, default_value_t = 32)]
    pub nope_dim: usize,
    /// Elements of a query head that are rotated
    #[arg(long, default_value_t = 16)]
    pub rope_dim: usize,
    /// Elements of a head's value
    #[arg(long, default_value_t = 32)]
    pub value_dim: usize,
    /// Width of the dense feed-forward layers
    #[arg(long, default_value_t = 256)]
    pub ffn: usize,
    /// First layers without experts
    #[arg(long, default_value_t = 1)]
    pub dense_layers: usize,
    /// Experts of each other layer, beside the shared one
    #[arg(long, default_value_t = 8)]
    pub experts: usize,
    /// Experts a token, beside the shared one
    #[arg(long, default_value_t = 2)]
    pub experts_per_token: usize,
    /// Width of an expert
    #[arg(long, default_value_t = 64)]
    pub expert_ffn: usize,
    /// Heads of the indexer
    #[arg(long, default_value_t = 4)]
    pub index_heads: usize,
    /// Elements of a head of the indexer
    #[arg(long, default_value_t = 48)]
    pub index_dim: usize,
    /// Keys that a query attends to
    #[arg(long, default_value_t = 64)]
    pub index_topk: usize,
    /// Base of the rotary frequencies
    #[arg(long, default_value_t = 1000.0)]
    pub rope_theta: f64,
    /// Stages, each LENGTH:STEPS:KIND; kinds are dense, index (dense, and the indexers learn) and sparse
    #[arg(long, value_name = "STAGE", num_args = 1.., default_values = [
        "128:60:index", "256:40:index", "512:40:index", "1024:100:index", "1024:120:sparse", "256:120:sparse",
        "1024:40:sparse"
    ])]
    pub stages: Vec<Stage>,
    /// Stop after this step, leaving a checkpoint to --resume from, perhaps with other options
    #[arg(long, value_name = "STEP")]
    pub until: Option<u64>,
    /// Tokens a step
    #[arg(long, default_value_t = 2048)]
    pub tokens: usize,
    /// Share of the rows that are text; the others ask questions
    #[arg(long, default_value_t = 0.25)]
    pub text_share: f64,
    /// Weight of the loss on answers; that on text has 1
    #[arg(long, default_value_t = 1.0)]
    pub answer_weight: f64,
    /// Share of the token rows that the indexers learn from, beside those of answers
    #[arg(long, default_value_t = 0.125)]
    pub lesson_share: f32,
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

impl TrainDsaArgs {
    fn shape(&self, vocab_size: usize) -> Shape {
        Shape {
            vocab_size,
            hidden_size: self.hidden,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            q_lora_rank: self.q_lora,
            kv_lora_rank: self.kv_lora,
            qk_nope_head_dim: self.nope_dim,
            qk_rope_head_dim: self.rope_dim,
            v_head_dim: self.value_dim,
            intermediate_size: self.ffn,
            first_k_dense_replace: self.dense_layers,
            n_routed_experts: self.experts,
            num_experts_per_tok: self.experts_per_token,
            moe_intermediate_size: self.expert_ffn,
            routed_scaling_factor: 1.0,
            index_n_heads: self.index_heads,
            index_head_dim: self.index_dim,
            index_topk: self.index_topk,
            rope_theta: self.rope_theta,
        }
    }

    fn recipe(&self) -> Recipe {
        Recipe {
            stages: self.stages.clone(),
            until: self.until.unwrap_or(u64::MAX),
            tokens: self.tokens,
            text_share: self.text_share,
            answer_weight: self.answer_weight,
            lesson_share: self.lesson_share,
            shards: self.shards.max(1),
            lr: self.lr,
            warmup: self.warmup,
            weight_decay: self.weight_decay,
            dropout: self.dropout,
            checkpoint_every: self.checkpoint_every.max(1),
            seed: self.seed,
            out: self.out.clone(),
            checkpoint: self.checkpoint.clone().unwrap_or_else(|| checkpoint_beside(&self.out)),
        }
    }

    fn check(&self) -> Result<()> {
        ensure!((0.0..1.0).contains(&self.dropout), "--dropout {} isn't in [0, 1)", self.dropout);
        ensure!((0.0..=1.0).contains(&self.text_share), "--text-share {} isn't in [0, 1]", self.text_share);
        ensure!(
            self.validation > 0.0 && self.validation < 0.5,
            "--validation {} isn't between 0 and 0.5",
            self.validation
        );
        Ok(())
    }
}

/// Runs `train dsa`.
pub fn run(args: &TrainDsaArgs) -> Result<()> {
    args.check()?;
    let texts = args.text.iter().map(|file| corpus::read(file)).collect::<Result<Vec<_>>>()?;
    let (heads, tails) = Corpus::split(&texts, args.validation);
    let tokenizer = bpe::load(args.tokenizer.as_ref().unwrap_or(&args.out.join("tokenizer.json")))?;
    let longest = args.stages.iter().map(|stage| stage.time).max().unwrap_or(0);
    let corpus = Corpus::new(&tokenizer, &heads, &tails, &args.text, longest)?;
    let source = Source {
        corpus: &corpus,
        text: heads.concat(),
        held_out: tails.concat(),
        words: Words::of(&tokenizer)?,
        tokenizer: &tokenizer,
        specials: (bpe::special(&tokenizer, bpe::BOS)?, bpe::special(&tokenizer, bpe::EOS)?),
    };
    if args.evaluate {
        return report(args, &source);
    }
    let model = Sparse::new(args.shape(tokenizer.get_vocab_size(true)), args.seed)?;
    std::fs::create_dir_all(&args.out).with_context(|| format!("{} can't be made", args.out.display()))?;
    bpe::save(&tokenizer, &args.out)?;
    args.recipe().run(model, &source, args.resume)
}

fn report(args: &TrainDsaArgs, source: &Source<'_>) -> Result<()> {
    let model = export::load(&args.out).context("--out")?;
    let ways = [
        ("dense", Attention::Dense),
        ("sparse", Attention::Sparse),
        ("random", Attention::Random(args.seed)),
    ];
    for (name, attention) in ways {
        let loss = text_loss(&model, &source.corpus.validation, 1024, attention)?;
        println!("text that was not trained on, windows of 1024: {name:6} loss {loss:.4}");
    }
    for &length in &args.lengths {
        for (needles, new_words) in [(1, false), (1, true), (4, false), (4, true), (16, false)] {
            // The seed is none of training's, whose seeds come out of a mixer.
            let quiz = Quiz { length, needles, samples: args.samples, new_words, seed: args.seed };
            print!(
                "length {length:5}, {needles:2} statements, {} words, {} samples:",
                if new_words { "new  " } else { "known" },
                args.samples
            );
            for (name, attention) in ways {
                print!("  {name} {:.1} %", 100.0 * accuracy(&model, source, &quiz, attention)?);
            }
            println!();
        }
    }
    Ok(())
}
