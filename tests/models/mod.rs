//! Small models whose weights are drawn from a seed.
#![allow(dead_code, reason = "each test program takes the models that it needs")]

use std::path::{Path, PathBuf};

use pagedraft::session::ModelRef;
use serde_json::{Value, json};

/// The width of the models that are pruned.
pub const HIDDEN: usize = 64;

/// A directory for a test's files. What an earlier run left in it is gone.
pub fn directory(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// A model of this `config.json`, in a directory of this name.
pub fn place(name: &str, config: &Value) -> ModelRef {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&dir).unwrap();
    // Tests that run at once may ask for the same model: none may see half a file.
    let own = dir.join(format!("config-{:?}.json", std::thread::current().id()));
    std::fs::write(&own, config.to_string()).unwrap();
    std::fs::rename(&own, dir.join("config.json")).unwrap();
    ModelRef::Directory(dir)
}

/// The fields of `more` go before those of `config`.
fn with(mut config: Value, more: Value) -> Value {
    let (Some(fields), Value::Object(more)) = (config.as_object_mut(), more) else {
        unreachable!("configurations are objects")
    };
    fields.extend(more);
    config
}

/// A dense decoder of two layers with odd widths.
pub fn small(name: &str, architecture: &str) -> ModelRef {
    let config = json!({
        "architectures": [format!("{architecture}ForCausalLM")], "vocab_size": 300, "hidden_size": 96,
        "intermediate_size": 168, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
        "head_dim": 24, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "torch_dtype": "float32", "hidden_act": "silu",
    });
    place(name, &config)
}

fn thin(architecture: &str, layers: u16) -> Value {
    json!({
        "architectures": [format!("{architecture}ForCausalLM")], "vocab_size": 300, "hidden_size": HIDDEN,
        "intermediate_size": 96, "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "torch_dtype": "float32", "hidden_act": "silu",
    })
}

/// A dense decoder of six thin layers, between which prompts can be pruned.
pub fn six_layers(name: &str) -> ModelRef {
    deep(name, 6)
}

/// The same with another number of layers.
pub fn deep(name: &str, layers: u16) -> ModelRef {
    place(name, &thin("Llama", layers))
}

/// A decoder of four layers, of which every one (Mistral) or every second one (Qwen3) sees a window of `window` tokens.
pub fn windowed(name: &str, architecture: &str, window: u32) -> ModelRef {
    let (some, every) = ("sliding_attention", "full_attention");
    let windows = match architecture {
        "Mistral" => json!({"sliding_window": window}),
        _ => json!({
            "use_sliding_window": true, "sliding_window": window, "max_window_layers": 28,
            "layer_types": [some, every, some, every],
        }),
    };
    place(name, &with(thin(architecture, 4), windows))
}

/// A small DeepSeek-V3.2, or a GLM-5 whose layers share indexers; the indexers choose 24 keys.
fn sparse(architecture: &str, more: Value) -> Value {
    let config = json!({
        "architectures": [format!("{architecture}ForCausalLM")], "vocab_size": 300, "hidden_size": 64,
        "intermediate_size": 96, "moe_intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
        "q_lora_rank": 40, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
        "index_n_heads": 4, "index_head_dim": 16, "index_topk": 24, "first_k_dense_replace": 1,
        "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2, "n_shared_experts": 1,
        "max_position_embeddings": 1024, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "torch_dtype": "float32",
    });
    with(config, more)
}

pub fn deepseek(name: &str) -> ModelRef {
    place(name, &sparse("DeepseekV32", json!({})))
}

/// A DeepSeek-V3.2 of five layers without experts.
pub fn without_experts(name: &str) -> ModelRef {
    let more = json!({"rms_norm_eps": 1e-6, "num_hidden_layers": 5, "first_k_dense_replace": 5});
    place(name, &sparse("DeepseekV32", more))
}

pub fn glm(name: &str) -> ModelRef {
    place(name, &sparse("GlmMoeDsa", json!({"index_topk_pattern": "FSF"})))
}

/// A small DeepSeek-V3.2 with the tokenizer of the embedded models, for workloads of text; its directory.
pub fn with_tokenizer(name: &str) -> String {
    let more = json!({"vocab_size": 2048, "max_position_embeddings": 8192});
    let ModelRef::Directory(dir) = place(name, &sparse("DeepseekV32", more)) else {
        unreachable!("the models of these tests are directories")
    };
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/target/tokenizer.json");
    std::fs::copy(tokenizer, dir.join("tokenizer.json")).unwrap();
    dir.to_str().unwrap().to_owned()
}
