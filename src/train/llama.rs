//! A Llama that can be differentiated: the architecture of the exported checkpoints, over candle
//! variables. Qwen2 (biases of queries, keys and values) and Qwen3 (norms of query and key heads) are
//! the same with more tensors.

use super::attention::{Heads, Rotary, attend};
use super::drill::{Pass, Pupil, Reading};
use super::kernels::{Dropout, RmsNorm, SwiGlu, Take, linear};
use super::noise::{Noise, scramble};
use super::optimise::Weights;
use super::rows::Rows;
use super::{checkpoint, export};
use anyhow::{Context, Result, bail, ensure};
use candle_core::{DType, Device, Tensor, Var};
use pagedraft_model::checkpoint::{Checkpoint, RopeScaling};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
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
    /// Base of the rotary frequencies of a model that is trained here.
    pub rope_theta: f64,
    /// What RMSNorm adds to the mean square.
    pub rms_norm_eps: f64,
    /// Whether queries, keys and values have biases.
    pub attention_bias: bool,
    /// Whether query and key heads are normed before they are rotated.
    pub head_norms: bool,
    /// Whether the embedding is also the output head.
    pub tied: bool,
    /// The id that stands for what is not known yet, of a model that fills masks (LLaDA): its tokens see each other in both directions.
    pub mask: Option<u32>,
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
            if self.attention_bias {
                for (name, width) in [("q", q), ("k", kv), ("v", kv)] {
                    all.push((format!("model.layers.{layer}.self_attn.{name}_proj.bias"), vec![width]));
                }
            }
            if self.head_norms {
                for name in ["q", "k"] {
                    let name = format!("model.layers.{layer}.self_attn.{name}_norm.weight");
                    all.push((name, vec![self.head_dim]));
                }
            }
        }
        all.push(("model.norm.weight".to_owned(), vec![hidden]));
        if !self.tied {
            all.push(("lm_head.weight".to_owned(), vec![self.vocab_size, hidden]));
        }
        all
    }

    /// Parameters in all (an embedding that is also the output head is counted once).
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }
}

/// A projection into heads, with its bias and the norm of its heads if it has them.
struct Projection {
    weight: Tensor,
    bias: Option<Tensor>,
    norm: Option<Tensor>,
}

struct Layer {
    attention_norm: Tensor,
    q: Projection,
    k: Projection,
    v: Projection,
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
    /// What pairs of a head's elements turn by, in radians a position.
    frequencies: Vec<f64>,
    embedding: Tensor,
    norm: Tensor,
    head: Tensor,
    layers: Vec<Layer>,
}

/// What happens behind each layer of a pass: given the layer and the residual stream that leaves it, returns the stream that
/// goes on, and how visible its tokens are to the queries of the layers that follow: logarithms, `[batch * time]`.
pub type Behind<'a> = &'a mut dyn FnMut(usize, Tensor) -> Result<(Tensor, Option<Tensor>)>;

impl Llama {
    /// A model with fresh weights, drawn from `seed`: normal, deviation `0.5 / sqrt(hidden)`, that of
    /// projections back into the residual stream divided by `sqrt(2 layers)` (GPT-2); norms are 1.
    pub fn new(config: Config, seed: u64) -> Result<Self> {
        let values = Self::values(&config, seed);
        Self::from_values(config, values)
    }

    /// The fresh weights of [`Llama::new`], by tensor name.
    pub fn values(config: &Config, seed: u64) -> HashMap<String, Vec<f32>> {
        let deviation = 0.5 / (config.hidden_size as f32).sqrt();
        let residual = deviation / (2.0 * config.num_hidden_layers as f32).sqrt();
        let tensors = config.tensors().into_iter().enumerate().map(|(index, (name, shape))| {
            let count = shape.iter().product();
            let mut noise = Noise::new(seed, "weights", index as u64);
            let values: Vec<f32> = if name.ends_with("norm.weight") {
                vec![1.0; count]
            } else if name.ends_with("bias") {
                vec![0.0; count]
            } else if name.contains("o_proj") || name.contains("down_proj") {
                (0..count).map(|_| noise.normal() * residual).collect()
            } else {
                (0..count).map(|_| noise.normal() * deviation).collect()
            };
            (name, values)
        });
        tensors.collect()
    }

    /// A model from the elements of its tensors.
    pub fn from_values(config: Config, mut values: HashMap<String, Vec<f32>>) -> Result<Self> {
        config.check()?;
        let mut tensors = HashMap::new();
        for (name, shape) in config.tensors() {
            let values = values.remove(&name).with_context(|| format!("{name} was not drawn"))?;
            tensors.insert(name, Tensor::from_vec(values, shape, &Device::Cpu)?);
        }
        Self::from_tensors(config, &tensors)
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
        Self::over(config, weights, |var| var.as_tensor().clone())
    }

