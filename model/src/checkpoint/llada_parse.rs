//! `config.json` of LLaDA into a [`ModelConfig`].
//!
//! A LLaDA model is a Llama whose tokens see each other in both directions, with field and tensor names of its own.

use super::architecture::Architecture;
use super::config::{MOST_POSITIONS, ModelConfig};
use super::dtype::Dtype;
use super::fields::Fields;
use super::int8;
use super::parse::{MOST_LAYERS, MOST_VOCAB, MOST_WIDTH};
use super::quantisation;
use super::rope::{Rope, RopeScaling};
use crate::error::ModelError;

/// Switches of LLaDA's configuration class that change what is computed, each with the only value that is computed here.
const SWITCHES: [(&str, bool); 8] = [
    ("alibi", false),
    ("attention_layer_norm", false),
    ("include_bias", false),
    ("input_emb_norm", false),
    ("layer_norm_with_affine", true),
    ("rope", true),
    ("rope_full_precision", true),
    ("scale_logits", false),
];

/// Kinds of parts of which one is computed here.
const KINDS: [(&str, &str); 3] =
    [("activation_type", "silu"), ("block_type", "llama"), ("layer_norm_type", "rms")];

pub(super) fn parse(fields: Fields<'_>, dtype: Dtype) -> Result<ModelConfig, ModelError> {
    quantisation::refuse(fields)?;
    for (name, computed) in SWITCHES {
        if fields.boolean(name, computed)? != computed {
            let feature = format!("{name} {}", !computed);
            return Err(
                fields.unsupported(feature, format!("the LLaDA models that run here have {name} {computed}"))
            );
        }
    }
    for (name, computed) in KINDS {
        if let Some(kind) = fields.text(name)?.filter(|&kind| kind != computed) {
            let hint = format!("the LLaDA models that run here have {name} \"{computed}\"");
            return Err(fields.unsupported(format!("{name} \"{kind}\""), hint));
        }
    }
    if fields.count_or("block_group_size", 1)? != 1 {
        return Err(fields.unsupported("block_group_size above 1", "its tensors have other names"));
    }
    let size = |name: &str, most| {
        let size = fields.optional_size(name, most)?;
        size.ok_or_else(|| fields.missing(name, "a whole number above 0"))
    };
    let hidden_size = size("d_model", MOST_WIDTH)?;
    let num_heads = size("n_heads", MOST_WIDTH)?;
    let num_kv_heads = match fields.optional_size("n_kv_heads", MOST_WIDTH)? {
        Some(heads) => heads,
        None if fields.boolean("multi_query_attention", false)? => 1,
        None => num_heads,
    };
    if !num_heads.is_multiple_of(num_kv_heads) {
        let expected = format!("a divisor of n_heads ({num_heads})");
        return Err(fields.bad("n_kv_heads", num_kv_heads, expected));
    }
    if !hidden_size.is_multiple_of(2 * num_heads) {
        let expected = format!("a number whose double divides d_model ({hidden_size})");
        return Err(fields.bad("n_heads", num_heads, expected));
    }
    let intermediate_size = match fields.optional_size("mlp_hidden_size", MOST_WIDTH)? {
        Some(size) => size,
        None => hidden_size * fields.optional_size("mlp_ratio", 64)?.unwrap_or(4),
    };
    let vocab_size = match fields.optional_size("embedding_size", MOST_VOCAB)? {
        Some(rows) => rows,
        None => size("vocab_size", MOST_VOCAB)?,
    };
    let eps = fields.optional_positive("rms_norm_eps")?.unwrap_or(1e-5);
    if !(1e-30..0.1).contains(&eps) {
        return Err(fields.bad("rms_norm_eps", eps, "a small number, such as 1e-5"));
    }
    let mask = fields.token_ids("mask_token_id")?;
    let Some(&mask_token_id) = mask.first().filter(|_| mask.len() == 1) else {
        return Err(
            fields.missing("mask_token_id", "the id of the token that stands for what is not known yet")
        );
    };
    if mask_token_id as usize >= vocab_size {
        return Err(fields.bad("mask_token_id", mask_token_id, format!("an id below {vocab_size}")));
    }
    let num_layers = size("n_layers", MOST_LAYERS)?;
    Ok(ModelConfig {
        architecture: Architecture::Llada,
        vocab_size,
        hidden_size,
        intermediate_size,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim: hidden_size / num_heads,
        max_position_embeddings: size("max_sequence_length", MOST_POSITIONS)?,
        rms_norm_eps: eps as f32,
        rope: Rope {
            theta: fields.optional_positive("rope_theta")?.unwrap_or(10_000.0),
            scaling: RopeScaling::None,
        },
        tie_word_embeddings: fields.boolean("weight_tying", true)?,
        qkv_bias: fields.boolean("include_qkv_bias", false)?,
        o_bias: false,
        mlp_bias: false,
        qk_norm: false,
        windows: vec![None; num_layers],
        torch_dtype: dtype,
        int8_weights: int8::is_in(fields)?,
        eos_token_ids: fields.token_ids("eos_token_id")?,
        bos_token_id: fields.token_ids("bos_token_id")?.first().copied(),
        dsa: None,
        mask_token_id: Some(mask_token_id),
    })
}
