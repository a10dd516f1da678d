//! SentencePiece's BPE, the tokenizers of Llama 1 and 2 and Mistral (`tokenizer.ggml.model` is `llama`).
//!
//! SentencePiece joins the two neighbours whose joint piece has the best score. The `tokenizers` crate joins by a list of pairs, so that
//! the list is made of the scores, in the way in which transformers converts such tokenizers.

use std::collections::HashSet;

use serde_json::{Value as Json, json};

use super::file::Gguf;
use super::tokenizer::{Scheme, ids};
use super::vocabulary::{TokenKind, Vocabulary};
use crate::checkpoint::fields::Fields;
use crate::error::ModelError;

/// The key of the tokens' scores.
const SCORES: &str = "tokenizer.ggml.scores";
/// What SentencePiece writes in place of a space.
const SPACE: &str = "\u{2581}";

pub(super) fn scheme(gguf: &Gguf, vocabulary: &Vocabulary<'_>) -> Result<Scheme, ModelError> {
    let Some(scores) = gguf.floats(SCORES)? else {
        return Err(ModelError::MissingField {
            path: gguf.path().to_owned(),
            field: SCORES.to_owned(),
            expected: "the scores of the tokens",
        });
    };
    if scores.len() != vocabulary.len() {
        let expected = format!("one for each of the {} tokens", vocabulary.len());
        return Err(gguf.bad(SCORES, format!("a list of {} entries", scores.len()), expected));
    }
    let section = gguf.section("tokenizer.ggml.");
    let fields = Fields::within(gguf.path(), "tokenizer.ggml.", &section);
    let prefix = fields.boolean("add_space_prefix", true)?;
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let normalizer = match prefix {
        true => json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, spaces]}),
        false => spaces,
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = vocabulary.iter().find(|(_, _, kind)| *kind == TokenKind::Unknown).map(|(_, text, _)| text);
    Ok(Scheme {
        normalizer,
        pre_tokenizer: Json::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": ids(vocabulary), "merges": merges(vocabulary, &scores),
        }),
        adds_bos: true,
    })
}

/// Every way to make a piece of two others, the best score first. Among equal ones the longer first half comes first, as transformers
/// orders them.
fn merges(vocabulary: &Vocabulary<'_>, scores: &[f32]) -> Vec<Json> {
    let normal = || vocabulary.iter().filter(|(_, _, kind)| *kind == TokenKind::Normal);
    let pieces: HashSet<&str> = normal().map(|(_, text, _)| text).collect();
    let mut merges: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for (id, text, _) in normal() {
        let score = scores.get(id as usize).copied().unwrap_or_default();
        let length = text.chars().count();
        for (chars, (at, _)) in text.char_indices().enumerate().skip(1) {
            let (left, right) = text.split_at(at);
            if pieces.contains(left) && pieces.contains(right) {
                merges.push((score, chars, length - chars, left, right));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    merges.into_iter().map(|(_, _, _, left, right)| json!([left, right])).collect()
}
