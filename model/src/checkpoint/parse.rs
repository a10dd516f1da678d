//! `config.json` and `generation_config.json` into a [`ModelConfig`].
//!
//! Both spellings are read: that of published checkpoints (`rope_theta`, `rope_scaling`,
//! `torch_dtype`) and that of transformers 5 (`rope_parameters`, `dtype`). Defaults are those of
//! transformers' configuration classes. A feature that is asked for and not implemented is an
//! error, never ignored.

use std::path::Path;

use serde_json::Value;

use super::architecture::Architecture;
use super::config::ModelConfig;
use super::dtype::Dtype;
use super::fields::{Fields, parse_object};
use super::rope::{Rope, RopeScaling};
use crate::error::ModelError;

/// Bounds that keep every product of two sizes inside 64 bits.
const MOST_WIDTH: u64 = 1 << 24;
const MOST_LAYERS: u64 = (1 << 16) - 1;
const MOST_VOCAB: u64 = 1 << 28;
const MOST_POSITIONS: u64 = (1 << 31) - 1;

impl ModelConfig {
    /// Reads a configuration. `path` is used in complaints only.
    ///
    /// # Errors
    /// Names the file, the field, what it holds and what was expected.
    pub fn parse(path: &Path, json: &[u8]) -> Result<ModelConfig, ModelError> {
        let object = parse_object(path, json)?;
        let fields = Fields::new(path, &object);
        let architecture = architecture(fields)?;
        refuse_unsupported(fields)?;

        let hidden_size = fields.size("hidden_size", MOST_WIDTH)?;
        let num_heads = fields.size("num_attention_heads", MOST_WIDTH)?;
        let num_kv_heads = match fields.optional_size("num_key_value_heads", MOST_WIDTH)? {
            Some(heads) => heads,
            // transformers' default is one kv head a head for Llama only.
            None if architecture == Architecture::Llama => num_heads,
            None => {
                return Err(fields.missing("num_key_value_heads", "a divisor of the head count"));
            }
        };
        if !num_heads.is_multiple_of(num_kv_heads) {
            let expected = format!("a divisor of num_attention_heads ({num_heads})");
            return Err(fields.bad("num_key_value_heads", num_kv_heads, expected));
        }
        let head_dim = head_dim(fields, architecture, hidden_size, num_heads)?;
        let positions = fields.size("max_position_embeddings", MOST_POSITIONS)?;
        let window = sliding_window(fields, architecture)?;
        let eps = fields.optional_positive("rms_norm_eps")?.unwrap_or(1e-6);
        if !(1e-30..0.1).contains(&eps) {
            return Err(fields.bad("rms_norm_eps", eps, "a small number, such as 1e-6"));
        }
        let vocab_size = fields.size("vocab_size", MOST_VOCAB)?;
        let attention_bias = match architecture {
            Architecture::Llama | Architecture::Qwen3 => fields.boolean("attention_bias", false)?,
            Architecture::Mistral | Architecture::Qwen2 => false,
        };
        Ok(ModelConfig {
            architecture,
            vocab_size,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", MOST_WIDTH)?,
            num_layers: fields.size("num_hidden_layers", MOST_LAYERS)?,
            num_heads,
            num_kv_heads,
            head_dim,
            max_position_embeddings: positions.min(window.map_or(positions, |w| w as usize)),
            rms_norm_eps: eps as f32,
            rope: rope(fields)?,
            tie_word_embeddings: fields.boolean("tie_word_embeddings", false)?,
            qkv_bias: attention_bias || architecture == Architecture::Qwen2,
            o_bias: attention_bias,
            mlp_bias: architecture == Architecture::Llama && fields.boolean("mlp_bias", false)?,
            qk_norm: architecture == Architecture::Qwen3,
            sliding_window: window,
            torch_dtype: dtype(fields)?,
            eos_token_ids: fields.token_ids("eos_token_id")?,
            bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
        })
    }

    /// Takes over what `generation_config.json` says about special tokens: its `eos_token_id` (one
    /// or a list) wins over `config.json`'s, its `bos_token_id` fills a gap.
    ///
    /// # Errors
    /// Where the file is not a JSON object, or an id is none.
    pub fn apply_generation_config(&mut self, path: &Path, json: &[u8]) -> Result<(), ModelError> {
        let object = parse_object(path, json)?;
        let fields = Fields::new(path, &object);
        let ends = fields.token_ids("eos_token_id")?;
        if !ends.is_empty() {
            self.eos_token_ids = ends;
        }
        if self.bos_token_id.is_none() {
            self.bos_token_id = fields.token_ids("bos_token_id")?.first().copied();
        }
        Ok(())
    }
}

fn architecture(fields: Fields<'_>) -> Result<Architecture, ModelError> {
    let unknown = |found: String| ModelError::UnknownArchitecture {
        path: fields.path().to_owned(),
        found,
        known: Architecture::ALL.map(Architecture::class_name).join(", "),
    };
    match fields.get("architectures") {
        Some(Value::Array(names)) if !names.is_empty() => {
            let known = |name: &Value| {
                let matches = |a: &Architecture| name.as_str() == Some(a.class_name());
                Architecture::ALL.into_iter().find(matches)
            };
            names.iter().find_map(known).ok_or_else(|| {
                let text = |name: &Value| name.as_str().map_or(name.to_string(), str::to_owned);
                unknown(names.iter().map(text).collect::<Vec<_>>().join(", "))
            })
        }
        Some(Value::Array(_)) | None => {
            let Some(name) = fields.text("model_type")? else {
                let expected = "a list with the class of the model, such as LlamaForCausalLM";
                return Err(fields.missing("architectures", expected));
            };
            Architecture::ALL
                .into_iter()
                .find(|a| a.model_type() == name)
                .ok_or_else(|| unknown(name.to_owned()))
        }
        Some(other) => Err(fields.bad("architectures", other, "a list of class names")),
    }
}

