//! A first sketch of circuits that find what was said, drawn into the fresh weights of a Llama.
//!
//! [`super::super::dsa::fresh`] says why it takes a sketch, and draws the same into latents. Here the residual stream of width h is
//! laid out so: its first half is for embeddings, which share a common part; the third quarter is for the token before, and
//! the last one for the token two before.
//!
//! - Two heads of the first layer look one and two tokens back, by the fast half of the rotary frequencies. They share a value
//!   head, so that both see a token in the same way.
//! - A head of a late layer compares the token before the query with the token two before a key, by the slow half: behind
//!   `KEY is` it looks at the token behind another `KEY is`. It copies that token's embedding into the first half.
//! - A head of a later layer compares what was copied with the token two before a key, and copies once more: the next step of a
//!   chain.
//!
//! The layers between the first and these have nothing to do but not to disturb: they are where a prompt can be pruned.

use crate::train::llama::Config;
use crate::train::noise::Noise;
use anyhow::{Result, ensure};
use std::collections::HashMap;

/// Deviation of an embedding's elements, and of those of the part that all embeddings share.
const EMBEDDING: f32 = 0.11;
/// The length of each rotated pair of a head that looks back, for a unit of the common part.
const PAIR: f32 = 1.0;
/// What the first layer's outputs of heads that look back are multiplied with.
const SEEN: f32 = 0.25;
/// What the compared elements of queries and keys are multiplied with: equal tokens score about 16.
const MATCH: f32 = 2.0;
/// How much of an embedding the first finding head copies, and the second.
const COPY: [f32; 2] = [0.5, 0.3];
/// What the outputs of all other heads and feed-forward layers are multiplied with.
const QUIET: f32 = 0.3;

type All = HashMap<String, Vec<f32>>;

/// A matrix of rows of `width` elements.
struct Matrix<'a> {
    elements: &'a mut [f32],
    width: usize,
}

impl Matrix<'_> {
    fn row(&mut self, row: usize) -> &mut [f32] {
        &mut self.elements[row * self.width..][..self.width]
    }

    /// Row `row` becomes `factor` times `from`, and zeros behind it.
    fn set(&mut self, row: usize, factor: f32, from: &[f32]) {
        let row = self.row(row);
        row.fill(0.0);
        row.iter_mut().zip(from).for_each(|(x, y)| *x = factor * y);
    }

    /// Row `row` takes element `at` alone, times `factor`.
    fn pick(&mut self, row: usize, at: usize, factor: f32) {
        let row = self.row(row);
        row.fill(0.0);
        row[at] = factor;
    }
}

/// Draws the circuits into `all`, fresh weights by tensor name. The layers of `finds` get the heads that find, one each.
///
/// # Errors
///
/// The shape has no room for them.
pub fn draw(config: &Config, finds: &[usize], seed: u64, all: &mut All) -> Result<()> {
    ensure!(
        config.head_dim * 2 == config.hidden_size && config.head_dim.is_multiple_of(4),
        "--head-dim {} isn't half of --hidden {}, or no multiple of 4: the sketch of the circuits needs that",
        config.head_dim,
        config.hidden_size
    );
    ensure!(
        config.num_attention_heads >= 2 * config.num_key_value_heads,
        "--heads {} isn't twice --kv-heads {} or more: the sketch needs two query heads that share a key head",
        config.num_attention_heads,
        config.num_key_value_heads
    );
    ensure!(
        finds.len() <= COPY.len()
            && finds.is_sorted_by(|a, b| a < b)
            && finds.iter().all(|&layer| layer > 0 && layer < config.num_hidden_layers),
        "--find-layers {finds:?}: give up to {} layers between 1 and {}, in ascending order",
        COPY.len(),
        config.num_hidden_layers - 1
    );
    let sketch =
        Sketch { hidden: config.hidden_size, dim: config.head_dim, heads: config.num_attention_heads };
    for (name, values) in all.iter_mut() {
        if name.contains("o_proj") || name.contains("down_proj") {
            values.iter_mut().for_each(|x| *x *= QUIET);
        }
    }
    let common = sketch.embeddings(seed, all);
    // A tensor is missing only where the shape names none, and then it has no such layer.
    let saw = sketch.look_back(config.rope_theta, &common, all).unwrap_or_default();
    for (&layer, (order, copy)) in finds.iter().zip(COPY.iter().enumerate()) {
        let _ = sketch.find(layer, (order > 0).then_some(&saw), *copy, all);
    }
    Ok(())
}

struct Sketch {
    hidden: usize,
    dim: usize,
    heads: usize,
}

