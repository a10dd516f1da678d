//! `pagedraft train saliency`: how much each prompt token matters to what follows, behind each layer.
//!
//! The first stage of saliency-driven token pruning (SDTP, arXiv:2504.04514, equation 3). Behind a layer the saliency of a token with the
//! residual row x is `dT/dx . x`: the sum over the row's elements of gradient times value. T is the mean logarithm of the
//! probabilities that the model gives to the response's tokens, the final norm included. A token of positive saliency
//! makes the response likelier. Samples are computed one by one, so that there is no padding that could count.
//!
//! ```text
//! pagedraft train saliency --model builtin:recall --samples a.jsonl --out saliency.safetensors
//! ```

use super::export::save_tensors;
use super::llama::Llama;
use super::loss::cross_entropy;
use super::samples::{Sample, SampleArgs};
use super::shards::in_shards;
use crate::session::{ModelRef, open_checkpoint};
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor, Var};
use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Works out how much each token of a set of prompts matters.
#[derive(Debug, Clone, clap::Args)]
pub struct TrainSaliencyArgs {
    /// A directory of the Llama or Qwen family, or builtin:NAME
    #[arg(long, value_name = "DIR|builtin:NAME")]
    pub model: OsString,
    /// Which samples
    #[command(flatten)]
    pub samples: SampleArgs,
    /// The file that is written (safetensors): for each sample its tokens and its saliency
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Samples that are worked on at the same time, each by one thread
    #[arg(long, default_value_t = 2)]
    pub shards: usize,
}

/// The saliency of a sample's prompt tokens behind each layer.
pub fn saliency(model: &Llama, sample: &Sample) -> Result<Vec<Vec<f32>>> {
    let inputs = sample.inputs();
    let mut streams: Vec<(Tensor, Var)> = Vec::new();
    let hidden = model.hidden(inputs, inputs.len(), None, &mut |_, x| {
        // The gradient of what is added to the stream is that of the stream.
        let added = Var::zeros(x.shape(), x.dtype(), &Device::Cpu)?;
        let next = (&x + added.as_tensor())?;
        streams.push((x.detach(), added));
        Ok((next, None))
    })?;
    let (places, next) = sample.predictions();
    let gradients = cross_entropy(&model.logits(&hidden, places)?, next, None)?.objective.backward()?;
    let rows = streams.into_iter().map(|(x, added)| {
        let gradient = gradients.get(&added).context("the residual stream got no gradient")?;
        // The loss is -T.
        let rows = (x * gradient)?.sum(1)?.neg()?.to_vec1::<f32>()?;
        Ok(rows[..sample.prompt].to_vec())
    });
    rows.collect()
}

/// Saliency by sample.
#[derive(Debug, Clone, Default)]
pub struct Salience {
    /// By a sample's id, and then by layer: a number for each prompt token.
    pub by_id: HashMap<String, Vec<Vec<f32>>>,
}

impl Salience {
    /// Writes it with the tokens that it belongs to.
    pub fn save(&self, samples: &[Sample], file: &Path) -> Result<()> {
        let mut tensors = HashMap::new();
        for sample in samples {
            let Some(layers) = self.by_id.get(&sample.id) else { continue };
            let shape = (layers.len(), sample.prompt);
            let tensor = |values| Tensor::from_vec(values, shape, &Device::Cpu);
            tensors.insert(format!("{}.saliency", sample.id), tensor(layers.concat())?);
            let tokens = Tensor::from_slice(&sample.tokens, sample.tokens.len(), &Device::Cpu)?;
            tensors.insert(format!("{}.tokens", sample.id), tokens);
        }
        save_tensors(file, &tensors)
    }

    /// Reads what [`Salience::save`] wrote.
    pub fn read(file: &Path) -> Result<Self> {
        let tensors = candle_core::safetensors::load(file, &Device::Cpu).with_context(|| {
            format!("{} can't be read: give a file that `train saliency` wrote", file.display())
        })?;
        let mut by_id = HashMap::new();
        for (name, tensor) in tensors {
            if let Some(id) = name.strip_suffix(".saliency") {
                by_id.insert(id.to_owned(), tensor.to_vec2::<f32>()?);
            }
        }
        ensure!(!by_id.is_empty(), "{} holds no saliency", file.display());
        Ok(Self { by_id })
    }

    /// The saliency of a sample behind `layer`.
    pub fn of(&self, sample: &Sample, layer: usize) -> Result<&[f32]> {
        let layers = self.by_id.get(&sample.id).with_context(|| {
            format!(
                "there is no saliency of sample {}: run `train saliency` on the same samples with the same tokenizer",
                sample.id
            )
        })?;
        let rows = layers.get(layer).with_context(|| {
            format!("there is saliency behind {} layers, and none behind layer {layer}", layers.len())
        })?;
        ensure!(rows.len() == sample.prompt, "the saliency of sample {} has another length", sample.id);
        Ok(rows)
    }
}

/// Runs `train saliency`.
pub fn run(args: &TrainSaliencyArgs) -> Result<()> {
    let model = ModelRef::from(args.model.clone());
    let checkpoint = open_checkpoint(&model)?;
    let samples = args.samples.read(&checkpoint.tokenizer()?)?;
    let model = Llama::from_checkpoint(&checkpoint)?.frozen()?;
    let started = Instant::now();
    let mut salience = Salience::default();
    let mut tokens = 0;
    for part in samples.chunks(50) {
        let found = in_shards(part, args.shards, |sample| saliency(&model, sample))?;
        for (sample, layers) in part.iter().zip(found) {
            tokens += sample.tokens.len();
            salience.by_id.insert(sample.id.clone(), layers);
        }
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{} of {} samples, {tokens} tokens, {:.0} tokens/s",
            salience.by_id.len(),
            samples.len(),
            tokens as f64 / seconds
        );
    }
    salience.save(&samples, &args.out)?;
    println!("{}", args.out.display());
    Ok(())
}
