//! Files of JSON lines, written by a thread of their own in whole lines.

use serde::{Deserialize, Serialize};

/// How lines are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LineFormat {
    /// As they are.
    #[default]
    #[serde(rename = "jsonl")]
    Jsonl,
    /// Compressed, in frames that can be read one by one.
    #[serde(rename = "jsonl.zst")]
    JsonlZst,
    /// Apache Parquet, made from lines when the run ends.
    #[serde(rename = "parquet")]
    Parquet,
}

/// Writes whole lines.
#[derive(Debug)]
pub struct LineWriter {}
