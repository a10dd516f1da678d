//! The families of models that the engine runs, and the tensors they are made of.

use std::fmt;

/// A family of models. The first four share one block (RMS norms, grouped-query attention with rotary
/// positions, SwiGLU) and differ in biases and head norms; the others attend over latents, sparsely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Llama 1 to 3.
    Llama,
    /// Mistral: Llama with, in old versions, a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases on q, k and v.
    Qwen2,
    /// Qwen3: an RMS norm on every head of q and k before the rotation.
    Qwen3,
    /// DeepSeek-V3.2: latent attention over the keys that an indexer chooses, and experts.
    DeepseekV32,
    /// GLM-5: the same, with indexers that layers may share.
    GlmMoeDsa,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 6] = [
        Architecture::Llama,
        Architecture::Mistral,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::DeepseekV32,
        Architecture::GlmMoeDsa,
    ];

    /// The class name that `architectures` in `config.json` holds.
    pub const fn class_name(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Mistral => "MistralForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
            Architecture::Qwen3 => "Qwen3ForCausalLM",
            Architecture::DeepseekV32 => "DeepseekV32ForCausalLM",
            Architecture::GlmMoeDsa => "GlmMoeDsaForCausalLM",
        }
    }

    /// The name that `model_type` in `config.json` holds.
    pub const fn model_type(self) -> &'static str {
        match self {
            Architecture::Llama => "llama",
            Architecture::Mistral => "mistral",
            Architecture::Qwen2 => "qwen2",
            Architecture::Qwen3 => "qwen3",
            Architecture::DeepseekV32 => "deepseek_v32",
            Architecture::GlmMoeDsa => "glm_moe_dsa",
        }
    }

    /// Whether its models attend over latents, sparsely.
    pub const fn is_sparse(self) -> bool {
        matches!(self, Architecture::DeepseekV32 | Architecture::GlmMoeDsa)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.class_name())
    }
}

/// The token embedding's name in a Hugging Face checkpoint, `[vocab_size, hidden_size]`.
pub const EMBED_TOKENS: &str = "model.embed_tokens.weight";
/// The output head's name, `[vocab_size, hidden_size]`.
pub const LM_HEAD: &str = "lm_head.weight";
/// The name of the norm before the head, `[hidden_size]`.
pub const FINAL_NORM: &str = "model.norm.weight";

/// A parameterised part of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Part {
    /// The norm before attention, `[hidden]`.
    InputNorm,
    /// Queries, `[heads * head_dim, hidden]`.
    Q,
    /// Keys, `[kv_heads * head_dim, hidden]`.
    K,
    /// Values, `[kv_heads * head_dim, hidden]`.
    V,
    /// The output of attention, `[hidden, heads * head_dim]`.
    O,
    /// Qwen3's norm on each head of q, `[head_dim]`.
    QNorm,
    /// Qwen3's norm on each head of k, `[head_dim]`.
    KNorm,
    /// The norm before the feed-forward half, `[hidden]`.
    PostAttentionNorm,
    /// The gate of the SwiGLU, `[intermediate, hidden]`.
    Gate,
    /// The other factor of the SwiGLU, `[intermediate, hidden]`.
    Up,
    /// Its way back, `[hidden, intermediate]`.
    Down,
}

impl Part {
    /// All of them, in the order in which a layer uses them.
    pub const ALL: [Part; 11] = [
        Part::InputNorm,
        Part::Q,
        Part::K,
        Part::V,
        Part::QNorm,
        Part::KNorm,
        Part::O,
        Part::PostAttentionNorm,
        Part::Gate,
        Part::Up,
        Part::Down,
    ];

    /// The part's module path inside a layer.
    pub const fn module(self) -> &'static str {
        match self {
            Part::InputNorm => "input_layernorm",
            Part::Q => "self_attn.q_proj",
            Part::K => "self_attn.k_proj",
            Part::V => "self_attn.v_proj",
            Part::O => "self_attn.o_proj",
            Part::QNorm => "self_attn.q_norm",
            Part::KNorm => "self_attn.k_norm",
            Part::PostAttentionNorm => "post_attention_layernorm",
            Part::Gate => "mlp.gate_proj",
            Part::Up => "mlp.up_proj",
            Part::Down => "mlp.down_proj",
        }
    }

    /// The name of the part's weight in layer `layer` of a Hugging Face checkpoint.
    pub fn weight_name(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.weight", self.module())
    }

    /// The name of the part's bias in layer `layer`.
    pub fn bias_name(self, layer: usize) -> String {
        format!("model.layers.{layer}.{}.bias", self.module())
    }
}