fn refuse_unsupported(fields: Fields<'_>) -> Result<(), ModelError> {
    if let Some(activation) = fields.text("hidden_act")?
        && !matches!(activation, "silu" | "swish")
    {
        let feature = format!("hidden_act \"{activation}\"");
        return Err(fields.unsupported(feature, "the models of this family use silu"));
    }
    if fields.get("quantization_config").is_some() {
        let hint = "use a checkpoint in float32, float16 or bfloat16";
        return Err(fields.unsupported("a quantised checkpoint (quantization_config)", hint));
    }
    if let Some(part) = fields.optional_positive("partial_rotary_factor")?
        && part != 1.0
    {
        let feature = format!("partial_rotary_factor {part}");
        return Err(fields.unsupported(feature, "whole heads are rotated here"));
    }
    Ok(())
}

fn head_dim(
    fields: Fields<'_>,
    architecture: Architecture,
    hidden_size: usize,
    num_heads: usize,
) -> Result<usize, ModelError> {
    let head_dim = match fields.optional_size("head_dim", MOST_WIDTH)? {
        Some(head_dim) => head_dim,
        None if architecture == Architecture::Qwen3 => 128,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            let expected = format!("a divisor of hidden_size ({hidden_size}), or a head_dim");
            return Err(fields.bad("num_attention_heads", num_heads, expected));
        }
    };
    if !head_dim.is_multiple_of(2) {
        let expected = "an even number, for rotary positions turn pairs";
        return Err(fields.bad("head_dim", head_dim, expected));
    }
    Ok(head_dim)
}

/// The window where the model really has one: Mistral whenever it is set, Qwen only where
/// `use_sliding_window` is on, Llama never.
fn sliding_window(fields: Fields<'_>, architecture: Architecture) -> Result<Option<u32>, ModelError> {
    let used = match architecture {
        Architecture::Llama => false,
        Architecture::Mistral => true,
        Architecture::Qwen2 | Architecture::Qwen3 => fields.boolean("use_sliding_window", false)?,
    };
    // Qwen's first `max_window_layers` layers have no window.
    let layers = fields.size("num_hidden_layers", MOST_LAYERS)?;
    let full = match architecture {
        Architecture::Qwen2 | Architecture::Qwen3 => {
            fields.optional_size("max_window_layers", usize::MAX as u64)?
        }
        Architecture::Llama | Architecture::Mistral => None,
    };
    if !used || full.is_some_and(|full| full >= layers) {
        return Ok(None);
    }
    let window = fields.optional_size("sliding_window", MOST_POSITIONS)?;
    Ok(window.map(|window| window as u32))
}

fn dtype(fields: Fields<'_>) -> Result<Dtype, ModelError> {
    for name in ["dtype", "torch_dtype"] {
        if let Some(text) = fields.text(name)? {
            let expected = "float32, float16 or bfloat16";
            return text.parse().map_err(|_| fields.bad(name, text, expected));
        }
    }
    Ok(Dtype::F32)
}

fn rope(fields: Fields<'_>) -> Result<Rope, ModelError> {
    let parameters = match fields.nested("rope_parameters", "rope_parameters.")? {
        Some(parameters) => Some(parameters),
        None => fields.nested("rope_scaling", "rope_scaling.")?,
    };
    let nested_theta = match parameters {
        Some(nested) => nested.optional_positive("rope_theta")?,
        None => None,
    };
    let theta = match nested_theta {
        Some(theta) => theta,
        None => fields.optional_positive("rope_theta")?.unwrap_or(10_000.0),
    };
    if theta as f32 <= 1.0 || !(theta as f32).is_finite() {
        return Err(fields.bad("rope_theta", theta, "a number above 1, such as 10000"));
    }
    let scaling = match parameters {
        Some(nested) => scaling(nested)?,
        None => RopeScaling::None,
    };
    Ok(Rope { theta, scaling })
}

fn scaling(fields: Fields<'_>) -> Result<RopeScaling, ModelError> {
    if let Some(part) = fields.optional_positive("partial_rotary_factor")?
        && part != 1.0
    {
        let feature = format!("partial_rotary_factor {part}");
        return Err(fields.unsupported(feature, "whole heads are rotated here"));
    }
    let kind = match fields.text("rope_type")? {
        Some(kind) => Some(kind),
        None => fields.text("type")?,
    };
    let Some(kind) = kind else {
        return Err(fields.missing("rope_type", "default, linear or llama3"));
    };
    // A factor of a million already turns every pair by next to nothing.
    let factor = || match fields.positive("factor")? {
        factor if (1.0..=1e6).contains(&factor) => Ok(factor),
        factor => Err(fields.bad("factor", factor, "a number of at least 1")),
    };
    match kind {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: factor()? }),
        "llama3" => {
            let low = fields.positive("low_freq_factor")?;
            let high = fields.positive("high_freq_factor")?;
            if high as f32 <= low as f32 || !(high as f32).is_finite() {
                let expected = format!("a number above low_freq_factor ({low})");
                return Err(fields.bad("high_freq_factor", high, expected));
            }
            Ok(RopeScaling::Llama3 {
                factor: factor()?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: fields
                    .size("original_max_position_embeddings", MOST_POSITIONS)?,
            })
        }
        other => Err(fields
            .unsupported(format!("rope scaling \"{other}\""), "supported are default, linear and llama3")),
    }
}
