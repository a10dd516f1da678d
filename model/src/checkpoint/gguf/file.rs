//! One GGUF file, mapped into memory or held in it.

use std::borrow::Cow;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use serde_json::{Map, Value as Json};

use super::cursor::Cursor;
use super::header::{Header, MAGIC, Stored};
use super::value::{Kind, List, Value};
use crate::checkpoint::ModelConfig;
use crate::checkpoint::foreign;
use crate::checkpoint::shard::Bytes;
use crate::error::ModelError;
use crate::lfs_pointer;
use crate::tokenizer::Tokenizer;

/// A GGUF file whose header was checked against its length: a model's configuration, weights, tokenizer and chat template.
///
/// Opening costs the reading of the header: a few milliseconds with a vocabulary of 50,000 tokens.
pub struct Gguf {
    path: PathBuf,
    bytes: Bytes,
    header: Header,
}

impl Gguf {
    /// Maps a file. It must not be changed or cut short while the model is in use.
    ///
    /// # Errors
    ///
    /// [`ModelError::Read`], [`ModelError::LfsPointer`], [`ModelError::Foreign`] where it is no GGUF file, [`ModelError::BadGguf`] where it is
    /// damaged, [`ModelError::Unsupported`] and [`ModelError::UnsupportedGgmlType`].
    pub fn open(path: &Path) -> Result<Gguf, ModelError> {
        let read = |source| ModelError::Read { path: path.to_owned(), source, hint: "" };
        let mut file = File::open(path).map_err(read)?;
        let mut start = Vec::new();
        Read::by_ref(&mut file).take(128).read_to_end(&mut start).map_err(read)?;
        lfs_pointer::refuse(path, &start)?;
        if !start.starts_with(MAGIC) {
            return Err(foreign::other_file(path));
        }
        // SAFETY: the mapping is read-only and private to this process's readers; that nobody truncates the file meanwhile
        // is the documented condition of this function.
        let map = unsafe { Mmap::map(&file) }.map_err(read)?;
        Gguf::parse(path.to_owned(), Bytes::Mapped(map))
    }

    /// What the place of a model holds: `None` of a directory, and where there is nothing.
    ///
    /// # Errors
    ///
    /// Those of [`Gguf::open`] of a file.
    pub fn at(place: &Path) -> Result<Option<Gguf>, ModelError> {
        match place.is_file() {
            true => Gguf::open(place).map(Some),
            false => Ok(None),
        }
    }

    /// Takes a file's bytes. `path` is its name in complaints.
    ///
    /// # Errors
    ///
    /// Those of [`Gguf::open`] that are about the contents of a file.
    pub fn from_bytes(path: &Path, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Gguf, ModelError> {
        Gguf::parse(path.to_owned(), Bytes::Held(bytes.into()))
    }

    fn parse(path: PathBuf, bytes: Bytes) -> Result<Gguf, ModelError> {
        let header = Header::read(&mut Cursor::new(&path, bytes.as_slice()))?;
        if let Some(Value::Unsigned(parts @ 2..)) = header.metadata.get("split.count") {
            return Err(ModelError::Unsupported {
                path,
                feature: format!("a GGUF model in {parts} files (split.count)"),
                hint: "make one file of them (llama.cpp: llama-gguf-split --merge)".to_owned(),
            });
        }
        Ok(Gguf { path, bytes, header })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration that the metadata describe.
    ///
    /// # Errors
    ///
    /// Names the key that is missing, wrong, or asks for something that is not done here.
    pub fn config(&self) -> Result<ModelConfig, ModelError> {
        super::config::config(self)
    }

    /// The tokenizer.
    ///
    /// # Errors
    ///
    /// [`ModelError::NoTokenizer`] where the file has none; an error that names the key where it is of a kind that is not
    /// known, or contradicts itself.
    pub fn tokenizer(&self) -> Result<Tokenizer, ModelError> {
        match super::tokenizer::json(self)? {
            Some(json) => Tokenizer::from_bytes(&self.path, json.to_string().as_bytes()),
            None => Err(ModelError::NoTokenizer { path: self.path.clone() }),
        }
    }

    /// The chat template, in Jinja; `None` where the file has none.
    ///
    /// # Errors
    ///
    /// The key has a value of another kind.
    pub fn chat_template(&self) -> Result<Option<&str>, ModelError> {
        self.text("tokenizer.chat_template")
    }

    /// The texts of the special tokens that the file names, under the names that `tokenizer_config.json` and chat templates have for
    /// them, such as `bos_token`.
    ///
    /// # Errors
    ///
    /// An id beyond the vocabulary, or a text that is not UTF-8.
    pub fn special_tokens(&self) -> Result<Vec<(&'static str, String)>, ModelError> {
        super::special::texts(self)
    }

    /// A tensor by the name that it has in the file.
    pub(super) fn stored(&self, name: &str) -> Option<(&Stored, &[u8])> {
        let stored = self.header.tensors.get(name)?;
        Some((stored, self.bytes.as_slice().get(stored.range.clone())?))
    }

    /// The names of all tensors, sorted.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.header.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The keys that begin with `prefix`, without it, and their values. Of a list there is its description alone.
    pub(super) fn section(&self, prefix: &str) -> Map<String, Json> {
        let of = |(key, value): (&String, &Value)| {
            let key = key.strip_prefix(prefix)?;
            let value = match value {
                Value::Unsigned(number) => Json::from(*number),
                Value::Signed(number) => Json::from(*number),
                Value::Float(number) if number.is_finite() => Json::from(*number),
                Value::Float(number) => Json::from(number.to_string()),
                Value::Bool(value) => Json::from(*value),
                Value::Text(text) => Json::from(text.as_str()),
                Value::List(list) => Json::from(format!("a list of {} values", list.count)),
            };
            Some((key.to_owned(), value))
        };
        self.header.metadata.iter().filter_map(of).collect()
    }

    /// The text of a key.
    pub(super) fn text(&self, key: &str) -> Result<Option<&str>, ModelError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(_) => Err(self.bad(key, "no text", "a text")),
        }
    }

