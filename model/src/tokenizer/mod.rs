//! Text to token ids and back: a thin layer over the `tokenizers` crate.
//!
//! What it adds: errors that name the file, no hidden truncation or padding, and a streaming decoder
//! whose pieces, put together, are exactly the decoded text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokenizers::Tokenizer as Inner;

use crate::error::ModelError;
use crate::lfs_pointer;

/// A model's tokenizer. Encoding and decoding take `&self` and may run on any thread.
pub struct Tokenizer {
    inner: Inner,
    /// Special tokens and their text, by id.
    special: Vec<(u32, String)>,
    /// The text of a special token that stands for itself in texts that are encoded.
    literal: Option<String>,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a directory.
    ///
    /// # Errors
    /// [`ModelError::NoTokenizer`], [`ModelError::Read`], [`ModelError::LfsPointer`] or
    /// [`ModelError::BadTokenizer`].
    pub fn open(dir: &Path) -> Result<Tokenizer, ModelError> {
        let path = dir.join("tokenizer.json");
        match std::fs::read(&path) {
            Ok(json) => {
                lfs_pointer::refuse(&path, &json)?;
                Tokenizer::from_bytes(&path, &json)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(ModelError::NoTokenizer { path: dir.to_owned() })
            }
            Err(source) => {
                let hint = "";
                Err(ModelError::Read { path, source, hint })
            }
        }
    }

    /// Takes the bytes of a `tokenizer.json`; `path` is its name in errors.
    ///
    /// Truncation and padding that were saved with the file are switched off: a published tokenizer
    /// may silently cut every prompt to 50 tokens.
    ///
    /// # Errors
    /// [`ModelError::BadTokenizer`].
    pub fn from_bytes(path: &Path, json: &[u8]) -> Result<Tokenizer, ModelError> {
        let bad = |error: tokenizers::Error| ModelError::BadTokenizer {
            path: PathBuf::from(path),
            reason: error.to_string(),
        };
        let mut inner = Inner::from_bytes(json).map_err(bad)?;
        inner.with_truncation(None).map_err(bad)?;
        inner.with_padding(None);
        let added = inner.get_added_tokens_decoder().into_iter();
        let mut special: Vec<(u32, String)> =
            added.filter(|(_, token)| token.special).map(|(id, token)| (id, token.content)).collect();
        special.sort();
        Ok(Tokenizer { inner, special, literal: None })
    }

    /// Whether every token id means the same piece of text to both.
    #[must_use]
    pub fn same_vocabulary(&self, other: &Tokenizer) -> bool {
        self.inner.get_vocab(true) == other.inner.get_vocab(true)
    }

    /// From now on the text of a special token in a text is text: it is encoded in ordinary tokens. Decoding is as before.
    pub fn take_literally(&mut self, id: u32) {
        self.literal = self.special_text(id).filter(|text| text.chars().count() > 1).map(str::to_owned);
    }

