//! What a model with sparse attention over latents (DeepSeek-V3.2, GLM-5) has beside the fields of every model.

use super::config::ModelConfig;

/// The eps of the norms of the latents. transformers' classes leave it at the norm's default, whatever `rms_norm_eps` is.
pub const LATENT_NORM_EPS: f32 = 1e-6;
/// The eps of the layer norm of the indexer's keys.
pub const INDEX_NORM_EPS: f32 = 1e-6;

/// The shape of multi-head latent attention with a lightning indexer, and of the experts.
///
/// Formulas: DeepSeek-V3.2-Exp, `inference/model.py`. Made by [`ModelConfig::parse`].
#[derive(Clone, Debug, PartialEq)]
pub struct DsaConfig {
    /// Width of the compressed queries.
    pub q_lora_rank: usize,
    /// Width of the compressed keys and values: what is cached of a token beside its rotated key.
    pub kv_lora_rank: usize,
    /// Values of a query head that are not rotated.
    pub qk_nope_head_dim: usize,
    /// Values of a query head that are rotated, in neighbouring pairs; even.
    pub qk_rope_head_dim: usize,
    /// Values of a head's output.
    pub v_head_dim: usize,
    /// What products of queries and keys are multiplied with.
    pub softmax_scale: f32,
    /// What the cosines and sines of the rotations are multiplied with (YaRN's attention factor; mostly 1).
    pub rotation_scale: f32,
    /// Heads of the indexer.
    pub index_heads: usize,
    /// Values of a head, and of the one key, of the indexer; the first `qk_rope_head_dim` are rotated.
    pub index_head_dim: usize,
    /// The most keys that a query attends to.
    pub index_topk: usize,
    /// Whether the indexer rotates neighbouring values instead of values half the rotated part apart.
    pub index_rope_interleaved: bool,
    /// For each layer the layer whose indexer chooses its keys: itself, or an earlier one.
    pub index_sources: Vec<u16>,
    /// Whether each layer has experts in place of one feed-forward half.
    pub expert_layers: Vec<bool>,
    /// The experts of the layers that have them.
    pub experts: ExpertsConfig,
    /// How the indexer's keys are cached.
    pub index_keys: IndexKeys,
    /// Whether scales of what is quantised while the model runs are powers of two (`scale_fmt` "ue8m0").
    pub power_of_two_scales: bool,
    /// Rows and columns of the blocks of a weight that share a scale, where weights are stored in fp8.
    pub fp8_block: Option<[usize; 2]>,
}

/// How the keys of the indexer are cached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexKeys {
    /// In the dtype of the cache.
    #[default]
    Plain,
    /// In fp8 with a scale a key; queries are rounded alike.
    Fp8 {
        /// Whether keys and queries are multiplied with a Hadamard matrix before, as DeepSeek's own program does: it spreads
        /// outliers over all values, and changes no score but by rounding.
        hadamard: bool,
    },
}

/// The experts of a layer, and how a token finds its own (`noaux_tc`).
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// Experts among which a token is routed.
    pub count: usize,
    /// Experts a token.
    pub per_token: usize,
    /// Groups that the experts form.
    pub groups: usize,
    /// Groups from which a token's experts come.
    pub groups_kept: usize,
    /// Width of an expert.
    pub intermediate_size: usize,
    /// Width of the expert that every token has, in experts; 0 if there is none.
    pub shared: usize,
    /// Whether the weights of a token's experts are divided by their sum.
    pub normalised: bool,
    /// What the weights are multiplied with.
    pub scale: f32,
}

impl DsaConfig {
    /// Values of a query head: `qk_nope_head_dim + qk_rope_head_dim`.
    #[must_use]
    pub fn qk_head_dim(&self) -> usize {
        self.qk_nope_head_dim + self.qk_rope_head_dim
    }

    /// Values that are cached of a token in each layer: `kv_lora_rank + qk_rope_head_dim`.
    #[must_use]
    pub fn latent_width(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }

    /// Whether a layer has an indexer of its own.
    #[must_use]
    pub fn has_indexer(&self, layer: usize) -> bool {
        self.index_sources.get(layer).is_some_and(|&source| usize::from(source) == layer)
    }

