//! Datasets and production traces, read as they are published, one sample at a time.
//!
//! A reader goes by column and field names, takes gzip or plain files, and keeps one record in memory. What it can't read is
//! an [`Error`](DatasetError) that names file and line. It changes nothing: lengths are those of the file, times are seconds since
//! the file's first record, and what a file marks as failed is told, not dropped.

mod error;
mod sample;

pub use error::DatasetError;
pub use sample::{Expectation, Item, OutputLength, Prompt, Sample, SkipReason, Skipped};

use std::path::PathBuf;

/// A kind of dataset or trace, by the name that `--workload` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Workload {
    /// BurstGPT's csv (either column order).
    Burstgpt,
    /// Azure's LLM inference traces (csv).
    Azure,
    /// Mooncake's traces (JSON lines with `hash_ids`).
    Mooncake,
    /// Vidur's processed traces (csv).
    Vidur,
    /// ShareGPT conversations (a JSON array, or JSON lines), or JSON lines of token ids made from them.
    Sharegpt,
    /// RULER's JSON lines, or its tasks generated.
    Ruler,
    /// LongBench v1 (JSON lines).
    Longbench,
    /// LongBench v2 (a JSON array, or JSON lines).
    LongbenchV2,
    /// Spec-Bench's questions (JSON lines).
    SpecBench,
    /// Lengths drawn from ranges.
    Random,
}

/// Which turns of a conversation are requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Turns {
    /// One request a conversation: all before the last answer is its prompt.
    #[default]
    Full,
    /// One request an answer: all before it is its prompt.
    PerUserTurn,
}

/// Samples without a file: lengths, and the share of each prompt that all have in common.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct RandomOptions {
    /// How many.
    pub num_requests: u64,
    /// Tokens of a prompt.
    pub input_len: u32,
    /// Tokens of an output.
    pub output_len: u32,
    /// Lengths are drawn evenly from `len * (1 - r) ..= len * (1 + r)`.
    pub range_ratio: f64,
    /// The share of each prompt that is a common prefix, 0 to 1.
    pub prefix_share: f64,
}

/// What is read, and which part of it.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct DatasetOptions {
    /// The kind.
    pub workload: Workload,
    /// The file; `None` for samples that are generated.
    pub path: Option<PathBuf>,
    /// Which turns of conversations are requests.
    pub turns: Turns,
    /// Seconds since the file's first record: earlier ones are left out, and times count from here.
    pub from_s: Option<f64>,
    /// Seconds since the file's first record: this one and later ones are left out.
    pub to_s: Option<f64>,
    /// The first so many samples of that window; skipped ones count.
    pub limit: Option<u64>,
    /// Whether requests that the trace marks as failed (no output) are run, with an output of one token.
    pub keep_failed: bool,
    /// For [`Workload::Random`].
    pub random: Option<RandomOptions>,
    /// For [`Workload::Ruler`] without a file.
    pub ruler: Option<crate::tasks::RulerOptions>,
    /// What is drawn is drawn from this.
    pub seed: u64,
}

/// What a first pass over a dataset found.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Survey {
    /// Items that [`open`] gives, skipped ones included.
    pub items: u64,
    /// Of these, such as the file itself marks as failed.
    pub skipped: u64,
    /// Whether every sample has an arrival time.
    pub timed: bool,
    /// Seconds from the window's start to the last arrival, where there are times.
    pub span_s: f64,
}

/// Samples, one at a time, in the file's order.
pub type Samples = Box<dyn Iterator<Item = Result<Item, DatasetError>> + Send>;

/// Reads a dataset.
///
/// # Errors
///
/// Options that do not go together, a file that is not there or not of the kind. What is wrong further on is an item.
pub fn open(
    _options: &DatasetOptions,
    _tokenizer: Option<std::sync::Arc<dyn crate::prompt::TextTokens>>,
) -> Result<Samples, DatasetError> {
    unimplemented!()
}

/// Reads all of it once and counts, so that a run begins only with a file that can be read to its end.
///
/// # Errors
///
/// The first thing that is wrong with it.
pub fn survey(
    _options: &DatasetOptions,
    _tokenizer: Option<std::sync::Arc<dyn crate::prompt::TextTokens>>,
) -> Result<Survey, DatasetError> {
    unimplemented!()
}
