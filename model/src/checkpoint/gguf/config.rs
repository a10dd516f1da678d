//! The metadata of a GGUF file into a [`ModelConfig`].

use super::file::Gguf;
use super::rope;
use super::special;
use super::stored_name::{self, OUTPUT, TOKEN_EMBD};
use crate::checkpoint::architecture::{Architecture, Part};
use crate::checkpoint::config::{MOST_POSITIONS, ModelConfig};
use crate::checkpoint::dtype::Dtype;
use crate::checkpoint::fields::Fields;
use crate::checkpoint::parse::{MOST_LAYERS, MOST_VOCAB, MOST_WIDTH};
use crate::error::ModelError;

/// The architectures that are read, under the names that a file has for them. `llama` is Mistral and SmolLM2 as well.
pub(super) const KNOWN: [Architecture; 3] = [Architecture::Llama, Architecture::Qwen2, Architecture::Qwen3];

pub(super) fn config(gguf: &Gguf) -> Result<ModelConfig, ModelError> {
    let architecture = architecture(gguf)?;
    let prefix = format!("{}.", architecture.model_type());
    let section = gguf.section(&prefix);
    let fields = Fields::within(gguf.path(), &prefix, &section);
    let size = |name: &str, most| {
        let expected = "a whole number of at least 1";
        fields.optional_size(name, most)?.ok_or_else(|| fields.missing(name, expected))
    };
    refuse_unsupported(fields, size("context_length", MOST_POSITIONS)?)?;
    let hidden_size = size("embedding_length", MOST_WIDTH)?;
    let num_heads = size("attention.head_count", MOST_WIDTH)?;
    let num_kv_heads = fields.optional_size("attention.head_count_kv", MOST_WIDTH)?.unwrap_or(num_heads);
    if !num_heads.is_multiple_of(num_kv_heads) {
        let expected = format!("a divisor of attention.head_count ({num_heads})");
        return Err(fields.bad("attention.head_count_kv", num_kv_heads, expected));
    }
    let head_dim = head_dim(fields, hidden_size, num_heads)?;
    let eps = fields.positive("attention.layer_norm_rms_epsilon")?;
    if !(1e-30..0.1).contains(&eps) {
        return Err(fields.bad("attention.layer_norm_rms_epsilon", eps, "a small number, such as 1e-6"));
    }
    let num_layers = size("block_count", MOST_LAYERS)?;
    let has_bias = |part| gguf.stored(&stored_name::of_part("0", part, "bias")).is_some();
    Ok(ModelConfig {
        architecture,
        vocab_size: vocab_size(gguf, fields)?,
        hidden_size,
        intermediate_size: size("feed_forward_length", MOST_WIDTH)?,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        max_position_embeddings: size("context_length", MOST_POSITIONS)?,
        rms_norm_eps: eps as f32,
        rope: rope::rope(gguf, fields, head_dim)?,
        tie_word_embeddings: gguf.stored(OUTPUT).is_none(),
        qkv_bias: architecture == Architecture::Qwen2 || has_bias(Part::Q),
        o_bias: has_bias(Part::O),
        mlp_bias: has_bias(Part::Gate),
        qk_norm: architecture == Architecture::Qwen3,
        windows: vec![None; num_layers],
        torch_dtype: dtype(gguf),
        eos_token_ids: special::ends(gguf)?,
        bos_token_id: special::id(gguf, "bos_token_id")?,
        dsa: None,
        mask_token_id: None,
        int8_weights: false,
    })
}

fn architecture(gguf: &Gguf) -> Result<Architecture, ModelError> {
    let Some(found) = gguf.text("general.architecture")? else {
        return Err(ModelError::MissingField {
            path: gguf.path().to_owned(),
            field: "general.architecture".to_owned(),
            expected: "the name of an architecture, such as llama",
        });
    };
    KNOWN.into_iter().find(|known| known.model_type() == found).ok_or_else(|| {
        ModelError::UnknownArchitecture {
            path: gguf.path().to_owned(),
            found: found.to_owned(),
            known: KNOWN.map(Architecture::model_type).join(", "),
        }
    })
}