    /// The layers that have an indexer of their own, ascending.
    pub fn indexer_layers(&self) -> impl Iterator<Item = u16> + '_ {
        (0u16..).zip(&self.index_sources).filter(|&(layer, &source)| layer == source).map(|(layer, _)| layer)
    }

    /// Whether a layer has experts.
    #[must_use]
    pub fn has_experts(&self, layer: usize) -> bool {
        self.expert_layers.get(layer).copied().unwrap_or(false)
    }

    /// Values that a step's activations take for each token row, all buffers together; a key that may be chosen counts as one.
    pub(super) fn row_values(&self, config: &ModelConfig) -> usize {
        let (hidden, heads, experts) = (config.hidden_size, config.num_heads, &self.experts);
        let queries =
            2 * self.q_lora_rank + heads * (self.qk_head_dim() + 2 * self.kv_lora_rank + self.v_head_dim);
        let indexer = (self.index_heads + 1) * (self.index_head_dim + 1) + self.index_topk;
        let widths = config.intermediate_size + (experts.shared + 1) * experts.intermediate_size;
        4 * hidden
            + queries
            + self.latent_width()
            + indexer
            + 3 * widths
            + experts.count
            + 2 * experts.per_token
    }

    /// Every tensor of a layer of this model, with its shape.
    pub(super) fn layer_tensors(&self, config: &ModelConfig, layer: usize) -> Vec<(String, Vec<usize>)> {
        let mut tensors = Vec::new();
        let mut add = |module: &str, shape: &[usize]| {
            tensors.push((format!("model.layers.{layer}.{module}"), shape.to_vec()));
        };
        let (hidden, heads) = (config.hidden_size, config.num_heads);
        add("input_layernorm.weight", &[hidden]);
        add("self_attn.q_a_proj.weight", &[self.q_lora_rank, hidden]);
        add("self_attn.q_a_layernorm.weight", &[self.q_lora_rank]);
        add("self_attn.q_b_proj.weight", &[heads * self.qk_head_dim(), self.q_lora_rank]);
        add("self_attn.kv_a_proj_with_mqa.weight", &[self.latent_width(), hidden]);
        add("self_attn.kv_a_layernorm.weight", &[self.kv_lora_rank]);
        let expanded = heads * (self.qk_nope_head_dim + self.v_head_dim);
        add("self_attn.kv_b_proj.weight", &[expanded, self.kv_lora_rank]);
        add("self_attn.o_proj.weight", &[hidden, heads * self.v_head_dim]);
        if config.o_bias {
            add("self_attn.q_a_proj.bias", &[self.q_lora_rank]);
            add("self_attn.kv_a_proj_with_mqa.bias", &[self.latent_width()]);
            add("self_attn.o_proj.bias", &[hidden]);
        }
        if self.has_indexer(layer) {
            let dim = self.index_head_dim;
            add("self_attn.indexer.wq_b.weight", &[self.index_heads * dim, self.q_lora_rank]);
            add("self_attn.indexer.wk.weight", &[dim, hidden]);
            add("self_attn.indexer.k_norm.weight", &[dim]);
            add("self_attn.indexer.k_norm.bias", &[dim]);
            add("self_attn.indexer.weights_proj.weight", &[self.index_heads, hidden]);
        }
        add("post_attention_layernorm.weight", &[hidden]);
        let mut swiglu = |module: &str, inner: usize| {
            for name in ["gate_proj", "up_proj"] {
                add(&format!("{module}.{name}.weight"), &[inner, hidden]);
            }
            add(&format!("{module}.down_proj.weight"), &[hidden, inner]);
        };
        if !self.has_experts(layer) {
            swiglu("mlp", config.intermediate_size);
            return tensors;
        }
        let experts = &self.experts;
        for expert in 0..experts.count {
            swiglu(&format!("mlp.experts.{expert}"), experts.intermediate_size);
        }
        if experts.shared > 0 {
            swiglu("mlp.shared_experts", experts.shared * experts.intermediate_size);
        }
        add("mlp.gate.weight", &[experts.count, hidden]);
        add("mlp.gate.e_score_correction_bias", &[experts.count]);
        tensors
    }

    /// Tensors that a checkpoint of this configuration must not have: leaving them out would change what is computed.
    pub(super) fn denied_tensors(&self, config: &ModelConfig, layer: usize) -> Vec<(String, &'static str)> {
        let mut denied = Vec::new();
        let name = |module: &str| format!("model.layers.{layer}.{module}");
        if !config.o_bias {
            for module in ["q_a_proj", "kv_a_proj_with_mqa", "o_proj"] {
                let hint = "config.json says there is no such bias (attention_bias)";
                denied.push((name(&format!("self_attn.{module}.bias")), hint));
            }
        }
        if !self.has_indexer(layer) {
            let hint = "config.json says that the layer shares the indexer of an earlier one (indexer_types)";
            denied.push((name("self_attn.indexer.wk.weight"), hint));
        }
        if !self.has_experts(layer) {
            denied.push((name("mlp.gate.weight"), "config.json says that the layer has no experts"));
        } else if self.experts.shared == 0 {
            let hint = "config.json says that there is no shared expert (n_shared_experts)";
            denied.push((name("mlp.shared_experts.gate_proj.weight"), hint));
        }
        denied
    }
}
