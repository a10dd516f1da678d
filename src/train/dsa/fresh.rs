//! Fresh weights, among them a first sketch of an induction circuit.
//!
//! To find what was said of a key takes heads that look back a step or two, and a later head that matches what those saw
//! (Olsson et al., 2022). Both have to be there before either helps, so that training sees no progress for millions of
//! tokens. An hour of a CPU has no millions to wait for. As mimetic initialisation does (Trockman and Kolter, 2023), weights
//! here start near what they would become; training may change all of them:
//!
//! - Embeddings share a common part, lie in the first half of the residual stream, and leave the rest to
//!   the heads of the first layer.
//! - The rotated parts of two heads of the first layer answer to the common part, each so that its weight is
//!   greatest one, or two, tokens back. Each writes what it sees into a quarter of the residual stream.
//! - Two heads of the second layer compare the token before the query with the token two before a key: behind `KEY is`
//!   they look at the token behind another `KEY is`. They copy its embedding into the residual stream.
//! - The indexers of the two layers score keys as those heads do: by nearness, and by the comparison.

use super::shape::Shape;
use crate::train::noise::Noise;
use std::collections::HashMap;

/// Deviation of an embedding's elements, and of those of the part that all embeddings share.
const EMBEDDING: f32 = 0.11;
/// The length of each rotated pair of a head that looks back, for a unit of the common part. Scores one token beside the aim
/// are lower by about 4.
const PAIR: f32 = 0.87;
/// What the first layer's outputs of heads that look back are multiplied with.
const SEEN: f32 = 0.25;
/// What the matched elements of queries and keys are multiplied with: equal tokens score about 14.
const MATCH: f32 = 1.5;
/// How much of an embedding is copied.
const COPY: f32 = 0.5;
/// The weight of an indexer's first head, for a unit of the common part.
const INDEX: f32 = 1.0;

/// A matrix of rows of `width` elements.
struct Matrix<'a> {
    elements: &'a mut Vec<f32>,
    width: usize,
}

impl Matrix<'_> {
    fn row(&mut self, row: usize) -> &mut [f32] {
        &mut self.elements[row * self.width..][..self.width]
    }

    /// Makes rows `from..from + count` those of the identity, times `factor`: row `from + i` takes element `first + i` alone.
    fn pick(&mut self, from: usize, count: usize, first: usize, factor: f32) {
        for i in 0..count {
            self.row(from + i).fill(0.0);
            self.row(from + i)[first + i] = factor;
        }
    }
}

/// Weights by tensor name, drawn from `seed`: projections normal with a deviation of `1 / sqrt(inputs)` for those of
/// latents, half of it for others, and that divided by `sqrt(2 layers)` for those back into the residual stream (GPT-2);
/// norms are 1, biases 0. Where the shape has room for the circuit, it is drawn in.
pub fn weights(shape: &Shape, seed: u64) -> HashMap<String, Vec<f32>> {
    let residual = 1.0 / (2.0 * shape.num_hidden_layers as f32).sqrt();
    let mut all = HashMap::new();
    for (index, (name, dims)) in shape.tensors().into_iter().enumerate() {
        let count: usize = dims.iter().product();
        let mut noise = Noise::new(seed, "weights", index as u64);
        let inputs = dims.last().copied().unwrap_or(1) as f32;
        let deviation = match name.as_str() {
            _ if name.ends_with("bias") => 0.0,
            _ if name.contains("embed_tokens") => EMBEDDING,
            _ if name.contains("o_proj") || name.contains("down_proj") => 0.5 * residual / inputs.sqrt(),
            _ if name.contains("_b_proj") || name.contains("_a_proj") => 1.0 / inputs.sqrt(),
            _ => 0.5 / inputs.sqrt(),
        };
        let values: Vec<f32> = if name.contains("norm") && name.ends_with("weight") {
            vec![1.0; count]
        } else {
            (0..count).map(|_| noise.normal() * deviation).collect()
        };
        all.insert(name, values);
    }
    let part = shape.qk_nope_head_dim;
    let room = shape.hidden_size == 4 * part
        && shape.v_head_dim == part
        && shape.kv_lora_rank >= 3 * part
        && shape.q_lora_rank >= part
        && shape.num_attention_heads >= 2
        && shape.num_hidden_layers >= 2
        && shape.index_head_dim == shape.qk_rope_head_dim + part;
    if room {
        let common = common(shape, seed, &mut all);
        // A tensor is missing only where the shape names none, and then it has no such layer.
        let _ = look_back(shape, &common, &mut all);
        let _ = compare(shape, &mut all);
        let _ = index(shape, &common, &mut all);
    }
    all
}

