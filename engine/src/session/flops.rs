//! How many floating-point operations a prefill takes.

use pagedraft_model::checkpoint::{DsaConfig, ModelConfig};

use super::Session;

/// The floating-point operations of a prefill in which layer l computes `lens[l]` tokens, each of which sees those before it. `scored` has
/// the tokens that each trained module scores. A multiplication and an addition are two. Norms, rotations and activations are left out.
fn prefill(config: &ModelConfig, lens: &[u32], scored: &[u32]) -> f64 {
    let width = |n: usize| n as f64;
    let hidden = width(config.hidden_size);
    let layers = lens.iter().enumerate().map(|(layer, &n)| match config.dsa.as_deref() {
        Some(dsa) => sparse_layer(config, dsa, layer, n),
        None => dense_layer(config, n),
    });
    let inner = (hidden / 4.0).floor();
    let modules = scored.iter().map(|&n| 2.0 * f64::from(n) * (hidden * inner + inner));
    let head = 2.0 * hidden * width(config.vocab_size);
    layers.sum::<f64>() + modules.sum::<f64>() + head
}

/// A dense layer that computes `n` tokens.
fn dense_layer(config: &ModelConfig, n: u32) -> f64 {
    let [hidden, q, kv, inner] =
        [config.hidden_size, config.q_size(), config.kv_size(), config.intermediate_size].map(|n| n as f64);
    let products = hidden * (q + 2.0 * kv) + q * hidden + 3.0 * hidden * inner;
    let n = f64::from(n);
    2.0 * n * products + 4.0 * q * n * (n + 1.0) / 2.0
}

/// A layer of sparse attention over latents that computes `n` tokens. Its indexer, if it has one, scores every key for the tokens that see more
/// than it chooses.
fn sparse_layer(config: &ModelConfig, dsa: &DsaConfig, layer: usize, n: u32) -> f64 {
    let [hidden, heads, q, rank] =
        [config.hidden_size, config.num_heads, dsa.q_lora_rank, dsa.kv_lora_rank].map(|n| n as f64);
    let [nope, rope, value] = [dsa.qk_nope_head_dim, dsa.qk_rope_head_dim, dsa.v_head_dim].map(|n| n as f64);
    let experts = &dsa.experts;
    let index = (dsa.index_heads * dsa.index_head_dim) as f64;
    let mut products = hidden * (q + rank + rope)
        + heads * (q * (nope + rope) + rank * (nope + value) + value * hidden)
        + 3.0 * hidden * config.intermediate_size as f64;
    if dsa.has_experts(layer) {
        let inner = ((experts.per_token + experts.shared) * experts.intermediate_size) as f64;
        products += hidden * (3.0 * inner + experts.count as f64 - 3.0 * config.intermediate_size as f64);
    }
    let (n, k) = (f64::from(n), f64::from(n).min(dsa.index_topk as f64));
    // Pairs of a token and a key that it attends to, and of one and a key that is scored for it.
    let (pairs, mut scored) = (k * (k + 1.0) / 2.0 + (n - k) * k, 0.0);
    if dsa.has_indexer(layer) {
        products += q * index + hidden * (dsa.index_head_dim + dsa.index_heads) as f64;
        scored = n * (n + 1.0) / 2.0 - k * (k + 1.0) / 2.0;
    }
    2.0 * (n * products + pairs * heads * (2.0 * rank + rope) + scored * (index + dsa.index_heads as f64))
}

impl Session {
    /// How many layers the model has.
    pub fn num_layers(&mut self) -> usize {
        self.executor.runner().config().num_layers
    }

    /// The floating-point operations of a prefill in which layer l computes `lens[l]` tokens, and trained modules score so many tokens each.
    pub fn prefill_flops(&mut self, lens: &[u32], scored: &[u32]) -> f64 {
        prefill(self.executor.runner().config(), lens, scored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::builtin;

    #[test]
    fn the_count_is_that_of_every_product_and_every_pair_of_a_query_and_a_key() {
        let config = builtin::checkpoint("target").unwrap().config().clone();
        let layers = config.num_layers;
        // Two tokens see three keys together; each key costs a product with the query and one with the weight.
        let pairs = 3.0 * 4.0 * config.q_size() as f64;
        let weights = config.num_parameters() as f64
            - (config.vocab_size * config.hidden_size) as f64
                * if config.tie_word_embeddings { 1.0 } else { 2.0 };
        let vectors = (config.hidden_size * (2 * layers + 1)) as f64;
        let want = 2.0 * 2.0 * (weights - vectors)
            + layers as f64 * pairs
            + 2.0 * (config.hidden_size * config.vocab_size) as f64;
        assert_eq!(prefill(&config, &vec![2; layers], &[]), want);
        // Of a model with sparse attention every product of a token counts once: a token alone sees one key, and no key is scored.
        let sparse = builtin::checkpoint("dsa").unwrap().config().clone();
        let dsa = sparse.dsa.as_deref().unwrap();
        let matrices = (0..sparse.num_layers)
            .flat_map(|layer| sparse.layer_tensors(layer))
            .filter(|(_, shape)| shape.len() == 2);
        let expert = dsa.experts.per_token as f64 / dsa.experts.count as f64;
        let used = matrices.map(|(name, shape)| {
            (shape[0] * shape[1]) as f64 * if name.contains(".experts.") { expert } else { 1.0 }
        });
        let pairs =
            (sparse.num_layers * sparse.num_heads * (2 * dsa.kv_lora_rank + dsa.qk_rope_head_dim)) as f64;
        let head = (sparse.hidden_size * sparse.vocab_size) as f64;
        let want_sparse = 2.0 * (used.sum::<f64>() + pairs + head);
        let found = prefill(&sparse, &vec![1; sparse.num_layers], &[]);
        assert!((found / want_sparse - 1.0).abs() < 1e-12, "{found} in place of {want_sparse}");
        let scored = prefill(&config, &vec![2; layers], &[2]) - want;
        let hidden = config.hidden_size as f64;
        assert_eq!(scored, 2.0 * 2.0 * (hidden * hidden / 4.0 + hidden / 4.0));
    }
}
