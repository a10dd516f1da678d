//! Models as Hugging Face directories: written whole or not at all, and read back.

use super::llama::{Config, Llama};
use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor};
use pagedraft_model::checkpoint::{Architecture, Checkpoint, EMBED_TOKENS, FINAL_NORM, LM_HEAD, Part};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// `max_position_embeddings` of the exported models: what an engine may be asked for, far more than
/// they were trained on.
pub const MAX_POSITIONS: usize = 32768;

/// Writes `bytes` beside `file`, then renames: a reader or a kill never sees half a file.
pub fn write_whole(file: &Path, bytes: &[u8]) -> Result<()> {
    let part = file.with_extension("part");
    fs::write(&part, bytes).with_context(|| format!("{} can't be written", part.display()))?;
    fs::rename(&part, file).with_context(|| format!("{} can't be replaced", file.display()))
}

/// Saves tensors as safetensors beside `file`, then renames.
pub fn save_tensors(file: &Path, tensors: &HashMap<String, Tensor>) -> Result<()> {
    let part = file.with_extension("part");
    candle_core::safetensors::save(tensors, &part)
        .with_context(|| format!("{} can't be written", part.display()))?;
    fs::rename(&part, file).with_context(|| format!("{} can't be replaced", file.display()))
}

/// Writes `config.json` and `model.safetensors` (bf16, rounded to nearest) into `folder`.
pub fn save(
    config: &Config,
    weights: &HashMap<String, Tensor>,
    (bos, eos): (u32, u32),
    folder: &Path,
) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("{} can't be made", folder.display()))?;
    let text = match config.mask {
        Some(mask) => llada_config(config, mask, (bos, eos)),
        None => llama_config(config, (bos, eos)),
    };
    write_whole(&folder.join("config.json"), (serde_json::to_string_pretty(&text)? + "\n").as_bytes())?;
    let rounded = weights
        .iter()
        .map(|(name, tensor)| {
            let name = if config.mask.is_some() { llada_name(name, config) } else { name.clone() };
            Ok((name, tensor.to_dtype(DType::BF16)?))
        })
        .collect::<Result<HashMap<_, _>>>()?;
    save_tensors(&folder.join("model.safetensors"), &rounded)
}

/// The name that a tensor of the trainer has in a checkpoint of LLaDA.
fn llada_name(name: &str, config: &Config) -> String {
    let llada = Architecture::Llada;
    match name {
        EMBED_TOKENS => llada.embed_tokens().to_owned(),
        FINAL_NORM => llada.final_norm().to_owned(),
        LM_HEAD => llada.lm_head().to_owned(),
        _ => {
            let parts = (0..config.num_hidden_layers).flat_map(|layer| Part::ALL.map(|part| (layer, part)));
            let found = parts.into_iter().find(|&(layer, part)| part.weight_name(layer) == name);
            found.map_or_else(|| name.to_owned(), |(layer, part)| llada.weight_name(layer, part))
        }
    }
}

fn llada_config(config: &Config, mask: u32, (bos, eos): (u32, u32)) -> Value {
    json!({
        "activation_type": "silu",
        "architectures": [Architecture::Llada.class_name()],
        "block_type": "llama",
        "bos_token_id": bos,
        "d_model": config.hidden_size,
        "embedding_size": config.vocab_size,
        "eos_token_id": eos,
        "include_bias": false,
        "include_qkv_bias": false,
        "layer_norm_type": "rms",
        "mask_token_id": mask,
        "max_sequence_length": MAX_POSITIONS,
        "mlp_hidden_size": config.intermediate_size,
        "model_type": Architecture::Llada.model_type(),
        "n_heads": config.num_attention_heads,
        "n_kv_heads": config.num_key_value_heads,
        "n_layers": config.num_hidden_layers,
        "rms_norm_eps": config.rms_norm_eps,
        "rope": true,
        "rope_theta": config.rope_theta,
        "torch_dtype": "bfloat16",
        "vocab_size": config.vocab_size,
        "weight_tying": config.tied,
    })
}

fn llama_config(config: &Config, (bos, eos): (u32, u32)) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": false,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": MAX_POSITIONS,
        "mlp_bias": false,
        "model_type": "llama",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_scaling": null,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": true,
        "torch_dtype": "bfloat16",
        "use_cache": true,
        "vocab_size": config.vocab_size,
    })
}

/// A `config.json` that was read.
pub struct ConfigFile {
    /// All of it.
    pub json: Value,
    file: PathBuf,
}

impl ConfigFile {
    /// A field that is a whole number.
    pub fn size(&self, name: &str) -> Result<usize> {
        let value = self.json.get(name).and_then(Value::as_u64);
        Ok(value.with_context(|| format!("{} has no number {name}", self.file.display()))? as usize)
    }

    /// A field that is a number.
    pub fn real(&self, name: &str) -> Result<f64> {
        let value = self.json.get(name).and_then(Value::as_f64);
        value.with_context(|| format!("{} has no number {name}", self.file.display()))
    }
}

/// Reads the `config.json` of a directory that the trainer wrote.
pub fn read_config(folder: &Path) -> Result<ConfigFile> {
    let file = folder.join("config.json");
    let text = fs::read_to_string(&file)
        .with_context(|| format!("{} can't be read: give a model's directory", file.display()))?;
    let json: Value =
        serde_json::from_str(&text).with_context(|| format!("{} isn't JSON", file.display()))?;
    ensure!(
        json.get("tie_word_embeddings").and_then(Value::as_bool) == Some(true),
        "{} doesn't tie its embeddings: only models that `train` wrote can be used here",
        file.display()
    );
    Ok(ConfigFile { json, file })
}

/// Reads the `model.safetensors` of a directory, widened to f32.
pub fn read_tensors(folder: &Path) -> Result<HashMap<String, Tensor>> {
    let file = folder.join("model.safetensors");
    candle_core::safetensors::load(&file, &Device::Cpu)
        .with_context(|| format!("{} can't be read", file.display()))?
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.to_dtype(DType::F32)?)))
        .collect()
}

/// Reads a model's directory, widened to f32.
pub fn load(folder: &Path) -> Result<Llama> {
    let checkpoint = Checkpoint::open(folder)
        .with_context(|| format!("{} can't be read: give the directory of a model", folder.display()))?;
    Llama::from_checkpoint(&checkpoint)
}
