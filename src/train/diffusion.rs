//! `pagedraft train diffusion`: makes a model that fills masks (LLaDA) of a causal one, by training it further.
//!
//! The embedding gets one more row, the mask's. Then the model learns on texts of which a drawn share is masked ([`super::masking`]), each
//! token seeing all others; conversions of causal models are known to work (Gong et al., 2024). Rows, checkpoints and
//! resumption are those of `train lm`.

use super::corpus::Corpus;
use super::llama::{Config, Llama};
use super::noise::Noise;
use super::run_args::RunArgs;
use super::{bpe, export};
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use pagedraft_model::checkpoint::{EMBED_TOKENS, LM_HEAD};
use std::path::PathBuf;

#[cfg(test)]
mod tests;

/// Trains a model that fills masks, starting from a causal one.
#[derive(Debug, Clone, clap::Args)]
pub struct TrainDiffusionArgs {
    /// The causal model whose weights and tokenizer it starts with
    #[arg(long, value_name = "DIR")]
    pub start_from: PathBuf,
    /// How the run goes
    #[command(flatten)]
    pub run: RunArgs,
}

/// The causal model with a row for the mask at the end of its embedding, drawn from `seed`, and attention in both directions.
pub(super) fn converted(causal: &Llama, seed: u64) -> Result<Llama> {
    let config = &causal.config;
    ensure!(
        config.num_attention_heads * config.head_dim == config.hidden_size
            && !config.attention_bias
            && !config.head_norms,
        "LLaDA has heads that make up the hidden size ({} here), without biases or norms of heads: start from a Llama of this kind",
        config.hidden_size
    );
    let (hidden, mask) = (config.hidden_size, config.vocab_size as u32);
    let mut tensors = super::checkpoint::copy(&causal.weights)?;
    for name in [EMBED_TOKENS, LM_HEAD] {
        let Some(rows) = tensors.get(name) else { continue };
        let mut noise = Noise::new(seed, "mask", 0);
        let row: Vec<f32> = (0..hidden).map(|_| noise.normal() * 0.5 / (hidden as f32).sqrt()).collect();
        let row = Tensor::from_vec(row, (1, hidden), &Device::Cpu)?;
        let all = Tensor::cat(&[rows, &row], 0)?;
        tensors.insert(name.to_owned(), all);
    }
    let config = Config { vocab_size: config.vocab_size + 1, mask: Some(mask), ..config.clone() };
    Llama::from_tensors(config, &tensors)
}

/// Runs `train diffusion`.
pub fn run(args: &TrainDiffusionArgs) -> Result<()> {
    args.run.check()?;
    let texts = args.run.texts()?;
    let (heads, tails) = Corpus::split(&texts, args.run.validation);
    let causal = export::load(&args.start_from).context("--start-from")?;
    let tokenizer = bpe::load(&args.start_from.join("tokenizer.json"))?;
    let corpus = Corpus::new(&tokenizer, &heads, &tails, &args.run.text, args.run.seq_len)?;
    let model = converted(&causal, args.run.seed)?;
    args.run.train(&args.run.recipe(), model, None, &corpus, &tokenizer)
}
