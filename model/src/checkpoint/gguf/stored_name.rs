//! The names that tensors have in a GGUF file.

use crate::checkpoint::architecture::{EMBED_TOKENS, FINAL_NORM, LM_HEAD, Part};

/// The token embedding.
pub(super) const TOKEN_EMBD: &str = "token_embd.weight";
/// The output head, which a tied model does not have.
pub(super) const OUTPUT: &str = "output.weight";
/// The divisors of the rope frequencies.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";

/// The name in a GGUF file of a tensor that has this name in a Hugging Face checkpoint.
pub(super) fn of(name: &str) -> Option<String> {
    match name {
        EMBED_TOKENS => Some(TOKEN_EMBD.to_owned()),
        LM_HEAD => Some(OUTPUT.to_owned()),
        FINAL_NORM => Some("output_norm.weight".to_owned()),
        _ => {
            let (layer, part, kind) = of_layer(name)?;
            Some(of_part(layer, part, kind))
        }
    }
}

/// The name of a part of a layer; `kind` is `weight` or `bias`.
pub(super) fn of_part(layer: &str, part: Part, kind: &str) -> String {
    format!("blk.{layer}.{}.{kind}", stem(part))
}

/// Which part of a layer a tensor of a Hugging Face checkpoint is: the number of the layer, the part, and `weight` or `bias`.
pub(super) fn of_layer(name: &str) -> Option<(&str, Part, &str)> {
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let part = Part::ALL.into_iter().find(|part| part.module() == module)?;
    Some((layer, part, kind))
}

const fn stem(part: Part) -> &'static str {
    match part {
        Part::InputNorm => "attn_norm",
        Part::Q => "attn_q",
        Part::K => "attn_k",
        Part::V => "attn_v",
        Part::O => "attn_output",
        Part::QNorm => "attn_q_norm",
        Part::KNorm => "attn_k_norm",
        Part::PostAttentionNorm => "ffn_norm",
        Part::Gate => "ffn_gate",
        Part::Up => "ffn_up",
        Part::Down => "ffn_down",
    }
}
