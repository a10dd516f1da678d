//! A DeepSeek-V3.2 without experts in f64, written out, whose prompt is thinned by what its indexers score.

use std::collections::BTreeMap;
use std::path::Path;

use pagedraft::model::checkpoint::{Checkpoint, DsaConfig, ModelConfig};

use super::slow::{Matrix, norm, product};

/// The weights.
pub struct SlowSparse {
    config: ModelConfig,
    dsa: DsaConfig,
    layers: Vec<BTreeMap<String, Matrix>>,
    embedding: Matrix,
}

/// How a prompt is thinned.
pub struct Thinned<'a> {
    /// The layers behind which tokens are dropped, and how many stay.
    pub counts: &'a [(usize, usize)],
    pub compact: bool,
    /// The first and the last tokens, of which all stay.
    pub ends: (u32, u32),
}

/// A pass over a prompt and what follows it.
#[derive(Default)]
pub struct SparsePass {
    /// By layer, the prompt's tokens that stay behind it.
    pub kept: BTreeMap<u16, Vec<u32>>,
    /// By layer and position: the positions of the keys that a token attends to, ascending; empty where the token does not reach the layer.
    pub chosen: Vec<Vec<Vec<i32>>>,
    /// The logits behind the prompt's last token and each that follows.
    pub logits: Vec<Vec<f64>>,
}

