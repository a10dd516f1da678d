//! The tokens of a GGUF file.

use super::file::Gguf;
use crate::error::ModelError;

/// The key of the tokens' texts.
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
/// The key of their kinds.
const KINDS: &str = "tokenizer.ggml.token_type";

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TokenKind {
    Normal,
    /// Stands for what the vocabulary cannot spell.
    Unknown,
    /// Says something about a text, and is no part of it.
    Control,
    /// Is found in texts before anything else.
    UserDefined,
    /// Fills a gap in the ids.
    Unused,
    /// A byte, such as `<0x0A>`.
    Byte,
}

/// The texts and kinds of the tokens, by id.
pub(super) struct Vocabulary<'a> {
    texts: Vec<&'a str>,
    kinds: Vec<TokenKind>,
}

impl<'a> Vocabulary<'a> {
    /// The tokens of a file; `None` where it has none.
    pub fn of(gguf: &'a Gguf) -> Result<Option<Self>, ModelError> {
        let Some(texts) = gguf.texts(TOKENS)? else { return Ok(None) };
        if u32::try_from(texts.len()).is_err() {
            return Err(gguf.bad(TOKENS, format!("a list of {} tokens", texts.len()), "ids of 32 bits"));
        }
        let kinds = match gguf.whole_numbers(KINDS)? {
            None => vec![TokenKind::Normal; texts.len()],
            Some(kinds) if kinds.len() != texts.len() => {
                let expected = format!("one for each of the {} tokens in `{TOKENS}`", texts.len());
                return Err(gguf.bad(KINDS, format!("a list of {} entries", kinds.len()), expected));
            }
            Some(kinds) => {
                let kind = |(i, kind): (usize, &i64)| {
                    TokenKind::of_number(*kind).ok_or_else(|| {
                        gguf.bad(&format!("{KINDS}[{i}]"), kind.to_string(), "a kind of token, from 1 to 6")
                    })
                };
                kinds.iter().enumerate().map(kind).collect::<Result<_, _>>()?
            }
        };
        Ok(Some(Vocabulary { texts, kinds }))
    }

    /// Each token's id, text and kind.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &'a str, TokenKind)> + '_ {
        (0u32..).zip(&self.texts).zip(&self.kinds).map(|((id, text), kind)| (id, *text, *kind))
    }

    /// The text of a token.
    pub fn text(&self, id: u32) -> Option<&'a str> {
        self.texts.get(id as usize).copied()
    }

    pub fn len(&self) -> usize {
        self.texts.len()
    }
}

impl TokenKind {
    fn of_number(number: i64) -> Option<TokenKind> {
        Some(match number {
            // Some writers leave tokens undefined that have nothing special.
            0 | 1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return None,
        })
    }

    /// Whether it is found in texts as a whole, before they are cut into words.
    pub fn is_added(self) -> bool {
        matches!(self, TokenKind::Control | TokenKind::UserDefined | TokenKind::Unknown)
    }
}
