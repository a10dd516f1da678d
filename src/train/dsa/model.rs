//! A sparse model that can be differentiated: DeepSeek-V3.2's block over candle variables.

use super::experts::{Combine, ExpertWeights, choose};
use super::fresh;
use super::indexer::{self, LayerNorm, Lesson, divergence};
use super::latent::{self, Weights, attend};
use super::shape::{NORM_EPS, Shape};
use crate::train::attention::Rotary;
use crate::train::drill::Pass;
use crate::train::kernels::{Dropout, RmsNorm, SwiGlu, Take, linear, with_floats};
use crate::train::llama::Dropping;
use crate::train::noise::scramble;
use crate::train::optimise;
use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor, Var};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// What is left out of the gradient: the router's bias is moved by the experts' loads.
pub const ROUTER_BIAS: &str = "e_score_correction_bias";

/// Which keys a query attends to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Attention {
    /// All before it, and itself.
    Dense,
    /// Those that the layer's indexer chooses.
    Sparse,
    /// As many as the indexer would choose, drawn at random.
    Random(u64),
}

/// The weights of a feed-forward half.
struct Swiglu {
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

impl Swiglu {
    fn run(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        linear(&linear(x, &self.gate)?.apply_op2(&linear(x, &self.up)?, SwiGlu)?, &self.down)
    }
}

enum FeedForward {
    Dense(Swiglu),
    Experts { router: Tensor, bias: (String, Tensor), experts: Vec<Swiglu>, shared: Swiglu },
}

struct Layer {
    input_norm: Tensor,
    q_a: Tensor,
    q_norm: Tensor,
    q_b: Tensor,
    kv_a: Tensor,
    kv_norm: Tensor,
    kv_b: Tensor,
    o: Tensor,
    index_q: Tensor,
    index_k: Tensor,
    index_norm: (Tensor, Tensor),
    index_w: Tensor,
    post_norm: Tensor,
    feed_forward: FeedForward,
}

/// A model in training.
pub struct Sparse {
    /// Its shape.
    pub shape: Shape,
    /// Its weights by tensor name. Tensors share storage with these: setting one changes the model.
    pub weights: optimise::Weights,
    embedding: Tensor,
    norm: Tensor,
    layers: Vec<Layer>,
}

impl Sparse {
    /// A model with [fresh](fresh::weights) weights, drawn from `seed`.
    pub fn new(shape: Shape, seed: u64) -> Result<Self> {
        shape.check()?;
        let mut drawn = fresh::weights(&shape, seed);
        let mut tensors = HashMap::new();
        for (name, dims) in shape.tensors() {
            let values = drawn.remove(&name).with_context(|| format!("{name} was not drawn"))?;
            tensors.insert(name, Tensor::from_vec(values, dims, &Device::Cpu)?);
        }
        Self::from_tensors(shape, &tensors)
    }

    /// A model from f32 tensors under their checkpoint names.
    pub fn from_tensors(shape: Shape, tensors: &HashMap<String, Tensor>) -> Result<Self> {
        shape.check()?;
        let mut weights = BTreeMap::new();
        for (name, dims) in shape.tensors() {
            let tensor = tensors.get(&name).with_context(|| format!("tensor {name} is missing"))?;
            ensure!(
                tensor.dims() == dims,
                "tensor {name} has shape {:?}, but the configuration says {dims:?}",
                tensor.dims()
            );
            weights.insert(name, Var::from_tensor(tensor)?);
        }
        let get = |name: &str| -> Result<Tensor> {
            let var: &Var = weights.get(name).with_context(|| format!("tensor {name} is missing"))?;
            Ok(var.as_tensor().clone())
        };
        let layers = (0..shape.num_hidden_layers)
            .map(|layer| Layer::new(&shape, layer, &get))
            .collect::<Result<_>>()?;
        let (embedding, norm) = (get("model.embed_tokens.weight")?, get("model.norm.weight")?);
        Ok(Self { shape, weights, embedding, norm, layers })
    }

