//! `config.json` and `generation_config.json` into a [`ModelConfig`].
//!
//! Both spellings are read: that of published checkpoints (`rope_theta`, `rope_scaling`,
//! `torch_dtype`) and that of transformers 5 (`rope_parameters`, `dtype`). Defaults are those of
//! transformers' configuration classes. A field that changes what is computed is honoured or refused by
//! name; one that means nothing to the architecture, or under the other fields, is not looked at.

use std::path::Path;

use serde_json::Value;

use super::architecture::Architecture;
use super::class_defaults::ClassDefaults;
use super::config::{MOST_POSITIONS, ModelConfig};
use super::dsa_parse;
use super::dtype::Dtype;
use super::fields::{Fields, parse_object};
use super::int8;
use super::llada_parse;
use super::quantisation;
use super::rope_parameters::rope;
use super::windows::windows;
use crate::error::ModelError;

/// Bounds that keep every product of two sizes inside 64 bits.
pub(super) const MOST_WIDTH: u64 = 1 << 24;
pub(super) const MOST_LAYERS: u64 = (1 << 16) - 1;
pub(super) const MOST_VOCAB: u64 = 1 << 28;

impl ModelConfig {
    /// Reads a configuration. `path` is used in complaints only.
    ///
    /// # Errors
    /// Names the file, the field, what it holds and what was expected.
    pub fn parse(path: &Path, json: &[u8]) -> Result<ModelConfig, ModelError> {
        let object = parse_object(path, json)?;
        let fields = Fields::new(path, &object);
        let architecture = architecture(fields)?;
        if architecture.is_sparse() {
            return dsa_parse::parse(fields, architecture, dtype(fields)?);
        }
        if architecture == Architecture::Llada {
            return llada_parse::parse(fields, dtype(fields)?);
        }
        refuse_unsupported(fields)?;

        let defaults = ClassDefaults::of(architecture);

        let hidden_size = fields.size_or("hidden_size", MOST_WIDTH, defaults.hidden_size)?;
        let num_heads = fields.size_or("num_attention_heads", MOST_WIDTH, defaults.num_attention_heads)?;
        let num_kv_heads = match fields.optional_size("num_key_value_heads", MOST_WIDTH)? {
            Some(heads) => heads,
            // Null is one kv head a head, whatever the default.
            None if fields.has("num_key_value_heads") => num_heads,
            None => defaults.num_key_value_heads.unwrap_or(num_heads),
        };
        if !num_heads.is_multiple_of(num_kv_heads) {
            let expected = format!("a divisor of num_attention_heads ({num_heads})");
            let (name, default) = ("num_key_value_heads", !fields.has("num_key_value_heads"));
            return Err(match default {
                true => fields.bad(name, format!("{num_kv_heads} (the default)"), expected),
                false => fields.bad(name, num_kv_heads, expected),
            });
        }
        let head_dim = head_dim(fields, &defaults, hidden_size, num_heads)?;
        let num_layers = fields.size_or("num_hidden_layers", MOST_LAYERS, defaults.num_hidden_layers)?;
        let positions =
            fields.size_or("max_position_embeddings", MOST_POSITIONS, defaults.max_position_embeddings)?;
        let windows = windows(fields, architecture, num_layers)?;
        let eps = fields.optional_positive("rms_norm_eps")?.unwrap_or(ClassDefaults::RMS_NORM_EPS);
        if !(1e-30..0.1).contains(&eps) {
            return Err(fields.bad("rms_norm_eps", eps, "a small number, such as 1e-6"));
        }
        let attention_bias = match architecture {
            Architecture::Llama | Architecture::Qwen3 => fields.boolean("attention_bias", false)?,
            _ => false,
        };
        Ok(ModelConfig {
            architecture,
            vocab_size: fields.size_or("vocab_size", MOST_VOCAB, defaults.vocab_size)?,
            hidden_size,
            intermediate_size: fields.size_or("intermediate_size", MOST_WIDTH, defaults.intermediate_size)?,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            max_position_embeddings: positions,
            rms_norm_eps: eps as f32,
            rope: rope(fields)?,
            tie_word_embeddings: fields.boolean("tie_word_embeddings", false)?,
            qkv_bias: attention_bias || architecture == Architecture::Qwen2,
            o_bias: attention_bias,
            mlp_bias: architecture == Architecture::Llama && fields.boolean("mlp_bias", false)?,
            qk_norm: architecture == Architecture::Qwen3,
            windows,
            torch_dtype: dtype(fields)?,
            int8_weights: int8::is_in(fields)?,
            eos_token_ids: match fields.has("eos_token_id") {
                true => fields.token_ids("eos_token_id")?,
                false => defaults.eos_token_id.into_iter().collect(),
            },
            bos_token_id: match fields.has("bos_token_id") {
                true => fields.token_ids("bos_token_id")?.first().copied(),
                false => defaults.bos_token_id,
            },
            dsa: None,
            mask_token_id: None,
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
    refuse_later_models(fields)?;
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

/// Refuses models that look like those with sparse attention and compute something else.
fn refuse_later_models(fields: Fields<'_>) -> Result<(), ModelError> {
    const LATER: [(&str, &str, &str); 2] = [
        ("deepseek_v4", "DeepseekV4ForCausalLM", "its compressed caches are not done here"),
        ("glm5_next", "Glm5NextForCausalLM", "its linear layers and pooled indexer keys are not done here"),
    ];
    let classes = fields.get("architectures").and_then(Value::as_array);
    for (model_type, class, hint) in LATER {
        let by_class = classes.is_some_and(|names| names.iter().any(|name| name.as_str() == Some(class)));
        if by_class || fields.get("model_type").and_then(Value::as_str) == Some(model_type) {
            return Err(fields.unsupported(format!("model_type {model_type}"), hint));
        }
    }
    Ok(())
}

/// Fields that other models of these shapes have and that change what is computed, with the number at
/// which each changes nothing.
const REFUSED_NUMBERS: [(&str, Option<f64>); 9] = [
    ("attn_logit_softcapping", None),
    ("final_logit_softcapping", None),
    ("clip_qkv", None),
    ("attention_chunk_size", None),
    ("attention_multiplier", None),
    ("embedding_multiplier", Some(1.0)),
    ("residual_multiplier", Some(1.0)),
    ("logits_scaling", Some(1.0)),
    ("logit_scale", Some(1.0)),
];

fn refuse_unsupported(fields: Fields<'_>) -> Result<(), ModelError> {
    if let Some(activation) = fields.text("hidden_act")?
        && !matches!(activation, "silu" | "swish")
    {
        let feature = format!("hidden_act \"{activation}\"");
        return Err(fields.unsupported(feature, "the models of this family use silu"));
    }
    quantisation::refuse(fields)?;
    refuse_numbers(fields)?;
    if !fields.boolean("is_causal", true)? {
        return Err(fields.unsupported("is_causal false", "a token never sees later ones here"));
    }
    Ok(())
}

/// Refuses each of [`REFUSED_NUMBERS`] that would change something.
pub(super) fn refuse_numbers(fields: Fields<'_>) -> Result<(), ModelError> {
    for (name, neutral) in REFUSED_NUMBERS {
        if let Some(value) = fields.get(name).filter(|value| neutral.is_none() || value.as_f64() != neutral) {
            let hint = "the models of this family have no such step, and leaving it out would be wrong";
            return Err(fields.unsupported(format!("{name} {value}"), hint));
        }
    }
    Ok(())
}

fn head_dim(
    fields: Fields<'_>,
    defaults: &ClassDefaults,
    hidden_size: usize,
    num_heads: usize,
) -> Result<usize, ModelError> {
    let head_dim = match (fields.optional_size("head_dim", MOST_WIDTH)?, defaults.head_dim) {
        (Some(head_dim), _) => head_dim,
        (None, Some(head_dim)) => head_dim,
        (None, None) if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        (None, None) => {
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

fn dtype(fields: Fields<'_>) -> Result<Dtype, ModelError> {
    for name in ["dtype", "torch_dtype"] {
        if let Some(text) = fields.text(name)? {
            let expected = "float32, float16 or bfloat16";
            return text.parse().map_err(|_| fields.bad(name, text, expected));
        }
    }
    Ok(Dtype::F32)
}
