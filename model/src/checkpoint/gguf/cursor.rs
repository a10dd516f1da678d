//! Reads numbers and strings from a file's bytes, one after the other, and never past their end.

use std::path::Path;

use crate::error::ModelError;

/// A place in the bytes of a file.
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The start of a file. `path` is its name in complaints.
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Cursor { path, bytes, at: 0 }
    }

    pub fn path(&self) -> &'a Path {
        self.path
    }

    /// How many bytes were read.
    pub fn at(&self) -> usize {
        self.at
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `count` bytes, which are `what`.
    pub fn take(&mut self, count: u64, what: &str) -> Result<&'a [u8], ModelError> {
        let end = usize::try_from(count).ok().and_then(|count| self.at.checked_add(count));
        match end.and_then(|end| self.bytes.get(self.at..end)) {
            Some(bytes) => {
                self.at += bytes.len();
                Ok(bytes)
            }
            None => Err(self.damaged(format!(
                "{what} takes {count} bytes from byte {}, and the file has {} (cut short, or a size that lies)",
                self.at,
                self.bytes.len()
            ))),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N], ModelError> {
        let bytes = self.take(N as u64, what)?;
        bytes.first_chunk().copied().ok_or_else(|| self.damaged(format!("{what} is not there")))
    }

    pub fn u8(&mut self, what: &str) -> Result<u8, ModelError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    pub fn u16(&mut self, what: &str) -> Result<u16, ModelError> {
        self.array(what).map(u16::from_le_bytes)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32, ModelError> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64, ModelError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// The bytes of a string: its length in 8 bytes, then that many.
    pub fn string(&mut self, what: &str) -> Result<&'a [u8], ModelError> {
        let length = self.u64(what)?;
        self.take(length, what)
    }

    /// A string that is UTF-8.
    pub fn text(&mut self, what: &str) -> Result<&'a str, ModelError> {
        let bytes = self.string(what)?;
        std::str::from_utf8(bytes).map_err(|error| self.damaged(format!("{what} is not UTF-8: {error}")))
    }

    /// What is wrong with the file.
    pub fn damaged(&self, reason: String) -> ModelError {
        ModelError::BadGguf { path: self.path.to_owned(), reason }
    }
}