impl Sketch {
    fn matrix<'a>(&self, all: &'a mut All, layer: usize, projection: &str) -> Option<Matrix<'a>> {
        let elements = all.get_mut(&format!("model.layers.{layer}.self_attn.{projection}_proj.weight"))?;
        let width = if projection == "o" { self.heads * self.dim } else { self.hidden };
        Some(Matrix { elements, width })
    }

    /// Draws embeddings in their half of the residual stream, and adds the part that they share: its direction is returned.
    fn embeddings(&self, seed: u64, all: &mut All) -> Vec<f32> {
        let mut noise = Noise::new(seed, "common", 0);
        let common: Vec<f32> = (0..self.dim).map(|_| noise.normal()).collect();
        let length = common.iter().map(|x| x * x).sum::<f32>().sqrt();
        let common: Vec<f32> = common.iter().map(|x| x / length).collect();
        let shared = EMBEDDING * (self.dim as f32).sqrt();
        if let Some(embedding) = all.get_mut("model.embed_tokens.weight") {
            for row in embedding.chunks_exact_mut(self.hidden) {
                row.fill(0.0);
                row.iter_mut().zip(&common).for_each(|(x, c)| *x = EMBEDDING * noise.normal() + shared * c);
            }
        }
        common
    }

    /// The two heads of the first layer. Returns how they see a token: rows of the first half of the residual stream.
    fn look_back(&self, theta: f64, common: &[f32], all: &mut All) -> Option<Vec<Vec<f32>>> {
        let (dim, half) = (self.dim, self.dim / 2);
        let quarter = half;
        let mut q = self.matrix(all, 0, "q")?;
        for head in 0..2 {
            let first = head * dim;
            for pair in 0..half {
                if pair >= half / 2 {
                    q.row(first + pair).iter_mut().for_each(|x| *x *= 0.1);
                    q.row(first + half + pair).iter_mut().for_each(|x| *x *= 0.1);
                    continue;
                }
                let angle = (head + 1) as f64 * theta.powf(-((2 * pair) as f64) / dim as f64);
                q.set(first + pair, PAIR * angle.cos() as f32, common);
                q.set(first + half + pair, -PAIR * angle.sin() as f32, common);
            }
        }
        let mut k = self.matrix(all, 0, "k")?;
        for pair in 0..half / 2 {
            k.set(pair, PAIR, common);
            k.set(half + pair, 0.0, common);
        }
        let mut v = self.matrix(all, 0, "v")?;
        let mut saw = Vec::with_capacity(quarter);
        for row in 0..quarter {
            // Tokens are told apart better without what all tokens share.
            let row = v.row(row);
            row[dim..].fill(0.0);
            row.iter_mut().for_each(|x| *x *= 2.0);
            let shared: f32 = row.iter().zip(common).map(|(x, c)| x * c).sum();
            row.iter_mut().zip(common).for_each(|(x, c)| *x -= shared * c);
            saw.push(row[..dim].to_vec());
        }
        let mut o = self.matrix(all, 0, "o")?;
        for row in 0..self.hidden {
            o.row(row)[..2 * dim].fill(0.0);
            if let Some(seen) = row.checked_sub(dim) {
                // Head 0 writes the third quarter, head 1 the last.
                o.row(row)[seen / quarter * dim + seen % quarter] = SEEN;
            }
        }
        Some(saw)
    }

    /// The head of a layer that finds. It looks for the token before the query, or, where `saw` is given, for the token that
    /// was found before, seen as the first layer sees it.
    fn find(&self, layer: usize, saw: Option<&Vec<Vec<f32>>>, copy: f32, all: &mut All) -> Option<()> {
        let (dim, half, quarter) = (self.dim, self.dim / 2, self.dim / 2);
        let mut q = self.matrix(all, layer, "q")?;
        for row in 0..dim {
            q.row(row).fill(0.0);
        }
        let slow = |i: usize| if i < quarter / 2 { half / 2 + i } else { half + i };
        for i in 0..quarter {
            match saw {
                None => q.pick(slow(i), dim + i, MATCH),
                Some(saw) => q.set(slow(i), MATCH, &saw[i]),
            }
        }
        let mut k = self.matrix(all, layer, "k")?;
        for row in 0..dim {
            k.row(row).fill(0.0);
        }
        for i in 0..quarter {
            k.pick(slow(i), dim + quarter + i, MATCH);
        }
        let mut v = self.matrix(all, layer, "v")?;
        for i in 0..dim {
            v.pick(i, i, 1.0);
        }
        let mut o = self.matrix(all, layer, "o")?;
        for row in 0..self.hidden {
            o.row(row)[..dim].fill(0.0);
            if row < dim {
                o.row(row)[row] = copy;
            }
        }
        Some(())
    }
}
