//! Datasets and production traces, read as they are published, one sample at a time.
//!
//! A reader goes by the names of columns and fields, takes plain and gzip files, and keeps one record in
//! memory. If it can't read something, the [error](DatasetError) names the file and the line. It changes
//! nothing: lengths are those of the file, and times are seconds since the file's first record. Records
//! that the file marks as failed (with an output of no tokens) are reported, not silently dropped.
//!
//! A line, or an element of an array, may have up to 64 MiB; a longer one is an error that is found without
//! holding all of it in memory. In csv files a quoted field ends in its own line. Lengths are at most 100
//! million tokens. Times must be in order.
//!
//! ```no_run
//! use pagedraft_workloads::dataset::{DatasetOptions, Item, Turns, Workload, open};
//! let azure = DatasetOptions {
//!     workload: Workload::Azure,
//!     path: Some("AzureLLMInferenceTrace_conv.csv".into()),
//!     turns: Turns::Full,
//!     from_s: Some(600.0),
//!     to_s: Some(1200.0),
//!     limit: None,
//!     keep_failed: false,
//!     random: None,
//!     ruler: None,
//!     seed: 0,
//! };
//! for item in open(&azure, None)? {
//!     if let Item::Sample(sample) = item? {
//!         println!("{:?} {:?}", sample.arrival_s, sample.prompt);
//!     }
//! }
//! # Ok::<(), pagedraft_workloads::dataset::DatasetError>(())
//! ```

mod azure;
mod burstgpt;
mod conversation;
mod csv_rows;
mod date_time;
mod error;
mod json_items;
mod likeness;
mod longbench;
mod longbench_v2;
mod mooncake;
mod options;
mod quantity;
mod random;
mod records;
mod ruler;
mod sample;
mod sharegpt;
mod spec_bench;
#[cfg(test)]
pub(crate) mod tests;
mod text_file;
mod trace_request;
mod vidur;
mod window;

pub use error::DatasetError;
pub use longbench::{LongbenchQuestion, longbench_questions};
pub use options::{DatasetOptions, RandomOptions, Turns, Workload};
pub use ruler::ruler_questions;
pub use sample::{Expectation, Item, OutputLength, Prompt, Sample, SkipReason, Skipped};

use std::sync::Arc;

use self::records::{Record, Records};
use self::window::Window;
use crate::text_tokens::TextTokens;

/// The result of a first pass over a dataset.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Survey {
    /// The number of items that [`open`] gives, skipped ones included.
    pub items: u64,
    /// The number of those items that the file itself marks as failed.
    pub skipped: u64,
    /// Whether every sample has an arrival time.
    pub timed: bool,
    /// The seconds from the window's start to the last arrival; 0 if there are no times.
    pub span_s: f64,
}

/// The samples of a dataset in the file's order, one at a time.
pub type Samples = Box<dyn Iterator<Item = Result<Item, DatasetError>> + Send>;

/// Reads a dataset.
///
/// # Errors
///
/// The options do not go together, or the file is not there or not of the kind. Errors further on in the
/// file are items.
pub fn open(
    options: &DatasetOptions,
    tokenizer: Option<Arc<dyn TextTokens>>,
) -> Result<Samples, DatasetError> {
    Ok(Box::new(Window::open(read(options, tokenizer)?, options)?))
}

/// Reads all of a dataset once and counts, so that a run begins only with a file that can be read to its
/// end (or to the window's). Nothing is tokenised. Samples that are generated from text are counted without
/// being made.
///
/// # Errors
///
/// The first error in the dataset.
pub fn survey(
    options: &DatasetOptions,
    tokenizer: Option<Arc<dyn TextTokens>>,
) -> Result<Survey, DatasetError> {
    if let (Workload::Ruler, None, Some(ruler)) = (options.workload, &options.path, &options.ruler) {
        // Making all samples would tokenise them, so only the first one is made. It shows whether samples
        // can be made.
        drop(open(options, tokenizer)?);
        let items = options.limit.map_or(ruler.samples, |limit| ruler.samples.min(limit));
        return Ok(Survey { items, ..Survey::default() });
    }
    let mut survey = Survey { timed: true, ..Survey::default() };
    for item in open(options, tokenizer)? {
        let (skipped, arrival_s) = match item? {
            Item::Sample(sample) => (0, sample.arrival_s),
            Item::Skipped(skipped) => (1, skipped.arrival_s),
        };
        survey.items += 1;
        survey.skipped += skipped;
        survey.timed &= arrival_s.is_some();
        survey.span_s = arrival_s.unwrap_or(survey.span_s);
    }
    Ok(survey)
}

/// All records of a dataset.
fn read(options: &DatasetOptions, tokenizer: Option<Arc<dyn TextTokens>>) -> Result<Records, DatasetError> {
    let keep_failed = options.keep_failed;
    let path = match (options.workload, &options.path) {
        (Workload::Random, Some(_)) => {
            return Err(DatasetError::Options(
                "--workload random draws its samples; leave out --path".into(),
            ));
        }
        (Workload::Random, None) => {
            let random = options.random.as_ref().ok_or_else(|| {
                DatasetError::Options(
                    "--workload random needs --num-requests, --input-len and --output-len".into(),
                )
            })?;
            return random::generate(random, options.seed);
        }
        (Workload::Ruler, Some(_)) if options.ruler.is_some() => {
            let what = "ruler: samples are read from --path or generated with --task, not both";
            return Err(DatasetError::Options(what.into()));
        }
        (Workload::Ruler, None) => return generated_ruler(options, tokenizer),
        (_, Some(path)) => path,
        (_, None) => {
            return Err(DatasetError::Options(
                "this workload is read from a file: name it with --path".into(),
            ));
        }
    };
    match options.workload {
        Workload::Burstgpt => burstgpt::read(path, keep_failed),
        Workload::Azure => azure::read(path, keep_failed),
        Workload::Mooncake => mooncake::read(path, keep_failed),
        Workload::Vidur => vidur::read(path, keep_failed),
        Workload::Sharegpt => sharegpt::read(path, options.turns, keep_failed),
        Workload::Ruler => ruler::read(path),
        Workload::Longbench => longbench::read(path),
        Workload::LongbenchV2 => longbench_v2::read(path),
        Workload::SpecBench => spec_bench::read(path, options.turns),
        Workload::Random => Err(DatasetError::Options("--workload random has no file".into())),
    }
}

/// The records of a generated RULER task.
fn generated_ruler(
    options: &DatasetOptions,
    tokenizer: Option<Arc<dyn TextTokens>>,
) -> Result<Records, DatasetError> {
    let Some(ruler) = &options.ruler else {
        let what = "--workload ruler needs --path, or --task and --length of the samples to make";
        return Err(DatasetError::Options(what.into()));
    };
    let Some(tokenizer) = tokenizer else {
        let what = "--task makes text of a length in tokens: it needs a model with a tokenizer (--model)";
        return Err(DatasetError::Options(what.into()));
    };
    let samples = crate::tasks::ruler_samples(ruler, options.seed, tokenizer)?;
    Ok(Box::new(samples.map(|sample| Ok(Record { time_ns: None, item: Item::Sample(sample?) }))))
}