    /// The texts of a list.
    pub(super) fn texts(&self, key: &str) -> Result<Option<Vec<&str>>, ModelError> {
        let Some((_, mut cursor, count)) = self.list(key, &[Kind::Text], "a list of texts")? else {
            return Ok(None);
        };
        (0..count).map(|i| cursor.text(&format!("entry {i} of `{key}`"))).collect::<Result<_, _>>().map(Some)
    }

    /// The numbers of a list of f32.
    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, ModelError> {
        let Some((_, mut cursor, count)) = self.list(key, &[Kind::F32], "a list of f32")? else {
            return Ok(None);
        };
        (0..count).map(|_| cursor.u32(key).map(f32::from_bits)).collect::<Result<_, _>>().map(Some)
    }

    /// The numbers of a list of i32 or u32.
    pub(super) fn whole_numbers(&self, key: &str) -> Result<Option<Vec<i64>>, ModelError> {
        let kinds = [Kind::I32, Kind::U32];
        let Some((kind, mut cursor, count)) = self.list(key, &kinds, "a list of i32")? else {
            return Ok(None);
        };
        let number = |bits: u32| if kind == Kind::I32 { (bits as i32).into() } else { bits.into() };
        (0..count).map(|_| cursor.u32(key).map(number)).collect::<Result<_, _>>().map(Some)
    }

    fn list(
        &self,
        key: &str,
        kinds: &[Kind],
        expected: &str,
    ) -> Result<Option<(Kind, Cursor<'_>, usize)>, ModelError> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::List(List { kind, count, range })) if kinds.contains(kind) || *count == 0 => {
                let bytes = self.bytes.as_slice().get(range.clone()).unwrap_or(&[]);
                Ok(Some((*kind, Cursor::new(&self.path, bytes), *count)))
            }
            Some(_) => Err(self.bad(key, "another kind of value", expected)),
        }
    }

    /// A key has a value that makes no sense.
    pub(super) fn bad(&self, key: &str, found: impl Into<String>, expected: impl Into<String>) -> ModelError {
        ModelError::BadField {
            path: self.path.clone(),
            field: key.to_owned(),
            found: found.into(),
            expected: expected.into(),
        }
    }

    /// The file asks for something that is not done here.
    pub(super) fn unsupported(&self, feature: impl Into<String>, hint: impl Into<String>) -> ModelError {
        ModelError::Unsupported { path: self.path.clone(), feature: feature.into(), hint: hint.into() }
    }
}
