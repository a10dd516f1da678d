//! A Llama that can be differentiated: the architecture of the exported checkpoints, over candle
//! variables.

use super::attention::{Heads, Rotary, attend};
use super::kernels::{Dropout, RmsNorm, SwiGlu, linear};
use super::noise::{Noise, scramble};
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor, Var};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The shape of a model, in the words of a Hugging Face `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Tokens the model knows.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; each serves the same number of query heads.
    pub num_key_value_heads: usize,
    /// Elements a head.
    pub head_dim: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// What RMSNorm adds to the mean square.
    pub rms_norm_eps: f64,
}

impl Config {
    /// Refuses shapes that no model can have, naming the option to change.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [
            ("--hidden", self.hidden_size),
            ("--layers", self.num_hidden_layers),
            ("--heads", self.num_attention_heads),
            ("--kv-heads", self.num_key_value_heads),
            ("--head-dim", self.head_dim),
            ("--ffn", self.intermediate_size),
        ] {
            ensure!(value > 0, "{name} is 0; give at least 1");
        }
        ensure!(
            self.num_attention_heads.is_multiple_of(self.num_key_value_heads),
            "--heads {} can't be shared out among --kv-heads {}: make it a multiple",
            self.num_attention_heads,
            self.num_key_value_heads
        );
        ensure!(
            self.head_dim.is_multiple_of(2),
            "--head-dim {} is odd: the rotary embedding needs pairs",
            self.head_dim
        );
        Ok(())
    }

    /// Names and shapes of the tensors, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, ffn) = (self.hidden_size, self.intermediate_size);
        let q = self.num_attention_heads * self.head_dim;
        let kv = self.num_key_value_heads * self.head_dim;
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_hidden_layers {
            for (name, shape) in [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![q, hidden]),
                ("self_attn.k_proj", vec![kv, hidden]),
                ("self_attn.v_proj", vec![kv, hidden]),
                ("self_attn.o_proj", vec![hidden, q]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![ffn, hidden]),
                ("mlp.up_proj", vec![ffn, hidden]),
                ("mlp.down_proj", vec![hidden, ffn]),
            ] {
                all.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        all.push(("model.norm.weight".to_owned(), vec![hidden]));
        all
    }

    /// Parameters in all (the embedding, which is also the output head, counted once).
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }
}

struct Layer {
    attention_norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    ffn_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

/// What is dropped in one training step.
#[derive(Debug, Clone, Copy)]
pub struct Dropping {
    /// The probability that an element of a residual branch is dropped.
    pub rate: f32,
    /// The key of this step's masks.
    pub key: u64,
}

/// A model in training (or frozen, as a teacher).
pub struct Llama {
    /// Its shape.
    pub config: Config,
    /// Its weights by tensor name. Tensors share storage with these: setting one changes the model.
    pub weights: BTreeMap<String, Var>,
    embedding: Tensor,
    norm: Tensor,
    layers: Vec<Layer>,
}

impl Llama {
    /// A model with fresh weights, drawn from `seed`: normal, deviation `0.5 / sqrt(hidden)`, that of
    /// projections back into the residual stream divided by `sqrt(2 layers)` (GPT-2); norms are 1.
    pub fn new(config: Config, seed: u64) -> Result<Self> {
        config.check()?;
        let deviation = 0.5 / (config.hidden_size as f32).sqrt();
        let residual = deviation / (2.0 * config.num_hidden_layers as f32).sqrt();
        let mut weights = HashMap::new();
        for (index, (name, shape)) in config.tensors().into_iter().enumerate() {
            let count = shape.iter().product();
            let mut noise = Noise::new(seed, "weights", index as u64);
            let values: Vec<f32> = if name.ends_with("norm.weight") {
                vec![1.0; count]
            } else if name.contains("o_proj") || name.contains("down_proj") {
                (0..count).map(|_| noise.normal() * residual).collect()
            } else {
                (0..count).map(|_| noise.normal() * deviation).collect()
            };
            weights.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        Self::from_tensors(config, &weights)
    }

    /// A model from f32 tensors under their checkpoint names.
    pub fn from_tensors(config: Config, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        config.check()?;
        let mut weights = BTreeMap::new();
        for (name, shape) in config.tensors() {
            let tensor = tensors.get(&name).with_context(|| format!("tensor {name} is missing"))?;
            ensure!(
                tensor.dims() == shape,
                "tensor {name} has shape {:?}, but the configuration says {shape:?}",
                tensor.dims()
            );
            weights.insert(name, Var::from_tensor(tensor)?);
        }
        let get = |name: &str| -> Result<Tensor> {
            let var: &Var = weights.get(name).with_context(|| format!("tensor {name} is missing"))?;
            Ok(var.as_tensor().clone())
        };
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                let get = |name: &str| get(&format!("model.layers.{layer}.{name}.weight"));
                Ok(Layer {
                    attention_norm: get("input_layernorm")?,
                    q: get("self_attn.q_proj")?,
                    k: get("self_attn.k_proj")?,
                    v: get("self_attn.v_proj")?,
                    o: get("self_attn.o_proj")?,
                    ffn_norm: get("post_attention_layernorm")?,
                    gate: get("mlp.gate_proj")?,
                    up: get("mlp.up_proj")?,
                    down: get("mlp.down_proj")?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let (embedding, norm) = (get("model.embed_tokens.weight")?, get("model.norm.weight")?);
        Ok(Self { config, weights, embedding, norm, layers })
    }

    /// Scores of every next token: `tokens` is `[batch, time]` row by row, the result
    /// `[batch * time, vocab]`. Nothing is dropped without `dropping`.
    pub fn forward(&self, tokens: &[u32], time: usize, dropping: Option<Dropping>) -> Result<Tensor> {
        ensure!(
            time > 0 && tokens.len().is_multiple_of(time),
            "{} tokens don't make rows of {time}",
            tokens.len()
        );
        let config = &self.config;
        let rotary = Arc::new(Rotary::new(time, config.head_dim, config.rope_theta));
        let drop = |x: Tensor, site: usize| -> candle_core::Result<Tensor> {
            match dropping {
                Some(Dropping { rate, key }) if rate > 0.0 => {
                    x.apply_op1(Dropout { key: scramble(key ^ scramble(site as u64)), rate })
                }
                _ => Ok(x),
            }
        };
        let ids = Tensor::from_slice(tokens, tokens.len(), &Device::Cpu)?;
        let mut x = drop(self.embedding.index_select(&ids, 0)?, 0)?;
        for (index, layer) in self.layers.iter().enumerate() {
            let branch = self.attention(layer, &x, time, &rotary)?;
            x = (x + drop(branch, 2 * index + 1)?)?;
            let normed = self.norm(&x, &layer.ffn_norm)?;
            let gate = linear(&normed, &layer.gate)?;
            let up = linear(&normed, &layer.up)?;
            let branch = linear(&gate.apply_op2(&up, SwiGlu)?, &layer.down)?;
            x = (x + drop(branch, 2 * index + 2)?)?;
        }
        Ok(linear(&self.norm(&x, &self.norm)?, &self.embedding)?)
    }

    fn norm(&self, x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
        x.apply_op2(weight, RmsNorm { eps: self.config.rms_norm_eps as f32 })
    }

    fn attention(
        &self,
        layer: &Layer,
        x: &Tensor,
        time: usize,
        rotary: &Arc<Rotary>,
    ) -> candle_core::Result<Tensor> {
        let config = &self.config;
        let (kv_heads, dim) = (config.num_key_value_heads, config.head_dim);
        let batch = x.dim(0)? / time;
        let group = config.num_attention_heads / kv_heads;
        let heads = |heads: usize, rotary: Option<&Arc<Rotary>>, merge: bool| Heads {
            batch,
            time,
            heads,
            dim,
            rotary: rotary.cloned(),
            merge,
        };
        let x = self.norm(x, &layer.attention_norm)?;
        let split = |weight: &Tensor, n: usize, rotary: Option<&Arc<Rotary>>| {
            linear(&x, weight)?.apply_op1(heads(n, rotary, false))
        };
        // The query heads that share a key head are stacked as rows of one product.
        let stacked = (batch * kv_heads, group * time, dim);
        let q = split(&layer.q, config.num_attention_heads, Some(rotary))?.reshape(stacked)?;
        let k = split(&layer.k, kv_heads, Some(rotary))?.reshape((batch * kv_heads, time, dim))?;
        let v = split(&layer.v, kv_heads, None)?.reshape((batch * kv_heads, time, dim))?;
        let merged = attend(&q, &k, &v)?.apply_op1(heads(config.num_attention_heads, None, true))?;
        linear(&merged, &layer.o)
    }
}