    /// Runs `tokens`, `[batch, time]` row by row. With `lessons` (sequence, position, share) the indexers' divergence on
    /// those rows is worked out too; without any the indexers are left out, unless `attention` needs them.
    pub fn forward(
        &self,
        tokens: &[u32],
        time: usize,
        attention: Attention,
        lessons: &[(usize, usize, f32)],
        dropping: Option<Dropping>,
    ) -> Result<Pass> {
        ensure!(
            time > 0 && tokens.len().is_multiple_of(time),
            "{} tokens don't make rows of {time}",
            tokens.len()
        );
        let rotary = Arc::new(Rotary::of(time, &self.shape.frequencies()));
        let drop = |x: Tensor, site: usize| -> candle_core::Result<Tensor> {
            match dropping {
                Some(Dropping { rate, key }) if rate > 0.0 => {
                    x.apply_op1(Dropout { key: scramble(key ^ scramble(site as u64)), rate })
                }
                _ => Ok(x),
            }
        };
        let ids: Vec<usize> = tokens.iter().map(|&token| token as usize).collect();
        let mut x = drop(self.embedding.apply_op1(Take { rows: ids })?, 0)?;
        let mut pass = Pass { hidden: x.clone(), divergence: None, loads: Vec::new() };
        for (index, layer) in self.layers.iter().enumerate() {
            let attention = match attention {
                Attention::Random(seed) => Attention::Random(scramble(seed ^ index as u64)),
                other => other,
            };
            let (branch, divergence) = layer.attend(&self.shape, &x, time, &rotary, attention, lessons)?;
            pass.divergence = match (pass.divergence.take(), divergence) {
                (Some(sum), Some(more)) => Some((sum + more)?),
                (sum, more) => sum.or(more),
            };
            x = (x + drop(branch, 2 * index + 1)?)?;
            let normed = norm(&x, &layer.post_norm)?;
            let branch = layer.feed_forward.run(&self.shape, &normed, &mut pass.loads)?;
            x = (x + drop(branch, 2 * index + 2)?)?;
        }
        pass.hidden = x;
        pass.divergence =
            pass.divergence.map(|sum| sum.affine(1.0 / self.layers.len() as f64, 0.0)).transpose()?;
        Ok(pass)
    }

    /// Scores of the next token at some rows of what [`Sparse::forward`] gave: `[rows, vocab]`.
    pub fn logits(&self, hidden: &Tensor, rows: Vec<usize>) -> Result<Tensor> {
        Ok(linear(&norm(&hidden.apply_op1(Take { rows })?, &self.norm)?, &self.embedding)?)
    }
}

fn norm(x: &Tensor, weight: &Tensor) -> candle_core::Result<Tensor> {
    x.apply_op2(weight, RmsNorm { eps: NORM_EPS })
}

/// Columns `from .. from + width` as a tensor of their own.
fn columns(x: &Tensor, from: usize, width: usize) -> candle_core::Result<Tensor> {
    x.narrow(1, from, width)?.contiguous()
}

impl Layer {
    fn new(shape: &Shape, layer: usize, get: &impl Fn(&str) -> Result<Tensor>) -> Result<Self> {
        let name = |module: &str| format!("model.layers.{layer}.{module}");
        let get = |module: &str| get(&name(module));
        let swiglu = |module: &str| -> Result<Swiglu> {
            let get = |part: &str| get(&format!("{module}.{part}_proj.weight"));
            Ok(Swiglu { gate: get("gate")?, up: get("up")?, down: get("down")? })
        };
        let bias = format!("mlp.gate.{ROUTER_BIAS}");
        Ok(Self {
            input_norm: get("input_layernorm.weight")?,
            q_a: get("self_attn.q_a_proj.weight")?,
            q_norm: get("self_attn.q_a_layernorm.weight")?,
            q_b: get("self_attn.q_b_proj.weight")?,
            kv_a: get("self_attn.kv_a_proj_with_mqa.weight")?,
            kv_norm: get("self_attn.kv_a_layernorm.weight")?,
            kv_b: get("self_attn.kv_b_proj.weight")?,
            o: get("self_attn.o_proj.weight")?,
            index_q: get("self_attn.indexer.wq_b.weight")?,
            index_k: get("self_attn.indexer.wk.weight")?,
            index_norm: (get("self_attn.indexer.k_norm.weight")?, get("self_attn.indexer.k_norm.bias")?),
            index_w: get("self_attn.indexer.weights_proj.weight")?,
            post_norm: get("post_attention_layernorm.weight")?,
            feed_forward: match shape.has_experts(layer) {
                false => FeedForward::Dense(swiglu("mlp")?),
                true => FeedForward::Experts {
                    router: get("mlp.gate.weight")?,
                    bias: (name(&bias), get(&bias)?),
                    experts: (0..shape.n_routed_experts)
                        .map(|expert| swiglu(&format!("mlp.experts.{expert}")))
                        .collect::<Result<_>>()?,
                    shared: swiglu("mlp.shared_experts")?,
                },
            },
        })
    }