    /// The token ids of a text. With `add_special_tokens` the tokenizer's own template is applied,
    /// which for many models puts a beginning-of-text token in front. Special tokens written out in
    /// the text are recognised either way.
    ///
    /// # Errors
    /// [`ModelError::Encode`], where the tokenizer has no way to write the text.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, ModelError> {
        let Some(literal) = self.literal.as_deref().filter(|literal| text.contains(literal)) else {
            return self.encode_whole(text, add_special_tokens);
        };
        // Behind the first character of the literal text, neither part has it any more.
        let width = literal.chars().next().map_or(1, char::len_utf8);
        let (mut ids, mut from) = (Vec::new(), 0);
        let cuts = text.match_indices(literal).map(|(at, _)| at + width).chain([text.len()]);
        for to in cuts {
            ids.extend(self.encode_whole(&text[from..to], add_special_tokens && from == 0)?);
            from = to;
        }
        Ok(ids)
    }

    fn encode_whole(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, ModelError> {
        let encoding = self.inner.encode_fast(text, add_special_tokens);
        let encoding = encoding.map_err(|error| ModelError::Encode { reason: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of some tokens; bytes that are no UTF-8 become U+FFFD. Ids that the tokenizer does
    /// not know add nothing (models often have more rows than the tokenizer has entries).
    ///
    /// # Errors
    /// [`ModelError::Decode`], where the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, ModelError> {
        let text = self.inner.decode(ids, skip_special_tokens);
        text.map_err(|error| ModelError::Decode {
            token: ids.last().copied().unwrap_or_default(),
            reason: error.to_string(),
        })
    }

    /// Starts decoding a growing sequence of tokens piece by piece.
    pub fn stream(self: &Arc<Self>, skip_special_tokens: bool) -> TextStream {
        TextStream {
            tokenizer: Arc::clone(self),
            skip_special_tokens,
            ids: Vec::new(),
            context: 0,
            emitted: 0,
        }
    }

    /// Number of entries, added tokens included. Ids may have gaps, so the greatest id may be higher.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token by its exact name, such as `<|eos|>`.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The name of a token; of byte-level tokenizers in their own alphabet.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The special tokens and their ids, by id.
    pub fn special_tokens(&self) -> Vec<(u32, String)> {
        self.special.clone()
    }

    /// The texts of the special tokens.
    pub fn special_texts(&self) -> impl Iterator<Item = &str> + Clone {
        self.special.iter().map(|(_, text)| text.as_str())
    }

    /// The text of a token that is special; `None` for every other.
    pub fn special_text(&self, id: u32) -> Option<&str> {
        let place = self.special.binary_search_by_key(&id, |(id, _)| *id).ok()?;
        self.special.get(place).map(|(_, text)| text.as_str())
    }
}

/// Tokens in, text out, as soon as it is certain.
///
/// The pieces in order, with [`TextStream::finish`] last, are exactly [`Tokenizer::decode`] of all
/// the tokens. A piece is held back while it ends in an unfinished UTF-8 sequence. (One exception:
/// a byte-fallback decoder spells a whole run of byte tokens as U+FFFD when the run later turns out
/// not to be UTF-8; text that was given out is not taken back then.)
///
/// A push costs the decoding of the tokens since the last piece and of those of the piece before
/// it, not of the whole text.
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    skip_special_tokens: bool,
    /// The tokens of the last piece, then those that wait.
    ids: Vec<u32>,
    /// How many of `ids` belong to pieces already given out: decoded again in front of the waiting
    /// ones, because a decoder treats the first token of a text in its own way.
    context: usize,
    /// Bytes of the decoded `ids` that were given out.
    emitted: usize,
}

impl TextStream {
    /// The tokenizer that it decodes with.
    #[must_use]
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The text that is held back, because its last character is unfinished.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn held(&self) -> Result<String, ModelError> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        Ok(text.get(self.emitted..).unwrap_or_default().to_owned())
    }

    /// Adds a token. `Some` is the text that is now certain and was not given out before.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn push(&mut self, token: u32) -> Result<Option<String>, ModelError> {
        self.ids.push(token);
        let text = self.tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        if text.len() == self.emitted {
            // A token without text (a special one, or one that is unknown) is nobody's context either.
            self.ids.pop();
            return Ok(None);
        }
        if text.len() < self.emitted || text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(None);
        }
        self.piece(&text).map(Some)
    }

    /// Ends the text: what was held back, such as the bytes of a character that never was completed
    /// (as U+FFFD). The stream then starts afresh.
    ///
    /// # Errors
    /// Those of [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<Option<String>, ModelError> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        let rest = if text.len() > self.emitted { Some(self.piece(&text)?) } else { None };
        self.ids.clear();
        self.context = 0;
        self.emitted = 0;
        Ok(rest)
    }

    fn piece(&mut self, text: &str) -> Result<String, ModelError> {
        // Only a decoder that took back what it said (see the type) leaves `emitted` inside a
        // character; the text goes on after it then.
        let start = (self.emitted..text.len()).find(|&at| text.is_char_boundary(at));
        let piece = text.get(start.unwrap_or(text.len())..).unwrap_or_default();
        let piece = piece.to_owned();
        self.ids.drain(..self.context);
        self.context = self.ids.len();
        let context = self.tokenizer.decode(&self.ids, self.skip_special_tokens)?;
        self.emitted = context.len();
        Ok(piece)
    }
}

#[cfg(test)]
mod tests;