    /// The model of a checkpoint of the Llama or Qwen family.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let model = checkpoint.config();
        let unsupported = [
            (model.architecture.is_sparse(), "sparse attention"),
            (model.mask_token_id.is_some(), "attention in both directions"),
            (model.windows.iter().any(Option::is_some), "layers with a sliding window"),
            (model.o_bias, "a bias on the output of attention"),
            (model.mlp_bias, "biases in feed-forward layers"),
            (matches!(model.rope.scaling, RopeScaling::Yarn { .. }), "YaRN"),
        ];
        if let Some((_, what)) = unsupported.iter().find(|(has, _)| *has) {
            bail!("{} has {what}, which the trainer can't differentiate", checkpoint.name().display());
        }
        let config = Config {
            vocab_size: model.vocab_size,
            hidden_size: model.hidden_size,
            num_hidden_layers: model.num_layers,
            num_attention_heads: model.num_heads,
            num_key_value_heads: model.num_kv_heads,
            head_dim: model.head_dim,
            intermediate_size: model.intermediate_size,
            rope_theta: model.rope.theta,
            // The decimal that config.json has, and not the digits of the f32 nearest to it.
            rms_norm_eps: model.rms_norm_eps.to_string().parse()?,
            attention_bias: model.qkv_bias,
            head_norms: model.qk_norm,
            tied: model.tie_word_embeddings,
            mask: None,
        };
        let mut values = HashMap::new();
        for (name, shape) in config.tensors() {
            let elements = checkpoint.tensor(&name, &shape)?.to_vec_f32()?;
            values.insert(name, elements);
        }
        let mut llama = Self::from_values(config, values)?;
        llama.frequencies = model.rope.inv_freq(model.head_dim).into_iter().map(f64::from).collect();
        Ok(llama)
    }

    /// The model with weights that take no gradient.
    pub fn frozen(self) -> Result<Self> {
        let frequencies = self.frequencies;
        Ok(Self { frequencies, ..Self::over(self.config, self.weights, Var::as_detached_tensor)? })
    }

    fn over(config: Config, weights: BTreeMap<String, Var>, tensor: impl Fn(&Var) -> Tensor) -> Result<Self> {
        let get = |name: &str| -> Result<Tensor> {
            weights.get(name).map(&tensor).with_context(|| format!("tensor {name} is missing"))
        };
        let optional = |name: &str| weights.get(name).map(&tensor);
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                let named = |name: &str| format!("model.layers.{layer}.{name}");
                let get = |name: &str| get(&named(&format!("{name}.weight")));
                let projection = |name: &str| -> Result<Projection> {
                    Ok(Projection {
                        weight: get(&format!("self_attn.{name}_proj"))?,
                        bias: optional(&named(&format!("self_attn.{name}_proj.bias"))),
                        norm: optional(&named(&format!("self_attn.{name}_norm.weight"))),
                    })
                };
                Ok(Layer {
                    attention_norm: get("input_layernorm")?,
                    q: projection("q")?,
                    k: projection("k")?,
                    v: projection("v")?,
                    o: get("self_attn.o_proj")?,
                    ffn_norm: get("post_attention_layernorm")?,
                    gate: get("mlp.gate_proj")?,
                    up: get("mlp.up_proj")?,
                    down: get("mlp.down_proj")?,
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let (embedding, norm) = (get("model.embed_tokens.weight")?, get("model.norm.weight")?);
        let head = optional("lm_head.weight").unwrap_or_else(|| embedding.clone());
        let (dim, theta) = (config.head_dim, config.rope_theta);
        let frequencies = (0..dim / 2).map(|i| theta.powf(-2.0 * i as f64 / dim as f64)).collect();
        Ok(Self { config, weights, frequencies, embedding, norm, head, layers })
    }

    /// Scores of every next token (of a model that fills masks, of every token itself): `tokens` is `[batch, time]` row by row, the result
    /// `[batch * time, vocab]`. Nothing is dropped without `dropping`.
    pub fn forward(&self, tokens: &[u32], time: usize, dropping: Option<Dropping>) -> Result<Tensor> {
        let hidden = self.hidden(tokens, time, dropping, &mut |_, x| Ok((x, None)))?;
        Ok(linear(&self.norm(&hidden, &self.norm)?, &self.head)?)
    }

    /// Scores of the next token at some rows of what [`Llama::hidden`] gave: `[rows, vocab]`.
    pub fn logits(&self, hidden: &Tensor, rows: Vec<usize>) -> Result<Tensor> {
        Ok(linear(&self.norm(&hidden.apply_op1(Take { rows })?, &self.norm)?, &self.head)?)
    }

    /// The residual stream behind the last layer, `[batch * time, hidden]`.
    pub fn hidden(
        &self,
        tokens: &[u32],
        time: usize,
        dropping: Option<Dropping>,
        behind: Behind<'_>,
    ) -> Result<Tensor> {
        ensure!(
            time > 0 && tokens.len().is_multiple_of(time),
            "{} tokens don't make rows of {time}",
            tokens.len()
        );
        let rotary = Arc::new(Rotary::of(time, &self.frequencies));
        let drop = |x: Tensor, site: usize| -> candle_core::Result<Tensor> {
            match dropping {
                Some(Dropping { rate, key }) if rate > 0.0 => {
                    x.apply_op1(Dropout { key: scramble(key ^ scramble(site as u64)), rate })
                }
                _ => Ok(x),
            }
        };
        let rows = tokens.iter().map(|&token| token as usize).collect();
        let mut x = drop(self.embedding.apply_op1(Take { rows })?, 0)?;
        let mut visible = None;
        for (index, layer) in self.layers.iter().enumerate() {
            let branch = self.attention(layer, &x, time, &rotary, visible.as_ref())?;
            x = (x + drop(branch, 2 * index + 1)?)?;
            let normed = self.norm(&x, &layer.ffn_norm)?;
            let gate = linear(&normed, &layer.gate)?;
            let up = linear(&normed, &layer.up)?;
            let branch = linear(&gate.apply_op2(&up, SwiGlu)?, &layer.down)?;
            let (next, changed) = behind(index, (x + drop(branch, 2 * index + 2)?)?)?;
            x = next;
            visible = changed.or(visible);
        }
        Ok(x)
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
        visible: Option<&Tensor>,
    ) -> Result<Tensor> {
        let config = &self.config;
        let (kv_heads, dim) = (config.num_key_value_heads, config.head_dim);
        let rows = x.dim(0)?;
        let batch = rows / time;
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
        let split = |projection: &Projection, n: usize, rotary: Option<&Arc<Rotary>>| {
            let mut x = linear(&x, &projection.weight)?;
            if let Some(bias) = &projection.bias {
                x = x.broadcast_add(bias)?;
            }
            if let Some(norm) = &projection.norm {
                x = self.norm(&x.reshape((rows * n, dim))?, norm)?.reshape((rows, n * dim))?;
            }
            x.apply_op1(heads(n, rotary, false))
        };
        // The query heads that share a key head are stacked as rows of one product.
        let (queries, keys) = ((batch * kv_heads, group * time, dim), (batch * kv_heads, time, dim));
        let mut q = split(&layer.q, config.num_attention_heads, Some(rotary))?.reshape(queries)?;
        let mut k = split(&layer.k, kv_heads, Some(rotary))?.reshape(keys)?;
        let v = split(&layer.v, kv_heads, None)?.reshape(keys)?;
        let scale = 1.0 / (dim as f32).sqrt();
        if let Some(visible) = visible {
            // One more element a head: 1 in queries, and in keys what the scaling makes the logarithm.
            let ones = Tensor::ones((batch * kv_heads, group * time, 1), DType::F32, &Device::Cpu)?;
            let seen = visible.affine(f64::from(1.0 / scale), 0.0)?.reshape((batch, 1, time, 1))?;
            let seen = seen.broadcast_as((batch, kv_heads, time, 1))?.reshape((batch * kv_heads, time, 1))?;
            q = Tensor::cat(&[&q, &ones], 2)?;
            k = Tensor::cat(&[&k, &seen], 2)?;
        }
        let merged = attend(&q, &k, &v, scale, config.mask.is_none())?.apply_op1(heads(
            config.num_attention_heads,
            None,
            true,
        ))?;
        Ok(linear(&merged, &layer.o)?)
    }
}

impl Pupil for Llama {
    fn weights(&self) -> &Weights {
        &self.weights
    }

    fn with_weights(&self, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        Self::from_tensors(self.config.clone(), tensors)
    }

    fn parameters(&self) -> usize {
        self.config.parameters()
    }

    fn read(&self, rows: &Rows, reading: Reading) -> Result<Pass> {
        let hidden =
            self.hidden(&rows.inputs, rows.time, Some(reading.dropping), &mut |_, x| Ok((x, None)))?;
        Ok(Pass { hidden, divergence: None, loads: Vec::new() })
    }

    fn logits(&self, hidden: &Tensor, rows: Vec<usize>) -> Result<Tensor> {
        Self::logits(self, hidden, rows)
    }

    fn balance(&self, _: &[Vec<(String, Vec<f32>)>]) -> Result<()> {
        Ok(())
    }

    fn export(&self, specials: (u32, u32), folder: &Path) -> Result<()> {
        export::save(&self.config, &checkpoint::copy(&self.weights)?, specials, folder)
    }
}
