//! How texts are cut into words before a byte-level BPE: what `tokenizer.ggml.pre` names.
//!
//! A file has no more than a name for it. The patterns are those of the `tokenizer.json` of the models that the names stand for.

use serde_json::{Value as Json, json};

use super::file::Gguf;
use crate::error::ModelError;

/// The key of the name.
const PRE: &str = "tokenizer.ggml.pre";

/// A way to cut texts into words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreTokenizer {
    /// GPT-2's.
    Gpt2,
    /// GPT-2's, with each digit a word (SmolLM2, StarCoder).
    Digits,
    /// Llama 3's.
    Llama3,
    /// Qwen2's and Qwen3's: Llama 3's, with each digit a word, of texts in normal form C.
    Qwen2,
    /// Mistral Nemo's.
    Tekken,
    /// Llama.cpp's for files that do not name any: GPT-2's, with punctuation and digits in threes apart.
    Default,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The names that files have.
const NAMES: [(&str, PreTokenizer); 19] = [
    ("default", PreTokenizer::Default),
    ("gpt-2", PreTokenizer::Gpt2),
    ("phi-2", PreTokenizer::Gpt2),
    ("mpt", PreTokenizer::Gpt2),
    ("olmo", PreTokenizer::Gpt2),
    ("smollm", PreTokenizer::Digits),
    ("starcoder", PreTokenizer::Digits),
    ("refact", PreTokenizer::Digits),
    ("command-r", PreTokenizer::Digits),
    ("llama-bpe", PreTokenizer::Llama3),
    ("llama3", PreTokenizer::Llama3),
    ("llama-v3", PreTokenizer::Llama3),
    ("falcon3", PreTokenizer::Llama3),
    ("pixtral", PreTokenizer::Llama3),
    ("qwen2", PreTokenizer::Qwen2),
    ("deepseek-r1-qwen", PreTokenizer::Qwen2),
    ("megrez", PreTokenizer::Qwen2),
    ("tekken", PreTokenizer::Tekken),
    ("", PreTokenizer::Default),
];

impl PreTokenizer {
    /// The one that a file names.
    ///
    /// # Errors
    ///
    /// A name that is not known: texts would be cut at other places than in training.
    pub fn of(gguf: &Gguf) -> Result<PreTokenizer, ModelError> {
        let name = gguf.text(PRE)?.unwrap_or("default");
        match NAMES.iter().find(|(known, _)| *known == name) {
            Some((_, PreTokenizer::Default)) => {
                tracing::warn!(
                    file = %gguf.path().display(),
                    "the file does not say how its tokenizer cuts texts into words ({PRE}): llama.cpp's default is used, which \
                     may give worse tokens than the model was trained on"
                );
                Ok(PreTokenizer::Default)
            }
            Some((_, known)) => Ok(*known),
            None => {
                let known: Vec<&str> =
                    NAMES.iter().map(|(known, _)| *known).filter(|known| !known.is_empty()).collect();
                let hint = format!("known are {}", known.join(", "));
                Err(gguf.unsupported(format!("{PRE} \"{name}\""), hint))
            }
        }
    }

    /// The `pre_tokenizer` of a `tokenizer.json`.
    pub fn json(self) -> Json {
        let split = |pattern: &str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        let mut steps = match self {
            PreTokenizer::Gpt2 => vec![split(GPT2)],
            PreTokenizer::Digits => vec![json!({"type": "Digits", "individual_digits": true}), split(GPT2)],
            PreTokenizer::Llama3 => vec![split(LLAMA3)],
            PreTokenizer::Qwen2 => vec![split(QWEN2)],
            PreTokenizer::Tekken => vec![split(TEKKEN)],
            PreTokenizer::Default => {
                vec![split(r"[\p{P}\$\+<=>\^~\|]+"), split(GPT2), split(r"\p{N}+"), split("[0-9][0-9][0-9]")]
            }
        };
        steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false}));
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    /// The `normalizer` of a `tokenizer.json`.
    pub fn normalizer(self) -> Json {
        match self {
            PreTokenizer::Qwen2 => json!({"type": "NFC"}),
            _ => Json::Null,
        }
    }

    /// Whether a word that is a token becomes that token, whatever its merges.
    pub fn ignores_merges(self) -> bool {
        matches!(self, PreTokenizer::Llama3 | PreTokenizer::Tekken)
    }

    /// Whether a text starts with the bos token, where the file does not say it.
    pub fn adds_bos(self) -> bool {
        self.ignores_merges()
    }
}
