//! The text of single tokens, as log probabilities name them.

use pagedraft_model::tokenizer::Tokenizer;

/// The text of a token and the bytes that it stands for. A token may be part of a character: then the text has U+FFFD, and the
/// bytes are those of the part, if the tokenizer's own name for it says them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenText {
    /// What people read.
    pub text: String,
    /// What is put together to the bytes of the whole answer; `None` where nobody knows.
    pub bytes: Option<Vec<u8>>,
}

/// The text of a token. Without a tokenizer it is named by its id.
pub fn of(tokenizer: Option<&Tokenizer>, id: u32) -> TokenText {
    let text = tokenizer.and_then(|tokenizer| tokenizer.decode(&[id], false).ok());
    let Some(text) = text else { return TokenText { text: format!("token_id:{id}"), bytes: None } };
    let bytes = if text.contains(char::REPLACEMENT_CHARACTER) {
        tokenizer.and_then(|tokenizer| tokenizer.id_to_token(id)).and_then(|name| named_bytes(&name))
    } else {
        Some(text.clone().into_bytes())
    };
    TokenText { text, bytes }
}

/// The bytes that a token's name stands for: `<0xE2>`, or a text in the alphabet of byte-level tokenizers.
fn named_bytes(name: &str) -> Option<Vec<u8>> {
    if let Some(hex) = name.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')) {
        return u8::from_str_radix(hex, 16).ok().map(|byte| vec![byte]);
    }
    name.chars().map(byte_of).collect()
}

/// The byte of a letter of GPT-2's alphabet: bytes that print stand for themselves, and the others, in order, for the letters from U+0100 on.
fn byte_of(letter: char) -> Option<u8> {
    let prints = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let code = u32::from(letter);
    match code.checked_sub(0x100) {
        Some(place) => (0..=u8::MAX).filter(|byte| !prints(byte)).nth(place as usize),
        None => u8::try_from(code).ok().filter(prints),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_character_has_its_bytes_by_its_name() {
        // In GPT-2's alphabet the bytes of U+2014 are the letters â, Ģ and Ķ: 0xE2, 0x80, 0x94.
        assert_eq!(named_bytes("âĢĶ"), Some("\u{2014}".as_bytes().to_vec()));
        assert_eq!(named_bytes("Ġa"), Some(b" a".to_vec()));
        assert_eq!(named_bytes("Ċ"), Some(b"\n".to_vec()));
        assert_eq!(named_bytes("<0xE2>"), Some(vec![0xE2]));
        assert_eq!(named_bytes("日"), None);
    }

    #[test]
    fn without_a_tokenizer_a_token_is_named_by_its_id() {
        assert_eq!(of(None, 7), TokenText { text: "token_id:7".to_owned(), bytes: None });
    }
}
