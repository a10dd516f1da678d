//! Traces: a directory with `config.json`, `trace_steps.jsonl` (one line a step) and `summary.json`.
//!
//! [`StepEvent`] and [`TraceWriter`] write traces. [`read_steps`] and [`StepRecord`] read them.
//! [`check_dir`] checks them. [`schema()`] says what lines look like.

pub mod analyze;
mod beside;
mod check;
mod dsa;
mod event;
mod group_rows;
mod kv_events;
mod names;
mod parts;
mod prune;
mod record;
mod replace;
mod rotation;
mod schema;
mod segment_rows;
mod skip_judge;
mod steps;
mod tables;
mod target_rows;
mod tensor;
mod writer;

pub use analyze::analyze_dsa;
pub use check::{CheckReport, Rule, Violation, check_dir};
use dsa::lines_before;
pub use dsa::{
    DSA_STEM, DsaFacts, DsaFetch, DsaFetched, DsaFormat, DsaPrefix, DsaRecords, DsaRow, DsaRows, DsaScores,
    DsaSelection, DsaSource, DsaTiers, DsaToken, DsaTopkRecord, DsaTouched, DsaTraceConfig, dsa_file,
    npy_header, prefix_key, read_compact, write_npy,
};
pub use event::{GroupCounts, KeptCounts, PoolCounts, StepEvent, StepNames, TimesUs};
use group_rows::GroupRows;
pub use kv_events::{KvChange, KvEventRecord, KvEvents, KvGroupRecord};
pub use names::RequestNames;
pub use prune::PruneRecord;
pub use record::{
    CopyRecord, GraphKeyRecord, GroupRecord, MetadataRecord, OutcomeRecord, PoolRecord, ResumeRecord,
    RowKind, RowRecord, SetupRecord, StepRecord,
};
pub use replace::replace_file;
pub(crate) use replace::replace_file_with;
pub use schema::{SchemaOf, schema};
use segment_rows::SegmentRows;
pub use skip_judge::SkipJudgeRecord;
pub(crate) use steps::last_step;
pub use steps::{read_steps, steps_file};
pub use tables::{TableDelta, TraceTables};
pub use target_rows::TargetRows;
pub use tensor::{
    Deltas, DiffCell, DiffKv, DiffLayer, DiffOptions, DiffShape, DiffStep, DiffToken, Difference, LEFT_OUT,
    Parting, TENSORS_STEM, TensorData, TensorDiff, TensorLines, TensorRecord, TensorSummary, TensorValue,
    diff_tensors, position_list, position_ranges, summarise_tensors,
};
pub use writer::TraceWriter;

/// Version of the trace's form, in `config.json` as `schema_version`.
///
/// | version | what came with it |
/// |---|---|
/// | 1 | |
/// | 2 | `kv_events` says what entered and left the prefix cache. Before, `published` named the blocks that entered it |
pub const SCHEMA_VERSION: u32 = 2;
/// The oldest version that is still read.
pub const OLDEST_SCHEMA_VERSION: u32 = 1;
/// What the names of all files with one line a step begin with.
pub const STEPS_STEM: &str = "trace_steps";
/// The name of the file with one line per step, if its lines are plain text.
pub const STEPS_FILE: &str = "trace_steps.jsonl";
/// The name of the file with the options that the run was started with.
pub const CONFIG_FILE: &str = "config.json";
/// The name of the file with the run's results.
pub const SUMMARY_FILE: &str = "summary.json";
