//! Small models with sparse attention, whose weights are drawn from a seed.
#![allow(dead_code, reason = "each test takes what it needs")]

use std::path::Path;

use pagedraft::session::ModelRef;

/// A small DeepSeek-V3.2, or a GLM-5 whose layers share indexers; the indexers choose 24 keys.
fn model(name: &str, architecture: &str, more: &str) -> ModelRef {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&dir).unwrap();
    let config = format!(
        r#"{{"architectures": ["{architecture}ForCausalLM"], "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96,
        "moe_intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4, "q_lora_rank": 40, "kv_lora_rank": 32,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "index_n_heads": 4, "index_head_dim": 16,
        "index_topk": 24, "first_k_dense_replace": 1, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4,
        "topk_group": 2, "n_shared_experts": 1, "max_position_embeddings": 1024, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "torch_dtype": "float32"{more}}}"#
    );
    // Tests that run at once may ask for the same model: none may see half a file.
    let own = dir.join(format!("config-{:?}.json", std::thread::current().id()));
    std::fs::write(&own, config).unwrap();
    std::fs::rename(&own, dir.join("config.json")).unwrap();
    ModelRef::Directory(dir)
}

/// A small DeepSeek-V3.2 whose `config.json` has `more` at its end, and other texts in place of these.
fn changed(name: &str, more: &str, texts: &[(&str, &str)]) -> ModelRef {
    let model = model(name, "DeepseekV32", more);
    let ModelRef::Directory(dir) = &model else { return model };
    let config = std::fs::read_to_string(dir.join("config.json")).unwrap();
    let config = texts.iter().fold(config, |config, (old, new)| config.replace(old, new));
    std::fs::write(dir.join("config.json"), config).unwrap();
    model
}

/// A small DeepSeek-V3.2 with the tokenizer of the embedded models, for workloads of text.
pub fn with_tokenizer(name: &str) -> ModelRef {
    let texts = [("\"vocab_size\": 300", "\"vocab_size\": 2048"), (": 1024,", ": 8192,")];
    let model = changed(name, "", &texts);
    let ModelRef::Directory(dir) = &model else { return model };
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/target/tokenizer.json");
    std::fs::copy(tokenizer, dir.join("tokenizer.json")).unwrap();
    model
}

pub fn deepseek(name: &str) -> ModelRef {
    model(name, "DeepseekV32", "")
}

/// A DeepSeek-V3.2 of five layers without experts.
pub fn without_experts(name: &str) -> ModelRef {
    let more = r#", "rms_norm_eps": 1e-6"#;
    changed(
        name,
        more,
        &[("\"num_hidden_layers\": 3", "\"num_hidden_layers\": 5"), ("_replace\": 1", "_replace\": 5")],
    )
}

pub fn glm(name: &str) -> ModelRef {
    model(name, "GlmMoeDsa", r#", "index_topk_pattern": "FSF""#)
}
