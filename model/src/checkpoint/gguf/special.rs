//! The special tokens that a GGUF file names.

use super::file::Gguf;
use super::vocabulary::{TOKENS, TokenKind, Vocabulary};
use crate::error::ModelError;

/// What the keys of the special tokens begin with.
const PREFIX: &str = "tokenizer.ggml.";

/// The names that templates have for special tokens, and the keys of their ids. One key is written as the format has it.
const NAMES: [(&str, &str); 7] = [
    ("bos_token", "bos_token_id"),
    ("eos_token", "eos_token_id"),
    ("unk_token", "unknown_token_id"),
    ("sep_token", "seperator_token_id"),
    ("pad_token", "padding_token_id"),
    ("cls_token", "cls_token_id"),
    ("mask_token", "mask_token_id"),
];

/// Control tokens that end a text whatever the keys say, because llama.cpp ends there too: a file has one `eos_token_id`, and models that
/// talk have an end of turn besides.
const ENDS: [&str; 9] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<EOT>",
    "</s>",
];

/// The id of a key without its prefix; `None` where the file has none.
pub(super) fn id(gguf: &Gguf, name: &str) -> Result<Option<u32>, ModelError> {
    let section = gguf.section(PREFIX);
    let Some(value) = section.get(name) else { return Ok(None) };
    // Some writers say -1 where there is no such token.
    if value.as_i64() == Some(-1) || value.as_u64() == Some(u64::from(u32::MAX)) {
        return Ok(None);
    }
    let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
    let id = id.ok_or_else(|| gguf.bad(&format!("{PREFIX}{name}"), value.to_string(), "a token id"))?;
    Ok(Some(id))
}

/// The tokens that end a text, ascending.
pub(super) fn ends(gguf: &Gguf) -> Result<Vec<u32>, ModelError> {
    let mut ends = Vec::new();
    for name in ["eos_token_id", "eot_token_id", "eom_token_id"] {
        ends.extend(id(gguf, name)?);
    }
    if let Some(vocabulary) = Vocabulary::of(gguf)? {
        let named =
            vocabulary.iter().filter(|(_, text, kind)| *kind == TokenKind::Control && ENDS.contains(text));
        ends.extend(named.map(|(id, ..)| id));
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}

pub(super) fn texts(gguf: &Gguf) -> Result<Vec<(&'static str, String)>, ModelError> {
    let Some(vocabulary) = Vocabulary::of(gguf)? else { return Ok(Vec::new()) };
    let mut texts = Vec::new();
    for (name, key) in NAMES {
        if let Some(id) = id(gguf, key)? {
            texts.push((name, vocabulary.text(id).map(str::to_owned).ok_or_else(|| beyond(gguf, key, id))?));
        }
    }
    Ok(texts)
}

/// An id that no token has.
pub(super) fn beyond(gguf: &Gguf, name: &str, id: u32) -> ModelError {
    gguf.bad(&format!("{PREFIX}{name}"), id.to_string(), format!("the id of one of the tokens in `{TOKENS}`"))
}
