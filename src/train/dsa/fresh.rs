//! Fresh weights.
//!
//! Finding what was said earlier takes heads that look back a step or two, and others that match what those saw. Both
//! have to be there before either helps, so that training sees no progress for millions of tokens (Olsson et al., 2022).
//! That is shortened here as mimetic initialisation does (Trockman and Kolter, 2023): embeddings share a common part, and
//! the rotated parts of the first layer's heads answer to it, each so that its weight is greatest one, two or three tokens
//! back. Nothing else is set up; training may change it all.

use super::shape::Shape;
use crate::train::noise::Noise;
use std::collections::HashMap;

/// Deviation of an embedding's elements, and of those of the part that all embeddings share.
const EMBEDDING: f32 = 0.08;
/// The most heads of the first layer that look back.
const LOOKING_BACK: usize = 3;
/// The length of each rotated pair of a head that looks back, for a unit of the common part. With embeddings as above,
/// scores one token beside the aim are lower by about 4.
const PAIR: f32 = 0.87;

/// Weights by tensor name, drawn from `seed`: embeddings as above; projections normal with a deviation of `1 /
/// sqrt(inputs)` for those of latents, half of it for others, and that divided by `sqrt(2 layers)` for those back into the
/// residual stream (GPT-2); norms are 1, biases 0.
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
    look_back(shape, seed, &mut all);
    all
}

fn look_back(shape: &Shape, seed: u64, all: &mut HashMap<String, Vec<f32>>) {
    let (hidden, rope) = (shape.hidden_size, shape.qk_rope_head_dim);
    let mut noise = Noise::new(seed, "common", 0);
    let common = unit((0..hidden).map(|_| noise.normal()).collect());
    if let Some(embedding) = all.get_mut("model.embed_tokens.weight") {
        let length = EMBEDDING * (hidden as f32).sqrt();
        for row in embedding.chunks_exact_mut(hidden) {
            row.iter_mut().zip(&common).for_each(|(x, c)| *x += length * c);
        }
    }
    let first = |module: &str| format!("model.layers.0.self_attn.{module}.weight");
    let compressed = all.get(&first("q_a_proj")).map(|rows| {
        let dot = |row: &[f32]| row.iter().zip(&common).map(|(w, c)| w * c).sum::<f32>();
        unit(rows.chunks_exact(hidden).map(dot).collect())
    });
    if let Some(rows) = all.get_mut(&first("kv_a_proj_with_mqa")) {
        let rotated = rows.chunks_exact_mut(hidden).skip(shape.kv_lora_rank);
        for (i, row) in rotated.enumerate() {
            let length = if i % 2 == 0 { PAIR } else { 0.0 };
            row.iter_mut().zip(&common).for_each(|(x, c)| *x = length * c);
        }
    }
    let (Some(compressed), Some(rows)) = (compressed, all.get_mut(&first("q_b_proj"))) else { return };
    let heads = rows.chunks_exact_mut(shape.qk_head_dim() * shape.q_lora_rank).take(LOOKING_BACK);
    for (head, rows) in heads.enumerate() {
        let rotated = rows.chunks_exact_mut(shape.q_lora_rank).skip(shape.qk_nope_head_dim);
        for (i, row) in rotated.enumerate() {
            let frequency = shape.rope_theta.powf(-((i / 2 * 2) as f64) / rope as f64);
            let angle = (head + 1) as f64 * frequency;
            let part = if i % 2 == 0 { angle.cos() } else { -angle.sin() } as f32;
            row.iter_mut().zip(&compressed).for_each(|(x, u)| *x = PAIR * part * u);
        }
    }
}

/// The vector at length 1.
fn unit(mut vector: Vec<f32>) -> Vec<f32> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|x| *x /= length);
    vector
}
