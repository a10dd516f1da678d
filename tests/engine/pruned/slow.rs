//! A Llama in f64, written out: what its queries attend to.

use std::path::Path;

use pagedraft::model::checkpoint::{Checkpoint, Part};

/// A matrix by rows.
pub type Matrix = Vec<Vec<f64>>;

/// The weights.
pub struct Slow {
    layers: Vec<[Matrix; 7]>,
    embedding: Matrix,
    heads: usize,
    kv_heads: usize,
    dim: usize,
}

/// A pass over some tokens.
pub struct Pass {
    /// By layer, head and query: how much attention each key gets.
    pub weights: Vec<Vec<Matrix>>,
    /// The logits behind the last token.
    pub logits: Vec<f64>,
}

pub fn product(matrix: &Matrix, x: &[f64]) -> Vec<f64> {
    matrix.iter().map(|row| row.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
}

pub fn norm(x: &[f64], eps: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().map(|x| x / (mean + eps).sqrt()).collect()
}

impl Slow {
    /// The model in a directory with only a `config.json`, whose weights are drawn from a seed. Its norms are all ones.
    pub fn new(dir: &Path, seed: u64) -> Self {
        let checkpoint = Checkpoint::open_dummy(dir, seed).unwrap();
        let config = checkpoint.config().clone();
        let matrix = |layer, part| {
            let width = config.weight_shape(part)[1];
            let values = checkpoint.weight(layer, part).unwrap().to_vec_f32().unwrap();
            values.chunks_exact(width).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()
        };
        let parts = [Part::Q, Part::K, Part::V, Part::O, Part::Gate, Part::Up, Part::Down];
        for layer in 0..config.num_layers {
            for part in [Part::InputNorm, Part::PostAttentionNorm] {
                assert!(
                    checkpoint.weight(layer, part).unwrap().to_vec_f32().unwrap().iter().all(|&x| x == 1.0)
                );
            }
        }
        let embedding = checkpoint.embedding().unwrap().to_vec_f32().unwrap();
        Self {
            layers: (0..config.num_layers).map(|layer| parts.map(|part| matrix(layer, part))).collect(),
            embedding: embedding
                .chunks_exact(config.hidden_size)
                .map(|row| row.iter().map(|&x| f64::from(x)).collect())
                .collect(),
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            dim: config.head_dim,
        }
    }

    pub fn run(&self, tokens: &[u32]) -> Pass {
        let (dim, group) = (self.dim, self.heads / self.kv_heads);
        let mut x: Matrix = tokens.iter().map(|&token| self.embedding[token as usize].clone()).collect();
        let mut weights = Vec::new();
        for [wq, wk, wv, wo, gate, up, down] in &self.layers {
            let normed: Matrix = x.iter().map(|x| norm(x, 1e-5)).collect();
            let rotated = |matrix: &Matrix, position: usize| {
                let mut all = product(matrix, &normed[position]);
                for head in all.chunks_exact_mut(dim) {
                    for i in 0..dim / 2 {
                        let angle = position as f64 / 10000f64.powf(2.0 * i as f64 / dim as f64);
                        let (a, b) = (head[i], head[i + dim / 2]);
                        head[i] = a * angle.cos() - b * angle.sin();
                        head[i + dim / 2] = b * angle.cos() + a * angle.sin();
                    }
                }
                all
            };
            let all = 0..tokens.len();
            let q: Matrix = all.clone().map(|p| rotated(wq, p)).collect();
            let k: Matrix = all.clone().map(|p| rotated(wk, p)).collect();
            let v: Matrix = all.clone().map(|p| product(wv, &normed[p])).collect();
            let mut attended = vec![vec![0.0; self.heads * dim]; tokens.len()];
            let mut by_head = Vec::new();
            for head in 0..self.heads {
                let kv = head / group;
                let mut by_query = Vec::new();
                for i in all.clone() {
                    let score = |j: usize| -> f64 {
                        let pairs =
                            q[i][head * dim..(head + 1) * dim].iter().zip(&k[j][kv * dim..(kv + 1) * dim]);
                        pairs.map(|(a, b)| a * b).sum::<f64>() / (dim as f64).sqrt()
                    };
                    let scores: Vec<f64> = (0..=i).map(score).collect();
                    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
                    let shares: Vec<f64> = scores.iter().map(|s| (s - most).exp() / sum).collect();
                    for (j, share) in shares.iter().enumerate() {
                        for d in 0..dim {
                            attended[i][head * dim + d] += share * v[j][kv * dim + d];
                        }
                    }
                    by_query.push(shares);
                }
                by_head.push(by_query);
            }
            weights.push(by_head);
            for (x, attended) in x.iter_mut().zip(&attended) {
                for (x, more) in x.iter_mut().zip(product(wo, attended)) {
                    *x += more;
                }
                let normed = norm(x, 1e-5);
                let (gate, up) = (product(gate, &normed), product(up, &normed));
                let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                for (x, more) in x.iter_mut().zip(product(down, &inner)) {
                    *x += more;
                }
            }
        }
        let logits = product(&self.embedding, &norm(&x[tokens.len() - 1], 1e-5));
        Pass { weights, logits }
    }
}
