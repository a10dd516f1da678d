//! Byte-level BPE, the tokenizers of GPT-2's kind (`tokenizer.ggml.model` is `gpt2`).

use serde_json::{Value as Json, json};

use super::file::Gguf;
use super::pre_tokenizer::PreTokenizer;
use super::tokenizer::{Scheme, ids};
use super::vocabulary::Vocabulary;
use crate::error::ModelError;

/// The key of the merges: pairs of tokens, the first to be merged first.
const MERGES: &str = "tokenizer.ggml.merges";

pub(super) fn scheme(
    gguf: &Gguf,
    vocabulary: &Vocabulary<'_>,
    pre: PreTokenizer,
) -> Result<Scheme, ModelError> {
    let Some(merges) = gguf.texts(MERGES)? else {
        return Err(ModelError::MissingField {
            path: gguf.path().to_owned(),
            field: MERGES.to_owned(),
            expected: "the merges of the tokenizer",
        });
    };
    let pair = |(i, merge): (usize, &&str)| match merge.split_once(' ') {
        Some((left, right)) if !left.is_empty() && !right.is_empty() => Ok(json!([left, right])),
        _ => {
            Err(gguf.bad(&format!("{MERGES}[{i}]"), format!("`{merge}`"), "two tokens with a space between"))
        }
    };
    let merges: Vec<Json> = merges.iter().enumerate().map(pair).collect::<Result<_, _>>()?;
    Ok(Scheme {
        normalizer: pre.normalizer(),
        pre_tokenizer: pre.json(),
        decoder: json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": pre.ignores_merges(), "vocab": ids(vocabulary), "merges": merges,
        }),
        adds_bos: pre.adds_bos(),
    })
}
