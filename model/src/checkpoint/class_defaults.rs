//! What a field that `config.json` leaves out is in transformers' configuration classes.

use super::architecture::Architecture;

/// The defaults of one configuration class (transformers 4.57 and 5.20 have the same).
pub(super) struct ClassDefaults {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    /// `None`: as many as query heads.
    pub num_key_value_heads: Option<usize>,
    /// `None`: `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    pub max_position_embeddings: usize,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<u32>,
}

impl ClassDefaults {
    pub const RMS_NORM_EPS: f64 = 1e-6;
    pub const ROPE_THETA: f64 = 10_000.0;

    pub const fn of(architecture: Architecture) -> Self {
        let llama = ClassDefaults {
            vocab_size: 32_000,
            hidden_size: 4096,
            intermediate_size: 11_008,
            num_hidden_layers: 32,
            num_attention_heads: 32,
            num_key_value_heads: None,
            head_dim: None,
            max_position_embeddings: 2048,
            bos_token_id: Some(1),
            eos_token_id: Some(2),
        };
        let qwen2 = ClassDefaults {
            vocab_size: 151_936,
            intermediate_size: 22_016,
            num_key_value_heads: Some(32),
            max_position_embeddings: 32_768,
            bos_token_id: None,
            eos_token_id: None,
            ..llama
        };
        match architecture {
            // The sparse ones and LLaDA have defaults of their own: see `dsa_parse` and `llada_parse`.
            Architecture::Llama
            | Architecture::DeepseekV32
            | Architecture::GlmMoeDsa
            | Architecture::Llada => llama,
            Architecture::Mistral => ClassDefaults {
                intermediate_size: 14_336,
                num_key_value_heads: Some(8),
                max_position_embeddings: 131_072,
                ..llama
            },
            Architecture::Qwen2 => qwen2,
            Architecture::Qwen3 => ClassDefaults { head_dim: Some(128), ..qwen2 },
        }
    }
}
