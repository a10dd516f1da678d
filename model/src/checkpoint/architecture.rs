//! The families of models that the engine runs, and the tensors they are made of.

use std::fmt;

/// A family of models. The first four and LLaDA share one block (RMS norms, grouped-query attention with rotary
/// positions, SwiGLU) and differ in biases, head norms and masks; the others attend over latents, sparsely.
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
    /// LLaDA: a Llama that fills masks in a canvas. Its tokens see each other in both directions.
    Llada,
}

impl Architecture {
    /// All of them.
    pub const ALL: [Architecture; 7] = [
        Architecture::Llama,
        Architecture::Mistral,
        Architecture::Qwen2,
        Architecture::Qwen3,
        Architecture::DeepseekV32,
        Architecture::GlmMoeDsa,
        Architecture::Llada,
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
            Architecture::Llada => "LLaDAModelLM",
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
            Architecture::Llada => "llada",
        }
    }

    /// Whether its models attend over latents, sparsely.
    pub const fn is_sparse(self) -> bool {
        matches!(self, Architecture::DeepseekV32 | Architecture::GlmMoeDsa)
    }

    /// The name of the token embedding in a checkpoint, `[vocab_size, hidden_size]`.
    pub const fn embed_tokens(self) -> &'static str {
        match self {
            Architecture::Llada => "model.transformer.wte.weight",
            _ => EMBED_TOKENS,
        }
    }

    /// The name of the output head, `[vocab_size, hidden_size]`.
    pub const fn lm_head(self) -> &'static str {
        match self {
            Architecture::Llada => "model.transformer.ff_out.weight",
            _ => LM_HEAD,
        }
    }

    /// The name of the norm before the head, `[hidden_size]`.
    pub const fn final_norm(self) -> &'static str {
        match self {
            Architecture::Llada => "model.transformer.ln_f.weight",
            _ => FINAL_NORM,
        }
    }

    /// The name of the weight of a part of layer `layer`.
    pub fn weight_name(self, layer: usize, part: Part) -> String {
        match self {
            Architecture::Llada => format!("model.transformer.blocks.{layer}.{}.weight", part.llada_module()),
            _ => part.weight_name(layer),
        }
    }

    /// The name of the bias of a part of layer `layer`.
    pub fn bias_name(self, layer: usize, part: Part) -> String {
        match self {
            Architecture::Llada => format!("model.transformer.blocks.{layer}.{}.bias", part.llada_module()),
            _ => part.bias_name(layer),
        }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.class_name())
    }
}

/// The token embedding's name in most Hugging Face checkpoints, `[vocab_size, hidden_size]`.
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

    /// The part's module path inside a block of LLaDA, which has no head norms. Its `ff_proj` is the gate.
    const fn llada_module(self) -> &'static str {
        match self {
            Part::InputNorm => "attn_norm",
            Part::Q => "q_proj",
            Part::K => "k_proj",
            Part::V => "v_proj",
            Part::QNorm => "q_norm",
            Part::KNorm => "k_norm",
            Part::O => "attn_out",
            Part::PostAttentionNorm => "ff_norm",
            Part::Gate => "ff_proj",
            Part::Up => "up_proj",
            Part::Down => "ff_out",
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
