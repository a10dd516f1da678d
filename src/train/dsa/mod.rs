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

pub mod experts;
pub mod export;
pub mod fresh;
pub mod indexer;
pub mod latent;
pub mod model;
pub mod pupil;
pub mod shape;
#[cfg(test)]
mod tests;

use super::drill::Source;
use super::drill_args::DrillArgs;
use super::quiz::text_loss;
use super::stage::Stage;
use anyhow::{Context, Result};
use model::{Attention, Sparse};
use pupil::Apprentice;
use shape::Shape;

/// Trains the sparse model, or says how good a trained one is.
#[derive(Debug, Clone, clap::Args)]
pub struct TrainDsaArgs {
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
    /// Share of the token rows that the indexers learn from, beside those of answers
    #[arg(long, default_value_t = 0.125)]
    pub lesson_share: f32,
    /// How the run goes
    #[command(flatten)]
    pub drill: DrillArgs,
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
            yarn: None,
        }
    }
}

/// Runs `train dsa`.
pub fn run(args: &TrainDsaArgs) -> Result<()> {
    let longest = args.stages.iter().map(|stage| stage.time).max().unwrap_or(0);
    let materials = args.drill.materials(longest)?;
    let source = materials.source()?;
    if args.drill.evaluate {
        return report(args, &source);
    }
    let fresh = |tokens| Sparse::new(args.shape(tokens), args.drill.seed);
    let model = args.drill.start(&source, export::load, |model| model.shape.vocab_size, fresh)?;
    let apprentice = Apprentice { model, lesson_share: args.lesson_share };
    args.drill.run(args.stages.clone(), 1, apprentice, &source)
}

fn report(args: &TrainDsaArgs, source: &Source<'_>) -> Result<()> {
    let model = export::load(&args.drill.out).context("--out")?;
    let ways = [
        ("dense", Attention::Dense),
        ("sparse", Attention::Sparse),
        ("random", Attention::Random(args.drill.seed)),
    ];
    let ask = |attention: Attention| {
        let model = &model;
        move |inputs: &[u32], time: usize, places: Vec<usize>| {
            let pass = model.forward(inputs, time, attention, &[], None)?;
            model.logits(&pass.hidden.detach(), places)
        }
    };
    for (name, attention) in ways {
        let loss = text_loss(&source.corpus.validation, 1024, &ask(attention))?;
        println!("text that was not trained on, windows of 1024: {name:6} loss {loss:.4}");
    }
    for quiz in args.drill.quizzes(&[(1, 1), (4, 1), (16, 1)]) {
        print!("{quiz}:");
        for (name, attention) in ways {
            print!("  {name} {:.1} %", 100.0 * quiz.accuracy(source, &ask(attention))?);
        }
        println!();
    }
    Ok(())
}