type All = HashMap<String, Vec<f32>>;

fn matrix<'a>(all: &'a mut All, layer: usize, module: &str, width: usize) -> Option<Matrix<'a>> {
    let elements = all.get_mut(&format!("model.layers.{layer}.self_attn.{module}.weight"))?;
    Some(Matrix { elements, width })
}

/// Moves embeddings into their half of the residual stream, and adds the part that they share: its direction is returned.
fn common(shape: &Shape, seed: u64, all: &mut All) -> Vec<f32> {
    let half = shape.hidden_size / 2;
    let mut noise = Noise::new(seed, "common", 0);
    let mut common = unit((0..half).map(|_| noise.normal()).collect());
    common.resize(shape.hidden_size, 0.0);
    if let Some(embedding) = all.get_mut("model.embed_tokens.weight") {
        let length = EMBEDDING * (half as f32).sqrt();
        for row in embedding.chunks_exact_mut(shape.hidden_size) {
            row[half..].fill(0.0);
            row.iter_mut().zip(&common).for_each(|(x, c)| *x += length * c);
        }
    }
    common
}

/// The two heads of the first layer.
fn look_back(shape: &Shape, common: &[f32], all: &mut All) -> Option<()> {
    let (hidden, part, rope) = (shape.hidden_size, shape.qk_nope_head_dim, shape.qk_rope_head_dim);
    let (q_lora, rank, heads) = (shape.q_lora_rank, shape.kv_lora_rank, shape.num_attention_heads);
    let mut q_a = matrix(all, 0, "q_a_proj", hidden)?;
    let answer = unit((0..q_lora).map(|row| dot(q_a.row(row), common)).collect());
    let mut q_b = matrix(all, 0, "q_b_proj", q_lora)?;
    for head in 0..2 {
        let first = head * shape.qk_head_dim();
        (first..first + part).for_each(|row| q_b.row(row).iter_mut().for_each(|x| *x *= 0.1));
        for i in 0..rope {
            let frequency = shape.rope_theta.powf(-((i / 2 * 2) as f64) / rope as f64);
            let angle = (head + 1) as f64 * frequency;
            let length = PAIR * if i % 2 == 0 { angle.cos() } else { -angle.sin() } as f32;
            q_b.row(first + part + i).iter_mut().zip(&answer).for_each(|(x, u)| *x = length * u);
        }
    }
    let mut kv_a = matrix(all, 0, "kv_a_proj_with_mqa", hidden)?;
    for row in 0..rank {
        // Latents tell tokens apart better without what all tokens share.
        let shared = dot(kv_a.row(row), common);
        kv_a.row(row).iter_mut().zip(common).for_each(|(x, c)| *x -= shared * c);
    }
    for i in 0..rope {
        let length = if i % 2 == 0 { PAIR } else { 0.0 };
        kv_a.row(rank + i).iter_mut().zip(common).for_each(|(x, c)| *x = length * c);
    }
    let mut kv_b = matrix(all, 0, "kv_b_proj", rank)?;
    for i in 0..part {
        // Both heads see a token in the same way, so that what they saw can be compared.
        let value = kv_b.row(part + i).to_vec();
        kv_b.row(3 * part + i).copy_from_slice(&value);
    }
    let mut o = matrix(all, 0, "o_proj", heads * part)?;
    for row in 0..hidden {
        o.row(row)[..2 * part].fill(0.0);
        o.row(row)[2 * part..].iter_mut().for_each(|x| *x *= 0.3);
        if row >= 2 * part {
            o.row(row)[row - 2 * part] = SEEN;
        }
    }
    Some(())
}