    fn attend(
        &self,
        shape: &Shape,
        x: &Tensor,
        time: usize,
        rotary: &Arc<Rotary>,
        attention: Attention,
        lessons: &[(usize, usize, f32)],
    ) -> Result<(Tensor, Option<Tensor>)> {
        let batch = x.dim(0)? / time;
        let h = norm(x, &self.input_norm)?;
        let compressed = norm(&linear(&h, &self.q_a)?, &self.q_norm)?;
        let q = linear(&compressed, &self.q_b)?;
        let latent = linear(&h, &self.kv_a)?;
        let (rank, rope) = (shape.kv_lora_rank, shape.qk_rope_head_dim);
        let expanded = linear(&norm(&columns(&latent, 0, rank)?, &self.kv_norm)?, &self.kv_b)?;
        let geometry = latent::Geometry {
            batch,
            time,
            heads: shape.num_attention_heads,
            nope: shape.qk_nope_head_dim,
            rope,
            value: shape.v_head_dim,
            rotary: rotary.clone(),
            scale: shape.softmax_scale(),
        };
        let index = indexer::Geometry {
            time,
            heads: shape.index_n_heads,
            dim: shape.index_head_dim,
            rope,
            rotary: rotary.clone(),
        };
        let (h, compressed) = (h.detach(), compressed.detach());
        let needed = attention == Attention::Sparse || !lessons.is_empty();
        let keys = needed.then(|| self.index_keys(&h)).transpose()?;
        let chosen = match (attention, &keys) {
            (Attention::Sparse, Some(keys)) => {
                let (q, w) = (linear(&compressed, &self.index_q)?, linear(&h, &self.index_w)?);
                Some(index.choose(&q, keys, &w, shape.index_topk)?)
            }
            (Attention::Random(seed), _) => Some(indexer::random(batch, time, shape.index_topk, seed)),
            _ => None,
        };
        let (mixed, weights) =
            attend(&q, &expanded, &columns(&latent, rank, rope)?, geometry, chosen.as_ref())?;
        let divergence = match (&keys, lessons.is_empty()) {
            (Some(keys), false) => {
                let rows: Vec<usize> = lessons.iter().map(|(batch, t, _)| batch * time + t).collect();
                let q = linear(&compressed.apply_op1(Take { rows: rows.clone() })?, &self.index_q)?;
                let w = linear(&h.apply_op1(Take { rows })?, &self.index_w)?;
                let lessons = lessons_of(&weights, lessons)?;
                Some(divergence((&q, keys, &w), &index, &lessons, chosen.as_ref())?)
            }
            _ => None,
        };
        Ok((linear(&mixed, &self.o)?, divergence))
    }

    fn index_keys(&self, h: &Tensor) -> candle_core::Result<Tensor> {
        let (weight, bias) = &self.index_norm;
        linear(h, &self.index_k)?.apply_op3(weight, bias, LayerNorm { eps: NORM_EPS })
    }
}

fn lessons_of(weights: &Weights, rows: &[(usize, usize, f32)]) -> candle_core::Result<Vec<Lesson>> {
    let lesson = |&(batch, t, share): &(usize, usize, f32)| {
        Ok(Lesson { batch, t, wanted: weights.mean_over_heads(batch, t)?, share })
    };
    rows.iter().map(lesson).collect()
}

impl FeedForward {
    fn run(
        &self,
        shape: &Shape,
        x: &Tensor,
        loads: &mut Vec<(String, Vec<f32>)>,
    ) -> candle_core::Result<Tensor> {
        let (router, bias, experts, shared) = match self {
            Self::Dense(swiglu) => return swiglu.run(x),
            Self::Experts { router, bias, experts, shared } => (router, bias, experts, shared),
        };
        let per_token = shape.num_experts_per_tok;
        let logits = linear(x, router)?;
        let choices =
            with_floats(&logits, |logits| with_floats(&bias.1, |bias| choose(logits, bias, per_token)))??;
        let mut rows = vec![Vec::new(); experts.len()];
        let mut places = vec![Vec::new(); experts.len()];
        for (index, &expert) in choices.iter().enumerate() {
            rows[expert].push(index / per_token);
            places[expert].push(index);
        }
        loads.push((bias.0.clone(), rows.iter().map(|rows| rows.len() as f32).collect()));
        let mut from = vec![0; choices.len()];
        let (mut outputs, mut done) = (Vec::new(), 0);
        for ((expert, rows), places) in experts.iter().zip(rows).zip(places) {
            if rows.is_empty() {
                continue;
            }
            places.iter().enumerate().for_each(|(i, &place)| from[place] = done + i);
            done += rows.len();
            outputs.push(expert.run(&x.apply_op1(Take { rows })?)?);
        }
        let weights = logits.apply_op1(ExpertWeights {
            choices,
            per_token,
            scale: shape.routed_scaling_factor as f32,
        })?;
        let routed = Tensor::cat(&outputs, 0)?.apply_op2(&weights, Combine { from, per_token })?;
        routed + shared.run(x)?
    }
}
