//! Sparse models as Hugging Face directories.

use super::model::Sparse;
use super::shape::{NORM_EPS, Shape, YARN_BETA_FAST, YARN_BETA_SLOW, Yarn};
use crate::train::export::{MAX_POSITIONS, read_config, read_tensors, save_tensors, write_whole};
use anyhow::{Context, Result, ensure};
use candle_core::DType;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// The `config.json` of a shape.
pub fn config(shape: &Shape, (bos, eos): (u32, u32), dtype: DType) -> Value {
    json!({
        "architectures": ["DeepseekV32ForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "first_k_dense_replace": shape.first_k_dense_replace,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "index_head_dim": shape.index_head_dim,
        "index_n_heads": shape.index_n_heads,
        "index_topk": shape.index_topk,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate_size,
        "kv_lora_rank": shape.kv_lora_rank,
        "max_position_embeddings": MAX_POSITIONS,
        "model_type": "deepseek_v32",
        "moe_intermediate_size": shape.moe_intermediate_size,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": shape.n_routed_experts,
        "n_shared_experts": 1,
        "norm_topk_prob": true,
        "num_attention_heads": shape.num_attention_heads,
        "num_experts_per_tok": shape.num_experts_per_tok,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_key_value_heads": shape.num_attention_heads,
        "q_lora_rank": shape.q_lora_rank,
        "qk_nope_head_dim": shape.qk_nope_head_dim,
        "qk_rope_head_dim": shape.qk_rope_head_dim,
        "rms_norm_eps": f64::from(NORM_EPS),
        "rope_scaling": shape.yarn.map(|yarn| json!({
            "type": "yarn",
            "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_max_position_embeddings,
            "beta_fast": YARN_BETA_FAST,
            "beta_slow": YARN_BETA_SLOW,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        })),
        "rope_theta": shape.rope_theta,
        "routed_scaling_factor": shape.routed_scaling_factor,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": true,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "torch_dtype": if dtype == DType::BF16 { "bfloat16" } else { "float32" },
        "use_cache": true,
        "v_head_dim": shape.v_head_dim,
        "vocab_size": shape.vocab_size,
    })
}

/// Writes `config.json` and `model.safetensors` (bf16, rounded to nearest, or f32) into `folder`.
pub fn save(model: &Sparse, specials: (u32, u32), dtype: DType, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    let text = serde_json::to_string_pretty(&config(&model.shape, specials, dtype))? + "\n";
    write_whole(&folder.join("config.json"), text.as_bytes())?;
    let tensors = model
        .weights
        .iter()
        .map(|(name, var)| Ok((name.clone(), var.as_detached_tensor().to_dtype(dtype)?)))
        .collect::<Result<HashMap<_, _>>>()?;
    save_tensors(&folder.join("model.safetensors"), &tensors)
}

/// Reads `rope_scaling`, where there is one.
fn yarn(config: &Value) -> Result<Option<Yarn>> {
    let Some(scaling) = config.get("rope_scaling").filter(|scaling| !scaling.is_null()) else {
        return Ok(None);
    };
    let number = |name: &str| {
        scaling.get(name).and_then(Value::as_f64).with_context(|| {
            format!("rope_scaling.{name} is missing or no number; train dsa reads what it wrote, type yarn")
        })
    };
    for (name, only) in [
        ("beta_fast", YARN_BETA_FAST),
        ("beta_slow", YARN_BETA_SLOW),
        ("mscale", 1.0),
        ("mscale_all_dim", 1.0),
    ] {
        let given = number(name)?;
        ensure!(given == only, "rope_scaling.{name} is {given}; train dsa knows {only} alone");
    }
    let (factor, original) = (number("factor")?, number("original_max_position_embeddings")?);
    ensure!(
        factor >= 1.0 && original >= 1.0,
        "rope_scaling.factor is {factor} and original_max_position_embeddings {original}; both are at least 1"
    );
    Ok(Some(Yarn { factor, original_max_position_embeddings: original as usize }))
}

/// Reads a directory that [`save`] wrote, widened to f32.
pub fn load(folder: &Path) -> Result<Sparse> {
    let json = read_config(folder)?;
    let size = |name| json.size(name);
    let shape = Shape {
        vocab_size: size("vocab_size")?,
        hidden_size: size("hidden_size")?,
        num_hidden_layers: size("num_hidden_layers")?,
        num_attention_heads: size("num_attention_heads")?,
        q_lora_rank: size("q_lora_rank")?,
        kv_lora_rank: size("kv_lora_rank")?,
        qk_nope_head_dim: size("qk_nope_head_dim")?,
        qk_rope_head_dim: size("qk_rope_head_dim")?,
        v_head_dim: size("v_head_dim")?,
        intermediate_size: size("intermediate_size")?,
        first_k_dense_replace: size("first_k_dense_replace")?,
        n_routed_experts: size("n_routed_experts")?,
        num_experts_per_tok: size("num_experts_per_tok")?,
        moe_intermediate_size: size("moe_intermediate_size")?,
        routed_scaling_factor: json.real("routed_scaling_factor")?,
        index_n_heads: size("index_n_heads")?,
        index_head_dim: size("index_head_dim")?,
        index_topk: size("index_topk")?,
        rope_theta: json.real("rope_theta")?,
        yarn: yarn(&json.json)?,
    };
    Sparse::from_tensors(shape, &read_tensors(folder)?).with_context(|| format!("{}", folder.display()))
}