/// The two heads of the second layer. Each copies one half of the embedding.
fn compare(shape: &Shape, all: &mut All) -> Option<()> {
    let (hidden, part) = (shape.hidden_size, shape.qk_nope_head_dim);
    let mut q_a = matrix(all, 1, "q_a_proj", hidden)?;
    q_a.pick(0, part, 2 * part, 1.0);
    let mut q_b = matrix(all, 1, "q_b_proj", shape.q_lora_rank)?;
    for head in 0..2 {
        let first = head * shape.qk_head_dim();
        q_b.pick(first, part, 0, MATCH);
        let rotated = first + part..first + shape.qk_head_dim();
        rotated.for_each(|row| q_b.row(row).iter_mut().for_each(|x| *x *= 0.1));
    }
    let mut kv_a = matrix(all, 1, "kv_a_proj_with_mqa", hidden)?;
    kv_a.pick(0, part, 3 * part, 1.0);
    kv_a.pick(part, 2 * part, 0, 1.0);
    let mut kv_b = matrix(all, 1, "kv_b_proj", shape.kv_lora_rank)?;
    for head in 0..2 {
        kv_b.pick(2 * head * part, part, 0, MATCH);
        kv_b.pick((2 * head + 1) * part, part, (head + 1) * part, 1.0);
    }
    let mut o = matrix(all, 1, "o_proj", shape.num_attention_heads * part)?;
    for row in 0..2 * part {
        o.row(row)[..2 * part].fill(0.0);
        o.row(row)[row] = COPY;
    }
    Some(())
}

/// The first heads of the two layers' indexers.
fn index(shape: &Shape, common: &[f32], all: &mut All) -> Option<()> {
    let (hidden, part, rope) = (shape.hidden_size, shape.qk_nope_head_dim, shape.qk_rope_head_dim);
    let mut q_a = matrix(all, 0, "q_a_proj", hidden)?;
    let answer = unit((0..shape.q_lora_rank).map(|row| dot(q_a.row(row), common)).collect());
    for layer in 0..2 {
        let mut weights = matrix(all, layer, "indexer.weights_proj", hidden)?;
        weights.row(0).iter_mut().zip(common).for_each(|(x, c)| *x = INDEX * c);
        let mut keys = matrix(all, layer, "indexer.wk", hidden)?;
        for i in 0..rope {
            let length = if layer == 0 && i < rope / 2 { PAIR } else { 0.0 };
            keys.row(i).iter_mut().zip(common).for_each(|(x, c)| *x = length * c);
        }
        if layer == 1 {
            keys.pick(rope, part, 3 * part, 1.0);
        }
        let mut queries = matrix(all, layer, "indexer.wq_b", shape.q_lora_rank)?;
        for i in 0..rope {
            // One token back, in halves.
            let angle = shape.rope_theta.powf(-((i % (rope / 2) * 2) as f64) / rope as f64);
            let turned = if i < rope / 2 { angle.cos() } else { -angle.sin() } as f32;
            let length = if layer == 0 { PAIR * turned } else { 0.0 };
            queries.row(i).iter_mut().zip(&answer).for_each(|(x, u)| *x = length * u);
        }
        match layer {
            0 => (rope..rope + part).for_each(|row| queries.row(row).iter_mut().for_each(|x| *x *= 0.1)),
            _ => queries.pick(rope, part, 0, MATCH),
        }
    }
    Some(())
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The vector at length 1.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}
