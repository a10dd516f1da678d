//! `pagedraft train lm`: trains the embedded language models, on a CPU, from plain texts.
//!
//! A target is trained on the text alone; a draft is distilled from it ([`TrainLmArgs::teacher`]).
//! Both come out as Hugging Face directories (Llama architecture, bf16). Training is f32 with
//! candle's autograd over a few fused operations ([`kernels`]), one thread a shard of the batch; the
//! target takes about a quarter of an hour of two cores that have nothing else to do. Everything
//! random is keyed by `--seed` ([`noise`]), so that a killed run goes on with `--resume` as if it
//! had not been killed. It is fastest with `RAYON_NUM_THREADS=1`: the shards are threads enough.
//!
//! ```text
//! pagedraft train lm --out target --text TEXTS/a.txt TEXTS/b.txt
//! pagedraft train lm --out draft --text TEXTS/a.txt TEXTS/b.txt --teacher target --hidden 128 ..
//! pagedraft train lm --out draft --text .. --teacher target --evaluate --held-out TEXTS/c.txt
//! ```

pub mod attention;
pub mod bpe;
pub mod checkpoint;
pub mod corpus;
pub mod diffusion;
pub mod drill;
pub mod drill_args;
pub mod dsa;
pub mod evaluate;
pub mod export;
pub mod kernels;
pub mod llama;
pub mod loss;
pub mod masking;
pub mod noise;
pub mod optimise;
pub mod pruning;
pub mod quiz;
pub mod recall;
mod renaming;
pub mod rows;
pub mod run_args;
pub mod saliency;
pub mod samples;
pub mod shards;
pub mod stage;
pub mod training;

#[cfg(test)]
mod tests;

use anyhow::{Context, Result, ensure};
use corpus::Corpus;
use llama::{Config, Llama};
use run_args::RunArgs;
use std::path::PathBuf;
use training::Recipe;

/// Trains a language model on plain texts, or says how good a trained one is.
#[derive(Debug, Clone, clap::Args)]
pub struct TrainLmArgs {
    /// Use this tokenizer.json (by default the teacher's, else one is trained)
    #[arg(long, value_name = "FILE")]
    pub tokenizer: Option<PathBuf>,
    /// Train a byte-level BPE tokenizer of so many entries
    #[arg(long, value_name = "ENTRIES", default_value_t = 2048, conflicts_with = "tokenizer")]
    pub train_tokenizer: usize,
    /// Distil from the model in this directory
    #[arg(long, value_name = "DIR")]
    pub teacher: Option<PathBuf>,
    /// Start from the weights of the model in this directory, not from fresh ones
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    pub start_from: Option<PathBuf>,
    /// Share of the teacher's distribution in what is learned; the rest is the text itself
    #[arg(long, default_value_t = 0.9)]
    pub teacher_share: f32,
    /// Width of the residual stream
    #[arg(long, default_value_t = 256)]
    pub hidden: usize,
    /// Layers
    #[arg(long, default_value_t = 6)]
    pub layers: usize,
    /// Query heads
    #[arg(long, default_value_t = 8)]
    pub heads: usize,
    /// Key and value heads
    #[arg(long, default_value_t = 4)]
    pub kv_heads: usize,
    /// Elements a head
    #[arg(long, default_value_t = 32)]
    pub head_dim: usize,
    /// Width of the feed-forward layers
    #[arg(long, default_value_t = 704)]
    pub ffn: usize,
    /// The last so many steps have rows of --long-seq-len
    #[arg(long, default_value_t = 80)]
    pub long_steps: u64,
    /// Tokens a row in the last steps (fewer rows, as many tokens)
    #[arg(long, default_value_t = 1024)]
    pub long_seq_len: usize,
    /// Don't train: print losses, and agreement with --teacher, of the model in --out
    #[arg(long)]
    pub evaluate: bool,
    /// With --evaluate: a text that was in no training
    #[arg(long, value_name = "FILE", requires = "evaluate")]
    pub held_out: Option<PathBuf>,
    /// With --evaluate: also write so many tokens
    #[arg(long, value_name = "TOKENS", default_value_t = 0)]
    pub sample: usize,
    /// What the sample continues
    #[arg(long, default_value = "\n")]
    pub prompt: String,
    /// Temperature of the sample (0: the likeliest token)
    #[arg(long, default_value_t = 0.8)]
    pub temperature: f32,
    /// How the run goes
    #[command(flatten)]
    pub run: RunArgs,
}

