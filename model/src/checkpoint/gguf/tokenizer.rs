//! The tokenizer that a GGUF file carries, as the `tokenizer.json` that it was made from would have it.

use serde_json::{Map, Value as Json, json};

use super::byte_level;
use super::file::Gguf;
use super::pre_tokenizer::PreTokenizer;
use super::sentencepiece;
use super::special;
use super::vocabulary::{TokenKind, Vocabulary};
use crate::checkpoint::fields::Fields;
use crate::error::ModelError;

/// The key of the kind of tokenizer.
const MODEL: &str = "tokenizer.ggml.model";

/// What distinguishes the kinds of tokenizers.
pub(super) struct Scheme {
    pub normalizer: Json,
    pub pre_tokenizer: Json,
    pub decoder: Json,
    pub model: Json,
    /// Whether a text starts with the bos token, where the file does not say it.
    pub adds_bos: bool,
}

/// The `tokenizer.json` of a file; `None` where it has no tokenizer.
pub(super) fn json(gguf: &Gguf) -> Result<Option<Json>, ModelError> {
    let kind = match gguf.text(MODEL)? {
        None | Some("none" | "no_vocab") => return Ok(None),
        Some(kind) => kind,
    };
    let Some(vocabulary) = Vocabulary::of(gguf)? else {
        return Err(ModelError::MissingField {
            path: gguf.path().to_owned(),
            field: super::vocabulary::TOKENS.to_owned(),
            expected: "the tokens of the tokenizer",
        });
    };
    let scheme = match kind {
        "gpt2" => byte_level::scheme(gguf, &vocabulary, PreTokenizer::of(gguf)?)?,
        "llama" => sentencepiece::scheme(gguf, &vocabulary)?,
        other => {
            let hint = "gpt2 (byte-level BPE) and llama (SentencePiece) are read; token ids can be given and taken without";
            return Err(gguf.unsupported(format!("a tokenizer of the kind {other} ({MODEL})"), hint));
        }
    };
    Ok(Some(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens(&vocabulary),
        "normalizer": scheme.normalizer,
        "pre_tokenizer": scheme.pre_tokenizer,
        "post_processor": post_processor(gguf, &vocabulary, scheme.adds_bos)?,
        "decoder": scheme.decoder,
        "model": scheme.model,
    })))
}

/// The ids by text. Of two tokens with one text the first is meant, as no text could ever become the other.
pub(super) fn ids(vocabulary: &Vocabulary<'_>) -> Map<String, Json> {
    let mut ids = Map::new();
    for (id, text, kind) in vocabulary.iter() {
        if kind != TokenKind::Unused && !ids.contains_key(text) {
            ids.insert(text.to_owned(), id.into());
        }
    }
    ids
}

/// The tokens that are found in a text before it is cut into words. Control tokens are special: they can be left out of a text.
fn added_tokens(vocabulary: &Vocabulary<'_>) -> Vec<Json> {
    let added = vocabulary.iter().filter(|(_, _, kind)| kind.is_added());
    let token = |(id, text, kind): (u32, &str, TokenKind)| {
        json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": kind != TokenKind::UserDefined,
        })
    };
    added.map(token).collect()
}

/// What is put around a text: the bos and eos tokens, where the file asks for them.
fn post_processor(gguf: &Gguf, vocabulary: &Vocabulary<'_>, adds_bos: bool) -> Result<Json, ModelError> {
    let section = gguf.section("tokenizer.ggml.");
    let fields = Fields::within(gguf.path(), "tokenizer.ggml.", &section);
    let token = |asked: bool, name: &'static str| -> Result<Option<(u32, &str)>, ModelError> {
        let Some(id) = special::id(gguf, name)?.filter(|_| asked) else { return Ok(None) };
        let text = vocabulary.text(id).ok_or_else(|| special::beyond(gguf, name, id))?;
        Ok(Some((id, text)))
    };
    let bos = token(fields.boolean("add_bos_token", adds_bos)?, "bos_token_id")?;
    let eos = token(fields.boolean("add_eos_token", false)?, "eos_token_id")?;
    if bos.is_none() && eos.is_none() {
        return Ok(Json::Null);
    }
    let piece = |(_, text): (u32, &str)| json!({"SpecialToken": {"id": text, "type_id": 0}});
    let around = |sequence: &str| {
        let own = json!({"Sequence": {"id": sequence, "type_id": 0}});
        bos.map(piece).into_iter().chain([own]).chain(eos.map(piece)).collect::<Vec<_>>()
    };
    let tokens: Map<String, Json> = [bos, eos]
        .into_iter()
        .flatten()
        .map(|(id, text)| (text.to_owned(), json!({"id": text, "ids": [id], "tokens": [text]})))
        .collect();
    let pair = [around("A"), around("B")].concat();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": around("A"),
        "pair": pair,
        "special_tokens": tokens,
    }))
}