/// Turns pairs of values, `half` of them: neighbours, or values half of them apart.
fn turn(x: &mut [f64], position: usize, half: usize, neighbours: bool) {
    for i in 0..half {
        let angle = position as f64 / 10000f64.powf(i as f64 / half as f64);
        let (a, b) = if neighbours { (2 * i, 2 * i + 1) } else { (i, i + half) };
        (x[a], x[b]) = (x[a] * angle.cos() - x[b] * angle.sin(), x[b] * angle.cos() + x[a] * angle.sin());
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The layer norm of the indexer's keys.
fn centred(x: &[f64]) -> Vec<f64> {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / x.len() as f64;
    x.iter().map(|x| (x - mean) / (variance + 1e-6).sqrt()).collect()
}

/// The indices of the greatest `k`, ascending; of equal ones the first.
fn greatest(scores: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order.truncate(k);
    order.sort_unstable();
    order
}

impl SlowSparse {
    /// The model in a directory with only a `config.json`, whose weights are drawn from a seed.
    pub fn new(dir: &Path, seed: u64) -> Self {
        let checkpoint = Checkpoint::open_dummy(dir, seed).unwrap();
        let config = checkpoint.config().clone();
        let dsa = config.dsa.as_deref().unwrap().clone();
        assert!(!dsa.expert_layers.contains(&true) && !dsa.index_rope_interleaved);
        let rows = |values: Vec<f32>, width: usize| -> Matrix {
            values.chunks_exact(width).map(|row| row.iter().map(|&x| f64::from(x)).collect()).collect()
        };
        let layers = (0..config.num_layers).map(|layer| {
            let tensors = config.layer_tensors(layer).into_iter().map(|(name, shape)| {
                let values = checkpoint.tensor(&name, &shape).unwrap().to_vec_f32().unwrap();
                let short = name.split_once(&format!("layers.{layer}.")).unwrap().1;
                (short.trim_end_matches(".weight").to_owned(), rows(values, *shape.last().unwrap()))
            });
            tensors.collect()
        });
        let embedding = rows(checkpoint.embedding().unwrap().to_vec_f32().unwrap(), config.hidden_size);
        Self { layers: layers.collect(), embedding, config, dsa }
    }

    pub fn run(&self, tokens: &[u32], prompt_len: usize, thinned: &Thinned<'_>) -> SparsePass {
        let mut pass = SparsePass::default();
        let (dsa, heads) = (&self.dsa, self.config.num_heads);
        let (half, eps) = (dsa.qk_rope_head_dim / 2, 1e-6);
        let mut x: Matrix = tokens.iter().map(|&token| self.embedding[token as usize].clone()).collect();
        // Where the rows of `x` stand in the sequence, and the numbers by which a layer knows them.
        let mut reach: Vec<usize> = (0..tokens.len()).collect();
        let mut numbers = reach.clone();
        for (l, w) in self.layers.iter().enumerate() {
            let w = |name: &str| &w[name];
            let normed: Matrix = x.iter().map(|x| norm(x, 1e-6)).collect();
            let (mut q, mut latents, mut index_q, mut index_keys, mut weights) =
                (Matrix::new(), Matrix::new(), Matrix::new(), Matrix::new(), Matrix::new());
            for (row, &at) in normed.iter().zip(&numbers) {
                let compressed = norm(&product(w("self_attn.q_a_proj"), row), eps);
                let mut own = product(w("self_attn.q_b_proj"), &compressed);
                own.chunks_exact_mut(dsa.qk_head_dim())
                    .for_each(|head| turn(&mut head[dsa.qk_nope_head_dim..], at, half, true));
                q.push(own);
                let both = product(w("self_attn.kv_a_proj_with_mqa"), row);
                let (latent, key) = both.split_at(dsa.kv_lora_rank);
                let mut key = key.to_vec();
                turn(&mut key, at, half, true);
                latents.push(norm(latent, eps).into_iter().chain(key).collect());
                let mut own = product(w("self_attn.indexer.wq_b"), &compressed);
                own.chunks_exact_mut(dsa.index_head_dim).for_each(|head| turn(head, at, half, false));
                index_q.push(own);
                let mut key = centred(&product(w("self_attn.indexer.wk"), row));
                let bias = &w("self_attn.indexer.k_norm.bias")[0];
                key.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
                turn(&mut key, at, half, false);
                index_keys.push(key);
                weights.push(product(w("self_attn.indexer.weights_proj"), row));
            }
            let scale = 1.0 / ((dsa.index_heads * dsa.index_head_dim) as f64).sqrt();
            let score = |i: usize, j: usize| -> f64 {
                let heads = index_q[i].chunks_exact(dsa.index_head_dim).zip(&weights[i]);
                heads.map(|(q, weight)| scale * weight * dot(q, &index_keys[j]).max(0.0)).sum()
            };
            let (expand, rank) = (w("self_attn.kv_b_proj"), dsa.kv_lora_rank);
            let mut by_position = vec![Vec::new(); tokens.len()];
            for i in 0..x.len() {
                let scores: Vec<f64> = (0..=i).map(|j| score(i, j)).collect();
                let chosen = greatest(&scores, dsa.index_topk);
                by_position[reach[i]] = chosen.iter().map(|&j| reach[j] as i32).collect();
                let mut attended = Vec::new();
                for head in 0..heads {
                    let own = &q[i][head * dsa.qk_head_dim()..(head + 1) * dsa.qk_head_dim()];
                    let rows = &expand[head * (dsa.qk_nope_head_dim + dsa.v_head_dim)..];
                    let of = |rows: &[Vec<f64>], j: usize| -> Vec<f64> {
                        rows.iter().map(|row| dot(row, &latents[j][..rank])).collect()
                    };
                    let product_with = |&j: &usize| {
                        let (plain, rotated) = own.split_at(dsa.qk_nope_head_dim);
                        let key = of(&rows[..dsa.qk_nope_head_dim], j);
                        (dot(plain, &key) + dot(rotated, &latents[j][rank..])) * f64::from(dsa.softmax_scale)
                    };
                    let products: Vec<f64> = chosen.iter().map(product_with).collect();
                    let most = products.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = products.iter().map(|s| (s - most).exp()).sum();
                    let mut value = vec![0.0; dsa.v_head_dim];
                    for (&j, product) in chosen.iter().zip(&products) {
                        let own = of(&rows[dsa.qk_nope_head_dim..][..dsa.v_head_dim], j);
                        value.iter_mut().zip(own).for_each(|(v, x)| *v += (product - most).exp() / sum * x);
                    }
                    attended.extend(value);
                }
                for (x, more) in x[i].iter_mut().zip(product(w("self_attn.o_proj"), &attended)) {
                    *x += more;
                }
            }
            pass.chosen.push(by_position);
            for x in &mut x {
                let normed = norm(x, 1e-6);
                let (gate, up) = (product(w("mlp.gate_proj"), &normed), product(w("mlp.up_proj"), &normed));
                let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                x.iter_mut().zip(product(w("mlp.down_proj"), &inner)).for_each(|(x, more)| *x += more);
            }
            let Some(&(_, count)) = thinned.counts.iter().find(|(layer, _)| *layer == l) else { continue };
            // The last 64 of the prompt's tokens say what the others are worth.
            let n = reach.iter().filter(|&&position| position < prompt_len).count();
            let last = n.saturating_sub(64)..n;
            let worth = |j: usize| -> f64 {
                let stays = (reach[j] as u32) < thinned.ends.0
                    || reach[j] as u32 >= prompt_len as u32 - thinned.ends.1;
                let sum: f64 = last.clone().filter(|&i| i >= j).map(|i| score(i, j)).sum();
                if stays { f64::INFINITY } else { sum }
            };
            let mut stay = greatest(&(0..n).map(worth).collect::<Vec<f64>>(), count);
            pass.kept.insert(l as u16, stay.iter().map(|&j| reach[j] as u32).collect());
            stay.extend(n..reach.len());
            x = stay.iter().map(|&j| x[j].clone()).collect();
            reach = stay.iter().map(|&j| reach[j]).collect();
            numbers = if thinned.compact { (0..reach.len()).collect() } else { reach.clone() };
        }
        let behind = reach.iter().zip(&x).filter(|&(&position, _)| position + 1 >= prompt_len);
        pass.logits = behind.map(|(_, x)| product(&self.embedding, &norm(x, 1e-6))).collect();
        pass
    }
}