impl TrainLmArgs {
    fn config(&self, vocab_size: usize) -> Config {
        Config {
            vocab_size,
            hidden_size: self.hidden,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.kv_heads,
            head_dim: self.head_dim,
            intermediate_size: self.ffn,
            rope_theta: 10000.0,
            rms_norm_eps: 1e-5,
            attention_bias: false,
            head_norms: false,
            tied: true,
            mask: None,
        }
    }

    fn recipe(&self) -> Recipe {
        Recipe {
            long_steps: self.long_steps,
            long_seq_len: self.long_seq_len,
            teacher_share: self.teacher_share,
            ..self.run.recipe()
        }
    }

    fn check(&self) -> Result<()> {
        ensure!(self.long_seq_len > 0, "--long-seq-len is 0; give at least 1");
        ensure!(
            (0.0..=1.0).contains(&self.teacher_share),
            "--teacher-share {} isn't in [0, 1]",
            self.teacher_share
        );
        self.run.check()
    }
}

/// Runs `train lm`.
pub fn run(args: &TrainLmArgs) -> Result<()> {
    args.check()?;
    let texts = args.run.texts()?;
    let (heads, tails) = Corpus::split(&texts, args.run.validation);
    let teacher = match &args.teacher {
        Some(folder) => Some(export::load(folder).context("--teacher")?),
        None => None,
    };
    let inherited = match (&args.tokenizer, &args.teacher) {
        (Some(file), _) => Some(file.clone()),
        (None, Some(folder)) => Some(folder.join("tokenizer.json")),
        (None, None) if args.evaluate || args.run.resume => Some(args.run.out.join("tokenizer.json")),
        (None, None) => None,
    };
    let tokenizer = match &inherited {
        Some(file) => bpe::load(file)?,
        None => bpe::train(&heads, args.train_tokenizer)?,
    };
    let longest =
        if args.long_steps > 0 { args.run.seq_len.max(args.long_seq_len) } else { args.run.seq_len };
    let corpus = Corpus::new(&tokenizer, &heads, &tails, &args.run.text, longest)?;
    if args.evaluate {
        return report(args, &tokenizer, teacher.as_ref(), &corpus);
    }
    let config = args.config(tokenizer.get_vocab_size(true));
    if let Some(teacher) = &teacher {
        ensure!(
            teacher.config.vocab_size == config.vocab_size,
            "the teacher knows {} tokens and the tokenizer {}: use the teacher's tokenizer.json",
            teacher.config.vocab_size,
            config.vocab_size
        );
    }
    let model = match &args.start_from {
        None => Llama::new(config, args.run.seed)?,
        Some(folder) => {
            let model = export::load(folder).context("--start-from")?;
            ensure!(
                model.config == config,
                "{} has another shape than asked for: {:?}",
                folder.display(),
                model.config
            );
            model
        }
    };
    args.run.train(&args.recipe(), model, teacher.as_ref(), &corpus, &tokenizer)
}

fn report(
    args: &TrainLmArgs,
    tokenizer: &tokenizers::Tokenizer,
    teacher: Option<&Llama>,
    corpus: &Corpus,
) -> Result<()> {
    let model = export::load(&args.run.out).context("--out")?;
    let held_out = match &args.held_out {
        Some(file) => Some(bpe::encode(tokenizer, &corpus::read(file)?)?),
        None => None,
    };
    let sets = [
        ("training (start)", Some(&corpus.train[..corpus.train.len().min(50_000)])),
        ("validation", Some(&corpus.validation[..])),
        ("held out", held_out.as_deref()),
    ];
    for (name, tokens) in sets {
        let Some(tokens) = tokens else { continue };
        for (who, model, other) in [("model", Some(&model), teacher), ("teacher", teacher, None)] {
            let Some(model) = model else { continue };
            let f = evaluate::figures(model, other, tokens, args.run.seq_len)?;
            print!("{name:17} {who:7} loss {:.4}  right {:.4}", f.loss, f.right);
            if other.is_some() {
                print!("  agreement {:.4}  overlap {:.4}", f.agreement, f.overlap);
            }
            println!("  ({} predictions)", f.predictions);
        }
    }
    if args.sample > 0 {
        let text = evaluate::sample(
            &model,
            tokenizer,
            &args.prompt,
            (args.sample, args.long_seq_len),
            args.temperature,
            args.run.seed,
        )?;
        println!("---\n{text}");
    }
    Ok(())
}
