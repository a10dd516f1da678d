//! A small model, and ways to prune its prompts.
#![allow(dead_code, unused_imports, reason = "each test takes what it needs")]

mod slow;
mod slow_sparse;

use std::path::Path;

use pagedraft::prune::{PruneChoice, PruneSpec};
use pagedraft::session::ModelRef;

pub use slow::Slow;
pub use slow_sparse::{SlowSparse, SparsePass, Thinned};

pub const HIDDEN: usize = 64;
pub const LAYERS: u16 = 6;

/// A small dense model, its weights drawn from a seed.
pub fn model(name: &str) -> ModelRef {
    deep_model(name, LAYERS)
}

/// The same with another number of layers.
pub fn deep_model(name: &str, layers: u16) -> ModelRef {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let config = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "vocab_size": 300, "hidden_size": {HIDDEN}, "intermediate_size": 96,
        "num_hidden_layers": {layers}, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "torch_dtype": "float32"}}"#
    );
    std::fs::write(dir.join("config.json"), config).unwrap();
    ModelRef::Directory(dir)
}

pub fn spec(json: &str) -> PruneChoice {
    PruneChoice::Spec(PruneSpec::from_json(serde_json::from_str(json).unwrap(), Path::new("")).unwrap())
}

/// Modules of random numbers behind layers 1 and 3, and a spec that scores with them and never drops the last `tail` tokens.
pub fn learned(name: &str, tail: u32) -> PruneChoice {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.safetensors"));
    let mut random = crate::schedule::Random(17);
    let mut values = |n: usize| -> Vec<u8> {
        let value = |_| ((random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes();
        (0..n).flat_map(value).collect()
    };
    let shapes = [
        ("0.weight", vec![HIDDEN / 4, HIDDEN]),
        ("0.bias", vec![HIDDEN / 4]),
        ("2.weight", vec![1, HIDDEN / 4]),
        ("2.bias", vec![1]),
    ];
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = [1, 3]
        .iter()
        .flat_map(|layer| shapes.clone().map(|(name, shape)| (format!("{layer}.scorer.{name}"), shape)))
        .map(|(name, shape)| {
            let bytes = values(shape.iter().product());
            (name, shape, bytes)
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    spec(&format!(
        r#"{{"layers": [1, 3], "keep_ratio": [0.7, 0.5], "min_tail_tokens": {tail}, "modules": {:?}}}"#,
        path.to_str().unwrap()
    ))
}
