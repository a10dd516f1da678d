//! Writes paths to JSON, which holds only text. Bytes of a path that are not UTF-8 become U+FFFD, so that a
//! file of any name can be used.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

/// For `#[serde(serialize_with = ...)]`. serde itself would refuse a path that is not UTF-8.
pub(crate) fn serialize<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(serializer)
}