/// Keys that other models of these architectures have and that change what is computed, with the value at which each
/// changes nothing.
const REFUSED: [(&str, Option<f64>); 9] = [
    ("expert_count", Some(0.0)),
    ("attention.clamp_kqv", Some(0.0)),
    ("attention.max_alibi_bias", Some(0.0)),
    ("attention.scale", None),
    ("attn_logit_softcapping", Some(0.0)),
    ("final_logit_softcapping", Some(0.0)),
    ("logit_scale", Some(1.0)),
    ("residual_scale", Some(1.0)),
    ("embedding_scale", Some(1.0)),
];

fn refuse_unsupported(fields: Fields<'_>, positions: usize) -> Result<(), ModelError> {
    for (name, neutral) in REFUSED {
        if let Some(value) = fields.get(name).filter(|value| neutral.is_none() || value.as_f64() != neutral) {
            let hint = "the models that are run here have no such step, and leaving it out would be wrong";
            return Err(fields.unsupported(format!("{name} {value}"), hint));
        }
    }
    if !fields.boolean("attention.causal", true)? {
        return Err(fields.unsupported("attention.causal false", "a token never sees later ones here"));
    }
    let window = fields.count_or("attention.sliding_window", 0)?;
    if (1..positions as u64).contains(&window) {
        let hint = "the layers of a GGUF model see every earlier token here; use the safetensors checkpoint";
        return Err(fields.unsupported(format!("attention.sliding_window {window}"), hint));
    }
    Ok(())
}

/// The width of a head. Keys, values and rotated pairs must make up the same one.
fn head_dim(fields: Fields<'_>, hidden_size: usize, num_heads: usize) -> Result<usize, ModelError> {
    let head_dim = match fields.optional_size("attention.key_length", MOST_WIDTH)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            let expected =
                format!("a divisor of embedding_length ({hidden_size}), or an attention.key_length");
            return Err(fields.bad("attention.head_count", num_heads, expected));
        }
    };
    if !head_dim.is_multiple_of(2) {
        let expected = "an even number, for rotary positions turn pairs";
        return Err(fields.bad("attention.key_length", head_dim, expected));
    }
    for (name, hint) in [
        ("attention.value_length", "values as wide as keys are run here"),
        ("rope.dimension_count", "whole heads are rotated here"),
    ] {
        if let Some(width) = fields.optional_size(name, MOST_WIDTH)?.filter(|&width| width != head_dim) {
            return Err(fields.unsupported(format!("{name} {width} with heads of {head_dim} values"), hint));
        }
    }
    Ok(head_dim)
}

/// The rows of the embedding, which the metadata may repeat.
fn vocab_size(gguf: &Gguf, fields: Fields<'_>) -> Result<usize, ModelError> {
    let rows = match gguf.stored(TOKEN_EMBD).map(|(stored, _)| stored.shape.as_slice()) {
        Some(&[rows, _]) => rows,
        Some(shape) => {
            let reason = format!("tensor `{TOKEN_EMBD}` has shape {shape:?}; it must have two sizes");
            return Err(ModelError::BadGguf { path: gguf.path().to_owned(), reason });
        }
        None => {
            return Err(ModelError::MissingTensor {
                path: gguf.path().to_owned(),
                tensor: TOKEN_EMBD.to_owned(),
                hint: "every model has one".to_owned(),
            });
        }
    };
    match fields.optional_size("vocab_size", MOST_VOCAB)? {
        Some(said) if said != rows => {
            Err(fields.bad("vocab_size", said, format!("the {rows} rows that tensor `{TOKEN_EMBD}` has")))
        }
        _ if rows as u64 > MOST_VOCAB => {
            Err(fields.bad("vocab_size", rows, format!("a whole number from 1 to {MOST_VOCAB}")))
        }
        _ => Ok(rows),
    }
}

/// The type that the weights are computed in where nobody says another: that of the matrices, if all are plain numbers of
/// one type; otherwise bfloat16, in which the models were trained that are quantised.
fn dtype(gguf: &Gguf) -> Dtype {
    let matrices = || gguf.names().into_iter().filter_map(|name| gguf.stored(name)).map(|(stored, _)| stored);
    let mut kinds = matrices().filter(|stored| stored.shape.len() > 1).map(|stored| stored.kind.dtype());
    let first = kinds.next().flatten();
    first.filter(|_| kinds.all(|kind| kind == first)).unwrap_or(Dtype::Bf16)
}
