//! Small models that fill masks, and requests for them.

use pagedraft::session::{
    Decoder, Diffusion, DiffusionOptions, EngineOptions, LoadFormat, ModelRef, Request, SkipLayers,
};
use pagedraft::spec_decode::SkipPolicy;
use serde_json::json;

use crate::models::place;

/// A way to denoise, in which no token is ever stable.
pub fn diffusion(decoder: Decoder, block_length: u32, steps: u32, threshold: Option<f64>) -> Diffusion {
    Diffusion {
        decoder,
        block_length,
        steps: Some(steps),
        threshold,
        skip_policy: SkipPolicy::Cosine { threshold: 1.0, outlier: 0.0 },
        return_steps: true,
        ..Diffusion::default()
    }
}

/// A request for a canvas of `len` tokens.
pub fn request(name: &str, prompt: &[u32], len: u32, diffusion: Diffusion) -> Request {
    Request { diffusion: Some(diffusion), ..Request::new(name, prompt.to_vec(), len) }
}

/// A small engine.
pub fn options(model: ModelRef, skip_layers: SkipLayers) -> EngineOptions {
    let diffusion = DiffusionOptions { skip_layers, ..DiffusionOptions::default() };
    EngineOptions {
        diffusion,
        num_blocks: Some(64),
        max_num_batched_tokens: 512,
        ..EngineOptions::new(model)
    }
}

/// A small model of four layers, its weights drawn from a seed.
pub fn drawn(name: &str, layers: usize, kv_heads: usize, tied: bool) -> ModelRef {
    let config = json!({
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": 64, "n_heads": 4, "n_kv_heads": kv_heads, "n_layers": layers,
        "mlp_hidden_size": 96, "vocab_size": 300, "embedding_size": 304, "max_sequence_length": 1024, "weight_tying": tied,
        "mask_token_id": 299, "eos_token_id": 298, "rope_theta": 10000.0, "torch_dtype": "float32",
    });
    place(name, &config)
}

/// A small engine with weights drawn from a seed.
pub fn dummy(model: &ModelRef, skip_layers: SkipLayers) -> EngineOptions {
    let mut options = options(model.clone(), skip_layers);
    // Graphs are captured for blocks of 8; passes over others run eagerly.
    options.diffusion.all.block_length = 8;
    EngineOptions { load_format: LoadFormat::Dummy, seed: 5, ..options }
}
