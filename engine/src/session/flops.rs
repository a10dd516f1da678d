//! How many floating-point operations a prefill takes.

use pagedraft_model::checkpoint::ModelConfig;

use super::Session;

/// The floating-point operations of a prefill in which layer l computes `lens[l]` tokens, each of which sees those before it. `scored` has
/// the tokens that each trained module scores. A multiplication and an addition are two. Norms, rotations and activations are left out.
fn prefill(config: &ModelConfig, lens: &[u32], scored: &[u32]) -> f64 {
    let width = |n: usize| n as f64;
    let (hidden, q, kv) = (width(config.hidden_size), width(config.q_size()), width(config.kv_size()));
    let products = hidden * (q + 2.0 * kv) + q * hidden + 3.0 * hidden * width(config.intermediate_size);
    let layers = lens.iter().map(|&n| {
        let n = f64::from(n);
        2.0 * n * products + 4.0 * q * n * (n + 1.0) / 2.0
    });
    let inner = (hidden / 4.0).floor();
    let modules = scored.iter().map(|&n| 2.0 * f64::from(n) * (hidden * inner + inner));
    let head = 2.0 * hidden * width(config.vocab_size);
    layers.sum::<f64>() + modules.sum::<f64>() + head
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
        let scored = prefill(&config, &vec![2; layers], &[2]) - want;
        let hidden = config.hidden_size as f64;
        assert_eq!(scored, 2.0 * 2.0 * (hidden * hidden / 4.0 + hidden / 4.0));
    }
}
