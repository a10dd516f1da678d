//! The shape of a sparse model, and its tensors.

use anyhow::{Result, ensure};
use pagedraft_model::checkpoint::{Rope, RopeScaling};

/// The shape of a model, in the words of a Hugging Face `config.json` of `deepseek_v32`.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the fields of config.json")]
pub struct Shape {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub q_lora_rank: usize,
    pub kv_lora_rank: usize,
    pub qk_nope_head_dim: usize,
    pub qk_rope_head_dim: usize,
    pub v_head_dim: usize,
    pub intermediate_size: usize,
    pub first_k_dense_replace: usize,
    pub n_routed_experts: usize,
    pub num_experts_per_tok: usize,
    pub moe_intermediate_size: usize,
    pub routed_scaling_factor: f64,
    pub index_n_heads: usize,
    pub index_head_dim: usize,
    pub index_topk: usize,
    pub rope_theta: f64,
    pub yarn: Option<Yarn>,
}

/// `rope_scaling` of the type `yarn`, as DeepSeek's models have it: with `mscale` and `mscale_all_dim` of 1. It lets a trained
/// model read further than the rows that it was trained on: slow rotations are slowed down, so that far keys are turned no
/// further than the farthest were in training.
#[derive(Debug, Clone, Copy, PartialEq)]
#[expect(missing_docs, reason = "the fields of config.json")]
pub struct Yarn {
    pub factor: f64,
    pub original_max_position_embeddings: usize,
}

/// Pairs that turn more often than this over the rows of training keep their speed under YaRN.
pub const YARN_BETA_FAST: f64 = 32.0;
/// Pairs that turn less often than this are slowed down by the whole factor.
pub const YARN_BETA_SLOW: f64 = 1.0;

/// What every norm adds to the mean square; that of the latents is fixed by the architecture.
pub const NORM_EPS: f32 = 1e-6;

impl Shape {
    /// Refuses shapes that no model can have, naming the option to change.
    pub fn check(&self) -> Result<()> {
        for (name, value) in [
            ("--hidden", self.hidden_size),
            ("--layers", self.num_hidden_layers),
            ("--heads", self.num_attention_heads),
            ("--q-lora", self.q_lora_rank),
            ("--kv-lora", self.kv_lora_rank),
            ("--nope-dim", self.qk_nope_head_dim),
            ("--rope-dim", self.qk_rope_head_dim),
            ("--value-dim", self.v_head_dim),
            ("--ffn", self.intermediate_size),
            ("--expert-ffn", self.moe_intermediate_size),
            ("--experts-per-token", self.num_experts_per_tok),
            ("--index-heads", self.index_n_heads),
            ("--index-topk", self.index_topk),
        ] {
            ensure!(value > 0, "{name} is 0; give at least 1");
        }
        ensure!(
            self.qk_rope_head_dim.is_multiple_of(2),
            "--rope-dim {} is odd: the rotary embedding needs pairs",
            self.qk_rope_head_dim
        );
        ensure!(
            self.index_head_dim >= self.qk_rope_head_dim,
            "--index-dim {} is below --rope-dim {}: its first values are rotated",
            self.index_head_dim,
            self.qk_rope_head_dim
        );
        ensure!(
            self.num_experts_per_tok <= self.n_routed_experts,
            "--experts-per-token {} is more than --experts {}",
            self.num_experts_per_tok,
            self.n_routed_experts
        );
        Ok(())
    }

    /// Names and shapes of the tensors, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, heads) = (self.hidden_size, self.num_attention_heads);
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![self.vocab_size, hidden])];
        for layer in 0..self.num_hidden_layers {
            let mut add = |name: &str, shape: Vec<usize>| {
                all.push((format!("model.layers.{layer}.{name}"), shape));
            };
            add("input_layernorm.weight", vec![hidden]);
            add("self_attn.q_a_proj.weight", vec![self.q_lora_rank, hidden]);
            add("self_attn.q_a_layernorm.weight", vec![self.q_lora_rank]);
            add("self_attn.q_b_proj.weight", vec![heads * self.qk_head_dim(), self.q_lora_rank]);
            let latent = self.kv_lora_rank + self.qk_rope_head_dim;
            add("self_attn.kv_a_proj_with_mqa.weight", vec![latent, hidden]);
            add("self_attn.kv_a_layernorm.weight", vec![self.kv_lora_rank]);
            let expanded = heads * (self.qk_nope_head_dim + self.v_head_dim);
            add("self_attn.kv_b_proj.weight", vec![expanded, self.kv_lora_rank]);
            add("self_attn.o_proj.weight", vec![hidden, heads * self.v_head_dim]);
            let (index_heads, dim) = (self.index_n_heads, self.index_head_dim);
            add("self_attn.indexer.wq_b.weight", vec![index_heads * dim, self.q_lora_rank]);
            add("self_attn.indexer.wk.weight", vec![dim, hidden]);
            add("self_attn.indexer.k_norm.weight", vec![dim]);
            add("self_attn.indexer.k_norm.bias", vec![dim]);
            add("self_attn.indexer.weights_proj.weight", vec![index_heads, hidden]);
            add("post_attention_layernorm.weight", vec![hidden]);
            let mut swiglu = |module: &str, inner: usize| {
                for name in ["gate_proj", "up_proj"] {
                    add(&format!("{module}.{name}.weight"), vec![inner, hidden]);
                }
                add(&format!("{module}.down_proj.weight"), vec![hidden, inner]);
            };
            if !self.has_experts(layer) {
                swiglu("mlp", self.intermediate_size);
                continue;
            }
            for expert in 0..self.n_routed_experts {
                swiglu(&format!("mlp.experts.{expert}"), self.moe_intermediate_size);
            }
            swiglu("mlp.shared_experts", self.moe_intermediate_size);
            add("mlp.gate.weight", vec![self.n_routed_experts, hidden]);
            add("mlp.gate.e_score_correction_bias", vec![self.n_routed_experts]);
        }
        all.push(("model.norm.weight".to_owned(), vec![hidden]));
        all
    }

    /// Parameters in all (the embedding, which is also the output head, counted once).
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// The angle, in radians a position, by which each pair of the rotated elements turns.
    pub fn frequencies(&self) -> Vec<f64> {
        let scaling = match self.yarn {
            None => RopeScaling::None,
            Some(Yarn { factor, original_max_position_embeddings }) => RopeScaling::Yarn {
                factor,
                beta_fast: YARN_BETA_FAST,
                beta_slow: YARN_BETA_SLOW,
                original_max_position_embeddings,
            },
        };
        let rope = Rope { theta: self.rope_theta, scaling };
        rope.inv_freq(self.qk_rope_head_dim).into_iter().map(f64::from).collect()
    }

    /// What products of queries and keys are multiplied with.
    pub fn softmax_scale(&self) -> f32 {
        let magnitude = self.yarn.map_or(1.0, |yarn| 0.1 * yarn.factor.ln() + 1.0);
        (magnitude * magnitude) as f32 / (self.qk_head_dim() as f32).sqrt()
    }

    /// Elements of a query head.
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Whether a layer has experts.
    pub fn has_experts(&self, layer: usize) -> bool {
        layer >= self.first_k_dense_replace && self.n_routed_experts > 0
    }
}
