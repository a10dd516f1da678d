//! `pagedraft train recall`: trains a dense model on plain texts and recall tasks, on a CPU.
//!
//! Pruned prefills can lose only what a model finds in a long prompt; this is a model that finds something. It is a small
//! Llama whose fresh weights hold a [sketch] of circuits that find, in late layers, so that prompts can be pruned behind the
//! layers before. A run goes through `--stages`, from short rows to long ones. Everything random is keyed by `--seed`, so that
//! a killed run goes on with `--resume` as if it had not been killed.
//!
//! ```text
//! pagedraft train recall --out DIR --text TEXTS/a.txt TEXTS/b.txt --tokenizer target/tokenizer.json
//! pagedraft train recall --out DIR --text TEXTS/a.txt TEXTS/b.txt --evaluate
//! pagedraft train recall --out DIR --text TEXTS/a.txt TEXTS/b.txt --write-samples FILE.jsonl --lengths 512
//! ```

pub mod sketch;

use super::drill::Source;
use super::drill_args::DrillArgs;
use super::llama::{Config, Llama};
use super::quiz::text_loss;
use super::rows::{Sizes, recall};
use super::stage::{Kind, Stage};
use super::{bpe, export};
use anyhow::{Context, Result, ensure};
use candle_core::Tensor;
use pagedraft_workloads::tasks::RecallSample;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Trains a dense model on texts and recall tasks, or says how good a trained one is.
#[derive(Debug, Clone, clap::Args)]
pub struct TrainRecallArgs {
    /// Width of the residual stream
    #[arg(long, default_value_t = 128)]
    pub hidden: usize,
    /// Layers
    #[arg(long, default_value_t = 8)]
    pub layers: usize,
    /// Query heads
    #[arg(long, default_value_t = 4)]
    pub heads: usize,
    /// Key and value heads
    #[arg(long, default_value_t = 2)]
    pub kv_heads: usize,
    /// Elements a head
    #[arg(long, default_value_t = 64)]
    pub head_dim: usize,
    /// Width of the feed-forward layers
    #[arg(long, default_value_t = 256)]
    pub ffn: usize,
    /// Base of the rotary frequencies
    #[arg(long, default_value_t = 1e7)]
    pub rope_theta: f64,
    /// Layers whose fresh weights find what was said: the first one of a statement, the second the next one of a chain
    #[arg(long, value_name = "LAYER", num_args = 0.., default_values_t = [5, 6])]
    pub find_layers: Vec<usize>,
    /// Statements of the longest chains
    #[arg(long, default_value_t = 2)]
    pub most_hops: usize,
    /// Stages, each LENGTH:STEPS:dense
    #[arg(long, value_name = "STAGE", num_args = 1.., default_values = [
        "128:1000:dense", "256:1000:dense", "512:1000:dense", "1024:1000:dense", "256:500:dense", "1024:500:dense"
    ])]
    pub stages: Vec<Stage>,
    /// Don't train: write so many samples as --samples to this file, as RULER's JSON lines, of the first of --lengths
    #[arg(long, value_name = "FILE.jsonl")]
    pub write_samples: Option<PathBuf>,
    /// With --write-samples: statements a sample
    #[arg(long, default_value_t = 1)]
    pub statements: usize,
    /// With --write-samples: statements a chain
    #[arg(long, default_value_t = 1)]
    pub hops: usize,
    /// With --write-samples: hide statements in the tails of the texts, which are not trained on
    #[arg(long)]
    pub tails: bool,
    /// With --write-samples: keys and values are words that are neither in training
    #[arg(long)]
    pub new_words: bool,
    /// How the run goes
    #[command(flatten)]
    pub drill: DrillArgs,
}

impl TrainRecallArgs {
    fn config(&self, vocab_size: usize) -> Config {
        Config {
            vocab_size,
            hidden_size: self.hidden,
            num_hidden_layers: self.layers,
            num_attention_heads: self.heads,
            num_key_value_heads: self.kv_heads,
            head_dim: self.head_dim,
            intermediate_size: self.ffn,
            rope_theta: self.rope_theta,
            rms_norm_eps: 1e-5,
            attention_bias: false,
            head_norms: false,
            tied: true,
            mask: None,
        }
    }

    fn fresh(&self, vocab_size: usize) -> Result<Llama> {
        let (config, seed) = (self.config(vocab_size), self.drill.seed);
        if self.find_layers.is_empty() {
            return Llama::new(config, seed);
        }
        let mut values = Llama::values(&config, seed);
        sketch::draw(&config, &self.find_layers, seed, &mut values)?;
        Llama::from_values(config, values)
    }
}

/// Runs `train recall`.
pub fn run(args: &TrainRecallArgs) -> Result<()> {
    ensure!(args.most_hops > 0, "--most-hops is 0: the shortest chain is one statement");
    if let Some(stage) = args.stages.iter().find(|stage| stage.kind != Kind::Dense) {
        anyhow::bail!("--stages {stage}: the model has no indexer, so that every stage is dense");
    }
    let longest = args.stages.iter().map(|stage| stage.time).max().unwrap_or(0);
    let materials = args.drill.materials(longest)?;
    let source = materials.source()?;
    if args.drill.evaluate {
        return report(args, &source);
    }
    if let Some(file) = &args.write_samples {
        return write_samples(args, &source, file);
    }
    let vocabulary = |model: &Llama| model.config.vocab_size;
    let model = args.drill.start(&source, export::load, vocabulary, |tokens| args.fresh(tokens))?;
    args.drill.run(args.stages.clone(), args.most_hops, model, &source)
}

/// Each sample asks one question: its prompt ends before the answer.
fn write_samples(args: &TrainRecallArgs, source: &Source<'_>, file: &Path) -> Result<()> {
    let length = *args.drill.lengths.first().context("--lengths names no length")?;
    let text = if args.tails { &source.held_out } else { &source.text };
    let words = if args.new_words { &source.words.held_out } else { &source.words.trained };
    let (needles, hops) = (args.statements..=args.statements, args.hops..=args.hops);
    let sizes = Sizes { length, needles, questions: 1, hops };
    let generator = recall(source.tokenizer, text, words, sizes, args.drill.seed)?;
    let mut lines = String::new();
    for index in 0..args.drill.samples {
        let RecallSample { tokens, answers } = generator.sample(index as u64);
        let answer = answers.into_iter().next().context("a sample without a question")?;
        let line = json!({
            "index": index,
            "input": bpe::decode(source.tokenizer, &tokens[..answer.start])?,
            "outputs": [bpe::decode(source.tokenizer, &tokens[answer])?.trim()],
            "length": length,
        });
        lines += &format!("{line}\n");
    }
    export::write_whole(file, lines.as_bytes())
}

fn report(args: &TrainRecallArgs, source: &Source<'_>) -> Result<()> {
    let model = export::load(&args.drill.out).context("--out")?.frozen()?;
    let ask = |inputs: &[u32], time: usize, places: Vec<usize>| -> Result<Tensor> {
        let hidden = model.hidden(inputs, time, None, &mut |_, x| Ok((x, None)))?;
        model.logits(&hidden, places)
    };
    let loss = text_loss(&source.corpus.validation, 1024, &ask)?;
    println!("text that was not trained on, windows of 1024: loss {loss:.4}");
    for quiz in args.drill.quizzes(&[(1, 1), (4, 1), (16, 1), (2, 2), (8, 2)]) {
        println!("{quiz}: {:.1} %", 100.0 * quiz.accuracy(source, &ask)?);
    }
    Ok(())
}
